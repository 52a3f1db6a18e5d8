"""Cells of a crystal: what relates them, and which structures are no crystal."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa3sim.common.errors import InputError
from dpa3sim.protocols.crystals.cells import (
    Cells,
    Extensive,
    Supercell,
    check_crystal,
    connected_dimension,
    symmetrized,
)
from dpa3sim.run.directory import unit_of

CRYSTALS = {
    "Si": (bulk("Si", cubic=True), 2, 8, "Fd-3m (227)", 48, 8),
    "MgO": (bulk("MgO", "rocksalt", 4.2, cubic=True), 2, 8, "Fm-3m (225)", 48, 4),
    "Ti": (bulk("Ti"), 2, 2, "P6_3/mmc (194)", 24, 2),
    "W": (bulk("W", cubic=True), 1, 2, "Im-3m (229)", 48, 2),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_known_crystals(name):
    atoms, primitive, conventional, group, order, units = CRYSTALS[name]
    cells = Cells.of(atoms, 1e-3)
    assert len(cells.primitive.atoms) == primitive
    assert len(cells.conventional.atoms) == conventional
    assert cells.label() == group
    assert len(cells.rotations) == order
    assert cells.formula_units == units


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(CRYSTALS)),
    repeat=st.tuples(*[st.integers(1, 2)] * 3),
    angle=st.floats(0, 180),
    seed=st.integers(0, 1000),
)
def test_any_cell_of_a_crystal_has_the_same_primitive_one(name, repeat, angle, seed):
    """Rotated, repeated, reordered and shifted: same volume, same group, and back again."""
    atoms, primitive, _, group, order, _ = CRYSTALS[name]
    rng = np.random.default_rng(seed)
    start = atoms * repeat
    start = start[rng.permutation(len(start))]
    start.rotate(angle, rng.normal(size=3), rotate_cell=True)
    start.positions += rng.normal(size=3)
    cells = Cells.of(start, 1e-3)
    assert len(cells.primitive.atoms) == primitive
    assert cells.label() == group
    assert len(cells.rotations) == order
    per_atom = cells.primitive.atoms.get_volume() / primitive
    assert per_atom == pytest.approx(start.get_volume() / len(start))
    back = cells.primitive.expand(cells.primitive.atoms)
    np.testing.assert_allclose(back.cell[:], start.cell[:], atol=1e-8)
    np.testing.assert_allclose(back.positions, start.positions, atol=1e-6)
    np.testing.assert_array_equal(back.numbers, start.numbers)
    # The point group maps the lattice onto itself.
    lattice = cells.primitive.atoms.cell[:]
    for rotation in cells.rotations:
        steps = lattice @ rotation.T @ np.linalg.inv(lattice)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)
    # The standard orientation of the conventional cell: a along x, b in the xy plane.
    standard = cells.conventional.atoms.cell[:] @ cells.conventional.rotation.T
    np.testing.assert_allclose([standard[0, 1], standard[0, 2], standard[1, 2]], 0, atol=1e-6)


def test_expanding_a_strained_primitive_cell_strains_the_input():
    start = bulk("Si", cubic=True)
    cells = Cells.of(start, 1e-3)
    strain = np.array([[1.01, 0.02, 0], [0.02, 1.0, 0], [0, 0, 0.98]])
    strained = cells.primitive.atoms.copy()
    strained.set_cell(strained.cell[:] @ strain, scale_atoms=True)
    expected = start.copy()
    expected.set_cell(start.cell[:] @ strain, scale_atoms=True)
    expanded = cells.primitive.expand(strained)
    np.testing.assert_allclose(expanded.cell[:], expected.cell[:], atol=1e-9)
    np.testing.assert_allclose(expanded.positions, expected.positions, atol=1e-9)


def test_symmetrizing_removes_noise_and_keeps_the_orientation():
    start = bulk("Si", cubic=True)
    start.rotate(25, (1, 2, 3), rotate_cell=True)
    noisy = start.copy()
    noisy.rattle(0.001, seed=1)
    assert Cells.of(noisy, 1e-6).label() == "P1 (1)"
    clean = symmetrized(noisy, 0.01)
    assert Cells.of(clean, 1e-6).label() == "Fd-3m (227)"
    np.testing.assert_allclose(clean.cell[:], start.cell[:], atol=1e-3)
    np.testing.assert_allclose(clean.positions, noisy.positions, atol=0.01)


def test_supercells():
    unit = Cells.of(bulk("Si"), 1e-3).primitive
    supercell = Supercell.of(unit, [[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    assert len(supercell.atoms) == 8
    np.testing.assert_allclose(supercell.atoms.cell[:], supercell.matrix @ unit.atoms.cell[:])
    for matrix in (np.eye(3) * 1.5, -np.eye(3), np.eye(2)):
        with pytest.raises(InputError):
            Supercell.of(unit, matrix)


def test_extensive_quantities_name_what_they_are_for():
    cells = Cells.of(bulk("MgO", "rocksalt", 4.2, cubic=True), 1e-3)
    keys = Extensive(-12.0, 2).keys("energy", "eV", cells)
    assert keys == {
        "energy_per_cell_eV": -48.0,
        "energy_per_atom_eV": -6.0,
        "energy_per_formula_unit_eV": -12.0,
    }
    assert [unit_of(key) for key in keys] == ["eV/cell", "eV/atom", "eV/formula unit"]


def slab():
    atoms = fcc111("Cu", (1, 1, 4), vacuum=8)
    atoms.pbc = True
    return atoms


def boxed():
    atoms = molecule("H2O", vacuum=5)
    atoms.pbc = True
    return atoms


def chain():
    return Atoms("C", cell=[1.3, 12, 12], pbc=True)


def not_a_number():
    atoms = bulk("Si")
    atoms.positions[0, 0] = np.nan
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(pbc=True, cell=[1, 1, 1]), "no atoms"),
        (molecule("H2O"), "this is a molecule"),
        (fcc111("Cu", (1, 1, 4), vacuum=8), "this is a slab"),
        (slab(), "a slab in vacuum"),
        (chain(), "chains in vacuum"),
        (boxed(), "separate atoms or molecules in vacuum"),
        (not_a_number(), "NaN"),
        (Atoms("Si", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True), "independent"),
    ],
)
def test_what_is_no_crystal_is_refused(atoms, message):
    with pytest.raises(InputError, match=message):
        check_crystal(atoms, "elastic constants")


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cs"),
        bulk("Xe", "fcc", 6.2),
        bulk("C", "hcp", a=2.46, c=6.7),
        bulk("CsCl", "cesiumchloride", a=4.2),
        bulk("Cu") * (3, 1, 1),
    ],
)
def test_weakly_bound_crystals_are_crystals(atoms):
    assert connected_dimension(atoms) == 3
