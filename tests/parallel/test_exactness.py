"""Several ranks compute what one computes: any structure, owners, model, kernel and history."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from emulated_split import all_to, at_random, completed, in_turn, steps
from tests_support import (
    DATA,
    MODELS,
    hydrogen_oxygen_structures,
    load_small,
    structures_with_inputs,
)

from dpa3sim import Potential
from dpa3sim.kernels.evaluator import MemoryPolicy
from dpa3sim.parallel.partition import owners
from dpa3sim.uncertainty.rigidity import fit

SLOW = pytest.mark.slow


def assert_exact(found, expected, relative=1e-10):
    """Forces and virials to 1e-10 of their largest component, energies to 1e-12 eV/atom."""
    n = len(expected.energies)
    assert abs(found.energy - expected.energy) <= max(1e-12 * n, 1e-14 * abs(expected.energy))
    np.testing.assert_allclose(found.energies, expected.energies, rtol=0, atol=1e-12)
    size = max(np.abs(expected.forces).max(), 1e-3)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=relative * size)
    size = max(np.abs(expected.virial).max(), 1e-3)
    np.testing.assert_allclose(found.virial, expected.virial, rtol=0, atol=relative * size)
    for name in ("n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.fixture(scope="module")
def small():
    """A small model of three layers with everything that is common."""
    return load_small(DATA / "models/dynamic/model.pt")


def shapes():
    rng = np.random.default_rng(3)
    dense = hydrogen_oxygen_structures()[1]
    needle = dense * (6, 1, 1)
    wire = Atoms("OHHOH", rng.uniform(0, 2.5, (5, 3)) + [[0, 0, 3 * i] for i in range(5)])
    wire.set_cell([0, 0, 15.5])
    wire.pbc = (False, False, True)
    drop = Atoms("OHH" * 12, rng.uniform(0, 11, (36, 3)))
    from ase.neighborlist import neighbor_list

    drop.translate([30, -20, 5])
    near = np.unique(neighbor_list("i", drop, 0.7))
    del drop[near]
    far = molecule("H2O")
    far.translate([40.0, 3, 1])
    far += molecule("H2O")
    left = dense.copy()
    left.set_cell(left.cell[[1, 0, 2]])
    rotated = dense.copy()
    rotated.rotate(37, (1, 2, 3), rotate_cell=True)
    outside = dense * (2, 1, 1)
    outside.positions += rng.integers(-3, 4, (len(outside), 3)) @ outside.cell.array
    return {
        "one": bulk("O", "fcc", 3.2),
        "cell below cutoff": dense,
        "cells": dense * (2, 2, 2),
        "needle": needle,
        "left-handed": left,
        "rotated": rotated,
        "slab": hydrogen_oxygen_structures()[3],
        "chain": hydrogen_oxygen_structures()[7],
        "wire": wire,
        "drop": drop,
        "molecule": molecule("H2O2"),
        "two far molecules": far,
        "isolated": Atoms("OH", [[0, 0, 0], [50.0, 0, 0]]),
        "unwrapped": outside,
    }


SHAPES = shapes()
OWNERS = {
    "bisection": owners,
    "random": at_random(1),
    "all to one": all_to(-1),
    "in turn": in_turn,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_any_structure_and_any_owners(small, shape):
    atoms = SHAPES[shape]
    expected = small.evaluate([atoms])[0]
    for size, owned in ((2, "bisection"), (3, "random"), (4, "bisection")):
        (found,), _ = steps(small, [atoms], size, divide=OWNERS[owned])
        assert_exact(found, expected)


@pytest.mark.parametrize("shape", [pytest.param(x, marks=SLOW) for x in SHAPES])
def test_every_structure_and_all_owners(small, shape):
    expected = small.evaluate([SHAPES[shape]])[0]
    for size in (1, 2, 3, 4):
        for divide in OWNERS.values():
            (found,), _ = steps(small, [SHAPES[shape]], size, divide=divide)
            assert_exact(found, expected)


def test_more_ranks_than_atoms_and_ranks_without_work(small):
    atoms = molecule("H2O")
    expected = small.evaluate([atoms])[0]
    for size, parts in ((5, 5), (3, 2), (4, 1)):
        (found,), facts = steps(small, [atoms], size, parts=parts)
        assert_exact(found, expected)
        assert [int(facts[0][1].n_atoms[r] > 0) for r in range(parts, size)] == [0] * (size - parts)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize(
    "tensors", [False, pytest.param(True, marks=SLOW)], ids=["compiled", "tensors"]
)
def test_any_model(path, tensors):
    potential = load_small(path)
    layers = potential.model.config.descriptor.nlayers
    policies = [MemoryPolicy(every=1), MemoryPolicy(every=2), MemoryPolicy(every=layers)]
    structures = structures_with_inputs()
    for atoms in (structures[1] * (2, 1, 1), structures[3]):
        if "aparam" in atoms.info:
            atoms.info["aparam"] = np.linspace(-1, 1, len(atoms))
        expected = potential.evaluate([atoms])[0]
        (found,), _ = steps(
            potential, [atoms], 3, divide=at_random(2), policies=policies, tensors=tensors
        )
        assert_exact(found, expected)


def test_the_embedded_model_where_neighbours_are_cut(embedded64):
    """Equal distances at the limit of neighbours: the same of them are cut."""
    atoms = bulk("Si")
    atoms.set_cell(atoms.cell * 0.62, scale_atoms=True)  # many neighbours at equal distances
    expected = embedded64.evaluate([atoms])[0]
    assert expected.n_cut_angle_edges > 0
    (found,), _ = steps(embedded64, [atoms], 2, divide=at_random(4))
    assert_exact(found, expected)


@SLOW
def test_a_thousand_atoms(embedded64):
    atoms = bulk("Si", cubic=True) * 5
    atoms.rattle(0.05, seed=1)
    expected = embedded64.evaluate([atoms])[0]
    for size in (2, 4):
        (found,), facts = steps(embedded64, [atoms], size)
        assert_exact(found, expected)
        assert facts[0][1].imbalance <= 1.05


def test_uncertainties(small):
    known = []
    for seed in range(40):
        known.append(SHAPES["cell below cutoff"].copy())
        known[-1].rattle(0.05, seed=seed)
    judged = small.with_uncertainty(replace(fit(small, known), alpha=1.0))
    atoms = SHAPES["unwrapped"]
    expected = judged.evaluate([atoms])[0]
    (found,), _ = steps(judged, [atoms], 3, divide=at_random(1))
    assert_exact(found, expected)
    assert found.uncertainty.energy == pytest.approx(expected.uncertainty.energy, rel=1e-9)
    np.testing.assert_allclose(
        found.uncertainty.novelties, expected.uncertainty.novelties, rtol=1e-9
    )


# -- steps ---------------------------------------------------------------------------------------


def journey():
    """Steps with everything that happens to a structure between two of them."""
    rng = np.random.default_rng(11)
    atoms = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    found = [atoms.copy()]

    def change(**_):
        found.append(atoms.copy())

    for _ in range(2):  # within the skin
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        change()
    lattice = rng.integers(-2, 3, atoms.positions.shape) @ atoms.cell.array
    atoms.positions += lattice  # wrapped differently, and not at all
    change()
    for _ in range(3):  # the cell changes, lists do not
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=2e-3, size=(3, 3))), True)
        change()
    atoms.positions[3] += atoms.cell.array[0] * 0.35  # a jump
    change()
    atoms.positions += atoms.cell.array.sum(axis=0) * 0.31  # a rigid shift through the cell
    change()
    atoms.wrap()
    change()
    for _ in range(3):  # beyond the skin
        atoms.positions += rng.normal(scale=0.15, size=atoms.positions.shape)
        change()
    return found


@pytest.mark.parametrize("divide", ["bisection", "random"])
def test_steps_with_kept_lists(small, divide):
    outcomes = [small.evaluate_each([x])[0] for x in journey()]
    structures = [x for x, y in zip(journey(), outcomes, strict=True) if hasattr(y, "forces")]
    expected = [y for y in outcomes if hasattr(y, "forces")]
    found, facts = steps(small, structures, 2, divide=OWNERS[divide])
    for a, b in zip(found, expected, strict=True):
        assert_exact(a, b)
    traffic = facts[0][0]
    assert traffic.steps == len(structures)
    assert 2 <= traffic.renewals < len(structures)
    for one, other in pairwise(facts):
        assert one[3] == other[3]  # the same exchanges in the same order


def test_atoms_drift_away_from_their_owners(small):
    """Owners are frozen while the atoms of one rank cross the whole cell."""
    atoms = hydrogen_oxygen_structures()[1] * (3, 1, 1)
    half = np.arange(len(atoms)) < len(atoms) // 2

    def divide(positions, cell, pbc, work, ranks):
        return np.where(half, 0, 1)

    assert len(atoms) == 18
    structures = []
    for share in np.linspace(0, 1, 4):
        moved = atoms.copy()
        moved.positions[half] += [0.2, 30 * share, 0]
        moved.positions += share * atoms.cell.array[0]
        structures.append(moved)
    outcomes = small.evaluate_each(structures)
    kept = [k for k, x in enumerate(outcomes) if hasattr(x, "forces")]
    assert len(kept) >= 2
    found, _ = steps(small, [structures[k] for k in kept], 2, divide=divide)
    for result, k in zip(found, kept, strict=True):
        assert_exact(result, outcomes[k])


def test_forces_and_virial_are_derivatives_of_the_energy_at_a_border(small):
    atoms = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    (here,), facts = steps(small, [atoms], 2, look=lambda part: part.session._owner)
    owner = facts[0][2]
    system = completed(small, atoms)
    x = np.linalg.solve(system.cell.T, system.positions.T).T % 1
    border = int(np.argmin(np.abs(x[:, 0] - 0.5)))
    assert len(set(owner.tolist())) == 2
    h, structures = 1e-4, []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[border, 0] += sign * h
        strained = atoms.copy()
        strain = np.eye(3)
        strain[0, 1] += sign * h
        strained.set_cell(atoms.cell @ strain, scale_atoms=True)
        structures += [moved, strained]
    found, _ = steps(small, structures, 2)
    force = -(found[0].energy - found[2].energy) / (2 * h)
    assert force == pytest.approx(here.forces[border, 0], abs=1e-5)
    virial = -(found[1].energy - found[3].energy) / (2 * h)
    assert virial == pytest.approx(here.virial[0, 1], abs=2e-4)
    assert np.abs(here.forces.sum(axis=0)).max() < 1e-12 * np.abs(here.forces).sum()


def test_the_same_bits_again(small):
    structures = journey()[:5]
    first, _ = steps(small, structures, 3, divide=at_random(5))
    again, _ = steps(small, structures, 3, divide=at_random(5))
    for a, b in zip(first, again, strict=True):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)
        np.testing.assert_array_equal(a.virial, b.virial)


def test_policies_do_not_change_a_bit(small):
    atoms = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    results = [
        steps(small, [atoms], 3, divide=at_random(6), policies=[MemoryPolicy(every=k) for k in e])[
            0
        ]
        for e in ((1,), (2,), (3, 1, 2))
    ]
    for (other,) in results[1:]:
        np.testing.assert_array_equal(other.forces, results[0][0].forces)
        np.testing.assert_array_equal(other.virial, results[0][0].virial)


def test_single_precision():
    single = Potential(DATA / "models/dynamic/model.pt", dtype="float32")
    double = Potential(DATA / "models/dynamic/model.pt", dtype="float64")
    atoms = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    exact = double.evaluate([atoms])[0].forces
    error = np.abs(single.evaluate([atoms])[0].forces - exact).max()
    (found,), _ = steps(single, [atoms], 3, divide=at_random(7))
    assert np.abs(found.forces - exact).max() <= 3 * error
