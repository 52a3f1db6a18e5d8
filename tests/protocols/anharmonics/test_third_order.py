"""Third-order force constants: derivatives of forces, the same from both kinds of displacements."""

import numpy as np
import pytest
from ase.build import bulk
from tests_support import EMTPotential

from dpa3sim.protocols.harmonics.force_constants import as_atoms

pytest.importorskip("phono3py")
from dpa3sim.protocols.anharmonics import third_order
from dpa3sim.protocols.anharmonics.third_order import Random, Systematic

MATRIX = np.diag([2, 2, 1])
ALLOY = bulk("Cu", "hcp", a=2.7, c=4.4)
ALLOY.symbols = ["Cu", "Au"]


def new():
    return third_order.new_phono3py(ALLOY, MATRIX, MATRIX)


def forces(ph3, structures):
    rest, *answers = EMTPotential().evaluate([ALLOY, *structures])
    return third_order.forces_of(answers, rest, ph3)


@pytest.fixture(scope="module")
def systematic():
    ph3 = new()
    scheme = Systematic(ph3, 0.03, None)
    return ph3, scheme.solve(forces(ph3, scheme.structures(scheme.count)))


def test_they_are_second_derivatives_of_forces(systematic):
    """Along random moves of all atoms, without the solver of either."""
    ph3, _ = systematic
    rest = as_atoms(ph3.supercell)
    moves = np.random.default_rng(3).normal(size=(len(rest), 3))
    step, moved = 0.005, []
    for sign in (1, -1):
        atoms = rest.copy()
        atoms.positions += sign * step * moves
        moved.append(atoms)
    up, down = forces(ph3, moved)
    expected = -(up + down)[ph3.primitive.p2s_map] / step**2
    found = np.einsum("ijkabc,jb,kc->ia", ph3.fc3, moves, moves)
    assert found == pytest.approx(expected, abs=0.02 * np.abs(expected).max())


def test_residuals(systematic):
    ph3, residuals = systematic
    assert residuals.largest == np.abs(ph3.fc3).max() > 1
    assert residuals.asr[1] < 0.01 * residuals.largest
    assert residuals.fit is None
    # Afterwards it holds, which it did not before.
    assert residuals.asr[1] > 1e-4
    assert np.abs(ph3.fc3.sum(axis=2)).max() < 1e-6


def test_random_displacements_give_the_same(systematic):
    ph3 = new()
    # Short ones, since fourth order is in the forces of both, but not in the same way.
    scheme = Random(ph3, 0.003, None, seed=0)
    assert 0 < scheme.minimum < 8
    assert scheme.fits
    for count in (scheme.minimum, 6 * scheme.minimum):  # which add up
        residuals = scheme.solve(forces(ph3, scheme.structures(count)))
        assert scheme.count == count
    assert residuals.fit < 0.01
    assert residuals.asr is None
    expected = systematic[0].fc3
    assert np.abs(ph3.fc3 - expected).max() < 0.02 * np.abs(expected).max()


def test_seeds():
    first, again, other = (Random(new(), 0.03, None, seed).structures(1)[0] for seed in (0, 0, 1))
    assert np.array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, other.positions)
    moves = first.positions - new().supercell.positions
    assert np.linalg.norm(moves, axis=1) == pytest.approx(0.03)


@pytest.mark.parametrize("kind", [Systematic, Random])
def test_a_harmonic_crystal_has_none(kind):
    """Forces that are linear in the displacements, as far as numbers are."""
    ph3 = new()
    n = len(ph3.supercell)
    springs = np.einsum("ij,ab->ijab", np.eye(n) - (1 - np.eye(n)) / (n - 1), np.eye(3))
    scheme = kind(ph3, 0.03, None, *([] if kind is Systematic else [0]))
    structures = scheme.structures(scheme.count or 4 * scheme.minimum)
    moves = [atoms.positions - ph3.supercell.positions for atoms in structures]
    residuals = scheme.solve(-np.einsum("ijab,njb->nia", springs, moves))
    # Second derivatives of 1 eV/Å^2 over displacements of 0.03 Å.
    assert residuals.largest < 1e-9 / 0.03


def test_a_cutoff_saves_supercells_and_zeroes_what_is_beyond():
    ph3 = new()
    scheme = Systematic(ph3, 0.03, 3.0)
    assert scheme.count < Systematic(new(), 0.03, None).count
    scheme.solve(forces(ph3, scheme.structures(scheme.count)))
    vectors = as_atoms(ph3.supercell).get_distances(0, range(len(ph3.supercell)), mic=True)
    far = np.flatnonzero(vectors > 3.0)
    near = np.flatnonzero((vectors < 3.0) & (vectors > 0))
    assert len(far)
    assert len(near)
    assert np.abs(ph3.fc3[0][near]).max() > 1
    ph3 = new()
    scheme = Random(ph3, 0.03, 3.0, 0)
    scheme.solve(forces(ph3, scheme.structures(4 * scheme.minimum)))
    assert np.abs(ph3.fc3[0][far]).max() == 0
    assert np.abs(ph3.fc3[0][near]).max() > 1


def test_equal_supercells_are_evaluated_once():
    """Pairs of displacements may be the same in another order, or cancel."""
    ph3 = new()
    scheme = Systematic(ph3, 0.03, None)
    structures = scheme.structures(scheme.count)
    positions = {np.round(s.positions, 6).tobytes() for s in structures}
    assert len(positions) == len(structures) == scheme.count
    everything = {
        np.round(as_atoms(c).positions, 6).tobytes() for c in ph3.supercells_with_displacements
    }
    everything.discard(np.round(as_atoms(ph3.supercell).positions, 6).tobytes())
    assert everything == positions
