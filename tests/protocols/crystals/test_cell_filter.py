"""The filter of relaxing cells is ASE's, only faster."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.units import GPa
from scipy.linalg import expm, expm_frechet

from dpa3sim.protocols.crystals.cell_filter import CellFilter, exponential, exponential_derivative

IN_PLANE = np.outer([1, 1, 0], [1, 1, 0]).astype(float)
WAYS = [
    {},
    {"scalar_pressure": 5 * GPa},
    {"hydrostatic_strain": True},
    {"constant_volume": True},
    {"mask": IN_PLANE},
]


def copper(seed=0):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    return atoms


def move(first, second, ways, seed=1):
    """The same move by both filters; positions of the second before and after it, and the move."""
    rng = np.random.default_rng(seed)
    step = rng.normal(0, 0.05, (len(first), 3))
    step[-3:] *= 4
    if "mask" in ways:
        step[-3:] *= IN_PLANE
    before = second.get_positions()
    first.set_positions(first.get_positions() + step)
    second.set_positions(before + step)
    return before, second.get_positions(), step


@pytest.mark.parametrize("size", [0.0, 1e-9, 0.01, 0.3, 2.0])
def test_exponential_like_scipy(size):
    rng = np.random.default_rng(0)
    matrix, direction = size * rng.normal(size=(3, 3)), 50 * rng.normal(size=(3, 3))
    assert exponential(matrix) == pytest.approx(expm(matrix), rel=1e-13, abs=1e-14)
    theirs = expm_frechet(matrix, direction, compute_expm=False)
    assert exponential_derivative(matrix, direction) == pytest.approx(theirs, rel=1e-12, abs=1e-12)
    assert not exponential_derivative(matrix, 0 * direction).any()


def test_what_has_no_exponential_is_not_finite():
    for bad in (np.inf, np.nan, 1e300):
        with np.errstate(all="ignore"):
            assert not np.isfinite(exponential(bad * np.ones((3, 3)))).all()


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_like_ase(ways):
    theirs, ours = FrechetCellFilter(copper(), **ways), CellFilter(copper(), **ways)
    for seed in range(4):
        assert ours.get_forces() == pytest.approx(theirs.get_forces(), abs=1e-11)
        assert ours.stress == pytest.approx(theirs.stress, abs=1e-12)
        before, after, step = move(theirs, ours, ways, seed)
        assert after - before == pytest.approx(step, abs=1e-11)
        assert ours.atoms.cell[:] == pytest.approx(theirs.atoms.cell[:], abs=1e-12)
        assert ours.atoms.positions == pytest.approx(theirs.atoms.positions, abs=1e-12)
    assert np.abs(ours.atoms.cell[:] - ours.orig_cell).max() > 0.05


def test_forces_are_derivatives_of_the_energy():
    ours = CellFilter(copper())
    rng = np.random.default_rng(3)
    ours.set_positions(ours.get_positions() + rng.normal(0, 0.1, (len(ours), 3)))
    x, forces = ours.get_positions(), ours.get_forces()
    for row, column in [(0, 1), (2, 2), (-3, 0), (-2, 0), (-1, 1)]:
        energies = []
        for h in (-1e-4, 1e-4):
            moved = x.copy()
            moved[row, column] += h
            ours.set_positions(moved)
            energies.append(ours.get_potential_energy())
        slope = (energies[1] - energies[0]) / 2e-4
        assert forces[row, column] == pytest.approx(-slope, abs=1e-6)


def test_forces_are_new_where_others_move_the_atoms_or_the_cell():
    ours = CellFilter(copper())
    first = ours.get_forces()
    first[:] = 0  # a copy
    assert np.abs(ours.get_forces()).max() > 0.1
    for change in (
        lambda atoms: atoms.positions.__iadd__(np.eye(4, 3) * 0.1),
        lambda atoms: atoms.set_cell(atoms.cell[:] * [1.02, 1.0, 0.98], scale_atoms=True),
    ):
        before = ours.get_forces()
        change(ours.atoms)
        theirs = FrechetCellFilter(ours.atoms.copy())
        theirs.atoms.calc = EMT()
        theirs.orig_cell[:] = ours.orig_cell
        assert np.abs(ours.get_forces() - before).max() > 1e-3
        assert ours.get_forces() == pytest.approx(theirs.get_forces(), abs=1e-11)
        x = ours.get_positions()
        cell = ours.atoms.cell[:].copy()
        ours.set_positions(x)
        assert ours.atoms.cell[:] == pytest.approx(cell, abs=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of ASE, for a step that is not symmetric
def test_symmetry_stays():
    atoms = bulk("Cu", cubic=True) * (1, 1, 2)
    atoms.calc = EMT()
    atoms.set_constraint(FixSymmetry(atoms, verbose=False))
    ours = CellFilter(atoms)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        ours.set_positions(ours.get_positions() + rng.normal(0, 0.01, (len(ours), 3)))
        lengths = atoms.cell.lengths()
        assert lengths[0] == pytest.approx(lengths[1], abs=1e-9)
        x = ours.get_positions()
        assert np.abs(x[-3:-1, 2]).max() < 1e-9  # the logarithm is of the cell that there is
