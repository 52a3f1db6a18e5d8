"""Analytic second derivatives."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from tests_support import DATA

from dpa3sim import Potential
from dpa3sim.common.errors import InputError


def numerical(potential, atoms, h=1e-4):
    rows = []
    for index in range(3 * len(atoms)):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.flat[index] += sign * h
            forces.append(potential.evaluate([moved])[0].forces.ravel())
        rows.append((forces[1] - forces[0]) / (2 * h))
    return np.array(rows)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *((name, None) for name in ("models/dynamic", "variants/sequential", "variants/linear")),
        # Partly their own R: most pairs of the crystal.
        *((name, 1.5) for name in ("models/static_linear", "variants/sequential_static")),
    ],
)
def test_hessian_is_the_derivative_of_the_forces(name, width):
    potential = Potential(DATA / name / "model.pt", smooth_cutoff=width, truncate="none")
    crystal = bulk("O", "fcc", 3.4, cubic=True)
    crystal.symbols = "OHOH"
    crystal.rattle(0.1, seed=2)
    for atoms in (molecule("H2O"), crystal):
        hessian = potential.hessian(atoms)
        assert hessian.shape == (3 * len(atoms),) * 2
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
        np.testing.assert_allclose(hessian, numerical(potential, atoms), atol=2e-7)
        # Moving all atoms together costs nothing.
        rows = hessian.reshape(-1, len(atoms), 3).sum(axis=1)
        np.testing.assert_allclose(rows, 0, atol=1e-11)


def test_rows_of_some_atoms(smooth):
    atoms = molecule("H2O")
    whole = smooth.hessian(atoms)
    np.testing.assert_allclose(
        smooth.hessian(atoms, [2, 0]), whole[[6, 7, 8, 0, 1, 2]], rtol=0, atol=1e-14
    )
    assert smooth.hessian(Atoms("OH", [[0, 0, 0], [0, 0, 9]]), [1]).shape == (3, 6)


def test_the_hessian_is_float64_whatever_the_potential_is(embedded, embedded64):
    silicon = bulk("Si")
    silicon.rattle(0.02, seed=1)
    hessian = embedded.hessian(silicon)
    assert hessian.dtype == np.float64
    np.testing.assert_array_equal(hessian, embedded64.hessian(silicon))
    np.testing.assert_allclose(hessian, numerical(embedded64, silicon), atol=1e-4)


def test_isolated_atoms_have_no_second_derivative(smooth):
    np.testing.assert_array_equal(smooth.hessian(Atoms("OH", [[0, 0, 0], [0, 0, 9]])), 0)
    with pytest.raises(InputError, match="unknown element"):
        smooth.hessian(Atoms("Xe"))
