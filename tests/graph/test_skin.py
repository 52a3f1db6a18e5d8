"""Candidate lists that are kept: never a missing pair, few searches, the same forces."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import primitive_neighbor_list
from tests_support import DATA, assert_equal_results, autograd_results

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.common.errors import InputError
from dpa3sim.graph.lists import Counters, ListCache
from dpa3sim.graph.skin import SkinList
from dpa3sim.structures.system import System

CUTOFF, SKIN = 5.0, 0.8


def random_crystal(rng):
    n = int(rng.integers(1, 20))
    cell = np.diag(rng.uniform(4, 14, 3)) @ (np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3)))
    if rng.random() < 0.2:
        cell = cell[[1, 0, 2]]
    pbc = rng.random(3) < 0.8
    return Atoms(f"H{n}", rng.uniform(-0.5, 1.5, (n, 3)) @ cell, cell=cell, pbc=pbc)


def move(atoms, rng, rattle, strain):
    """Strain the cell with its atoms, move them, and wrap some of them over the boundary."""
    deformation = np.eye(3) + rng.normal(scale=strain, size=(3, 3))
    rotation, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
    atoms.set_cell(atoms.cell.array @ deformation @ rotation, scale_atoms=True)
    atoms.positions += rng.uniform(-rattle, rattle, size=(len(atoms), 3))
    images = rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    atoms.positions += images @ atoms.cell.array


def listed_pairs(skin, atoms):
    """Pairs of a list within the cutoff for the present positions, shifts made current."""
    state = skin.deformation(atoms.positions, atoms.cell.array)
    left = atoms.positions - skin.positions @ state.gradient
    images = skin._images(left, state.cell)
    i, column = np.nonzero(np.arange(skin.neighbour.shape[1]) < skin.count[:, None])
    j = skin.neighbour[i, column]
    shifts = skin.shifts[i, column] + images[i] - images[j]
    vectors = atoms.positions[j] + shifts @ state.cell - atoms.positions[i]
    near = np.linalg.norm(vectors, axis=1) <= CUTOFF
    found = zip(i[near].tolist(), j[near].tolist(), map(tuple, shifts[near].tolist()), strict=True)
    return sorted(found)


def true_pairs(atoms):
    i, j, shifts = primitive_neighbor_list("ijS", atoms.pbc, atoms.cell[:], atoms.positions, CUTOFF)
    return sorted(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))


@pytest.mark.parametrize("block", range(10))
def test_no_pair_is_ever_missed(block):
    """500 random moves and strains: whatever the test accepts is complete."""
    rng = np.random.default_rng(block)
    accepted = 0
    for _ in range(50):
        atoms = random_crystal(rng)
        skin = SkinList.search(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF, SKIN)
        move(atoms, rng, rattle=rng.choice([0.0, 0.1, 0.25]), strain=rng.choice([0.0, 0.01, 0.03]))
        if skin.deformation(atoms.positions, atoms.cell.array).valid:
            accepted += 1
            assert listed_pairs(skin, atoms) == true_pairs(atoms)
    assert 10 <= accepted < 50  # the moves are neither trivial nor hopeless


def test_the_bound_is_tight():
    """Two atoms that approach each other straight may use up the skin, and no more."""
    skin = SkinList.search(
        np.array([[0.0, 0, 0], [CUTOFF + SKIN + 0.001, 0, 0]]),
        np.zeros((3, 3)),
        np.zeros(3, dtype=bool),
        CUTOFF,
        SKIN,
    )
    for each, valid in ((0.49 * SKIN, True), (0.51 * SKIN, False)):
        positions = skin.positions + np.array([[each, 0, 0], [-each, 0, 0]])
        assert skin.deformation(positions, np.zeros((3, 3))).valid is valid
    # One atom that moves alone has all of it.
    alone = skin.positions + np.array([[0.98 * SKIN, 0, 0], [0, 0, 0]])
    assert skin.deformation(alone, np.zeros((3, 3))).valid


def test_a_rigid_rotation_costs_nothing_and_a_large_cell_no_more_than_a_small_one():
    atoms = bulk("Cu", cubic=True)
    large = atoms * (4, 4, 4)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for structure in (atoms, large):
        skin = SkinList.search(
            structure.positions, structure.cell.array, structure.pbc, CUTOFF, SKIN
        )
        turned = skin.deformation(structure.positions @ rotation, structure.cell.array @ rotation)
        assert turned.displacements.max() < 1e-12
        assert turned.budget == pytest.approx(SKIN, abs=1e-6)
        strained = skin.deformation(structure.positions * 1.005, structure.cell.array * 1.005)
        assert strained.displacements.max() < 1e-12
        assert strained.budget == pytest.approx(SKIN + 0.005 * (CUTOFF + SKIN), abs=1e-6)


def test_rows_of_a_few_moved_atoms_are_searched_alone():
    rng = np.random.default_rng(4)
    for atoms in (bulk("Cu", cubic=True) * 3, fcc111("Al", (4, 4, 3), vacuum=8.0)):
        atoms.rattle(0.05, seed=1)
        skin = SkinList.search(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF, SKIN)
        atoms.set_cell(atoms.cell.array * 1.002, scale_atoms=True)
        atoms.positions[[3, 7]] += rng.normal(scale=3.0, size=(2, 3))
        state = skin.deformation(atoms.positions, atoms.cell.array)
        assert not state.valid
        updated = skin.with_moved_atoms(atoms.positions, state)
        assert updated is not None
        assert updated.deformation(atoms.positions, atoms.cell.array).valid
        assert listed_pairs(updated, atoms) == true_pairs(atoms)
        atoms.positions += rng.uniform(-0.1, 0.1, atoms.positions.shape)
        if updated.deformation(atoms.positions, atoms.cell.array).valid:
            assert listed_pairs(updated, atoms) == true_pairs(atoms)


def test_an_atom_may_have_moved_through_any_number_of_cells():
    for atoms in (bulk("Cu", cubic=True) * 2, fcc111("Al", (4, 4, 3), vacuum=8.0)):
        atoms.rattle(0.05, seed=1)
        skin = SkinList.search(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF, SKIN)
        here = listed_pairs(skin, atoms)
        atoms.positions[5] += [17000, -30000, 0] @ atoms.cell.array + [0.9, 0.3, 0.4]
        state = skin.deformation(atoms.positions, atoms.cell.array)
        tracemalloc.start()
        updated = skin.with_moved_atoms(atoms.positions, state)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 10 << 20
        atoms.positions[5] -= [17000, -30000, 0] @ atoms.cell.array
        near = skin.with_moved_atoms(
            atoms.positions, skin.deformation(atoms.positions, atoms.cell.array)
        )
        assert listed_pairs(near, atoms) == true_pairs(atoms) != here
        assert updated.count.tolist() == near.count.tolist()


def test_many_moved_atoms_are_a_new_search():
    atoms = bulk("Cu", cubic=True) * 2
    skin = SkinList.search(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF, SKIN)
    atoms.rattle(1.0, seed=1)
    state = skin.deformation(atoms.positions, atoms.cell.array)
    assert skin.with_moved_atoms(atoms.positions, state) is None


def test_displaced_supercells_share_one_search():
    counters = Counters()
    cache = ListCache(CUTOFF, SKIN, counters)
    parent = bulk("Cu", cubic=True) * 2
    for atom in range(6):
        for sign in (-1, 1):
            atoms = parent.copy()
            atoms.positions[atom, 0] += 0.01 * sign
            atoms.set_cell(atoms.cell.array * (1 + 0.004 * sign), scale_atoms=True)
            found = cache.find(System.from_atoms(atoms))
            assert listed_pairs(found, atoms) == true_pairs(atoms)
    assert (counters.rebuilds, counters.shared_lists) == (1, 11)
    others = replace(System.from_atoms(parent), types=np.ones(len(parent), dtype=int))
    assert cache.find(others)
    assert counters.rebuilds == 2


def tiny(**kwargs):
    """A random smooth model of O and H; forces of any structure in a millisecond an atom."""
    return Potential(DATA / "models/dynamic/model.pt", **kwargs)


def thermalize(atoms, kelvin, rng):
    """Maxwell-Boltzmann momenta without a drift."""
    scale = np.sqrt(atoms.get_masses() * units.kB * kelvin)[:, None]
    momenta = rng.normal(size=(len(atoms), 3)) * scale
    atoms.set_momenta(momenta - momenta.mean(axis=0))


def copper_run(steps, pressure=False):
    """Real copper at 300 K, positions and cells of every step; oxygen for the tiny model."""
    atoms = bulk("Cu", cubic=True) * 2
    atoms.calc = EMT()
    rng = np.random.default_rng(3)
    thermalize(atoms, 600, rng)
    motion = VelocityVerlet(atoms, 5 * units.fs)
    for step in range(steps):
        motion.run(1)
        oxygen = Atoms("O32", atoms.positions, cell=atoms.cell, pbc=True)
        if pressure:  # a breathing, shearing cell, as in NPT
            phase = 2 * np.pi * step / 100
            strain = 0.02 * np.array(
                [[np.sin(phase), 0.3 * np.cos(phase), 0], [0, 0, 0], [0, 0, 0]]
            )
            oxygen.set_cell(oxygen.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        if step % 3 == 0:
            oxygen.wrap()  # as some drivers do
        yield oxygen


@pytest.mark.slow
@pytest.mark.parametrize("pressure", [False, True], ids=["NVE", "NPT"])
def test_forces_of_a_run_equal_those_of_fresh_lists(pressure):
    resident = tiny()
    for step, atoms in enumerate(copper_run(500, pressure)):
        result = resident.evaluate([atoms])[0]
        if step % 5 == 0:
            assert_equal_results(result, autograd_results(resident, atoms), 1e-11)
    assert resident.counters.evaluations == 500
    assert resident.counters.rebuilds <= 500 // 20


@pytest.mark.slow
def test_molecular_dynamics_of_copper_with_the_embedded_model():
    """Every force of 500 steps of Langevin dynamics equals that of a fresh list."""
    atoms = bulk("Cu", cubic=True) * 2
    potential, fresh = Potential(dtype="float64"), Potential(dtype="float64", skin=0.0)
    atoms.calc = DPA3Calculator(potential)
    rng = np.random.default_rng(1)
    thermalize(atoms, 300, rng)
    motion = Langevin(atoms, 2 * units.fs, temperature_K=300, friction=0.01 / units.fs, rng=rng)
    worst = 0.0

    def compare():
        nonlocal worst
        forces = fresh.evaluate([atoms])[0].forces
        worst = max(worst, np.abs(atoms.get_forces() - forces).max())

    motion.attach(compare)
    motion.run(500)
    assert worst < 1e-11
    assert fresh.counters.rebuilds > 500
    assert potential.counters.rebuilds <= 500 // 20
    assert atoms.get_temperature() > 150  # it did move


def test_what_is_reused_is_counted():
    potential = tiny()
    atoms = Atoms("O4", bulk("Cu", cubic=True).positions, cell=[3.6] * 3, pbc=True)
    for _ in range(4):
        atoms.positions[0, 0] += 1e-4
        potential.evaluate([atoms])
    counts = potential.counters.to_dict()
    assert counts["rebuilds"] == counts["layouts"] == 1
    assert counts["reused_edges"] == counts["reused_angles"] == 3
    atoms.positions[0, 0] += 0.9
    potential.evaluate([atoms])
    assert potential.counters.rebuilds == 1
    assert potential.counters.reused_edges == 3


def test_without_a_skin_every_step_searches():
    potential = tiny(skin=0.0)
    atoms = Atoms("O4", bulk("Cu", cubic=True).positions, cell=[3.6] * 3, pbc=True)
    for _ in range(3):
        atoms.positions[0, 0] += 0.01
        expected = autograd_results(potential, atoms)
        assert_equal_results(potential.evaluate([atoms])[0], expected, 1e-11)
    # With one atom moved, only its rows are searched.
    assert (potential.counters.rebuilds, potential.counters.row_updates) == (1, 2)


@pytest.mark.parametrize("skin", [-0.1, 6.0, float("nan")])
def test_bad_skins(skin):
    with pytest.raises(InputError, match="skin"):
        tiny(skin=skin)
