"""Which atom is which, whatever the place, orientation and order of the second structure."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from scipy.spatial.transform import Rotation

from dpa3sim.common.errors import InputError
from dpa3sim.protocols import neb
from dpa3sim.protocols.crystals.superposition import brought_near, displacements, matched, superpose

NAMES = ["CH3OH", "H2O", "C6H6", "CH4", "HCN", "C2H6", "CH3CH2OH", "CO2", "NH3", "C4H4O", "N2"]


def elsewhere(atoms, seed, shuffle=True):
    """A rotated, shifted copy in another order."""
    rng = np.random.default_rng(seed)
    other = atoms.copy()
    turn = Rotation.random(random_state=seed).as_matrix()
    other.positions = other.positions @ turn.T + rng.normal(size=3) * 5
    return other[rng.permutation(len(other))] if shuffle else other


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_copies_are_found(name, seed):
    """In the order of the first structure, on top of it."""
    initial = molecule(name)
    for shuffle in (False, True):
        final = elsewhere(initial, seed, shuffle)
        found, _ = matched(initial, final)
        assert (found.numbers == initial.numbers).all()
        # Equal atoms that could have moved so far may keep their order, and then do move.
        far = displacements(initial, found).max()
        assert far < 1e-6 or (shuffle and 0.1 < far < 1.2)


@pytest.mark.parametrize("name", ["CH3OH", "CH3CH2OH", "C2H6", "C6H6"])
def test_a_copy_with_another_order_of_elements_is_no_reaction(name):
    initial = molecule(name)
    final = elsewhere(initial, 3)[::-1]
    assert (final.numbers != initial.numbers).any()
    settings = neb.Settings(relax=False)
    with pytest.raises(InputError, match="same minimum"):
        neb.check(initial, final, settings)
    near = brought_near(initial, matched(initial, final)[0])
    with pytest.raises(InputError, match="same minimum"):
        neb.check_apart(initial, near, settings)


def chiral():
    """CHFClBr, left and right."""
    places = [
        [0, 0, 0],
        [0.63, 0.63, 0.63],
        [-0.8, -0.8, 0.8],
        [-1.0, 1.0, -1.0],
        [1.1, -1.1, -1.1],
    ]
    left = Atoms("CHFClBr", places)
    right = left.copy()
    right.positions[:, 0] *= -1
    return left, right


def test_mirror_images_stay_different():
    left, right = chiral()
    found, changed = matched(left, elsewhere(right, 1, shuffle=False))
    assert changed == 0
    assert displacements(left, found).max() > 0.3
    assert displacements(left, elsewhere(left, 2, shuffle=False)).max() < 1e-6
    # A planar molecule is its own mirror image.
    water = molecule("H2O")
    mirrored = water.copy()
    mirrored.positions[:, 1] *= -1
    assert displacements(water, matched(water, mirrored)[0]).max() < 1e-6


def test_superposition_is_a_rigid_motion():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 8):
        fixed, moving = rng.normal(size=(2, n, 3))
        found = superpose(fixed, moving)
        before = np.linalg.norm(moving[:, None] - moving[None], axis=-1)
        after = np.linalg.norm(found[:, None] - found[None], axis=-1)
        np.testing.assert_allclose(after, before, atol=1e-12)
        if n > 3:  # no reflection
            volume = [np.linalg.det(p[1:4] - p[0]) for p in (moving, found)]
            assert np.sign(volume[0]) == np.sign(volume[1])


def test_an_exchange_in_place_is_a_path():
    initial = molecule("C2H6")
    final = initial.copy()
    final.positions[[2, 3]] = initial.positions[[3, 2]]
    found, changed = matched(initial, final)
    assert changed == 0
    np.testing.assert_array_equal(found.positions, final.positions)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("shift", [(0.3, 0.1, 0.2), (2.5, -1.7, 0.9)])
def test_a_shifted_crystal_is_the_same_crystal(shift, shuffle):
    initial = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    initial.rattle(0.1, seed=2)
    final = initial.copy()
    final.positions += shift
    final.wrap()
    if shuffle:
        final = final[np.random.default_rng(0).permutation(8)]
    found, _ = matched(initial, final)
    assert displacements(initial, found).max() < 1e-6


def test_a_jump_is_not_taken_for_a_shift():
    """The vacancy after the jump is the one before, shifted; the atoms are not."""
    perfect = bulk("Al", cubic=True) * 2
    initial, final = perfect.copy(), perfect.copy()
    final.positions[1] = perfect.positions[0]
    del initial[0], final[0]
    for shift in ([0, 0, 0], [0.7, 0.2, -0.4]):
        moved = final.copy()
        moved.positions += shift
        found, _ = matched(initial, moved)
        away = np.sort(displacements(initial, found))
        assert away[-1] == pytest.approx(4.05 / np.sqrt(2), abs=0.01)
        assert away[-2] < 1e-6


def test_fixed_atoms_hold_the_frame():
    slab = fcc111("Cu", (2, 2, 2), a=3.6)
    slab.set_constraint(FixAtoms([0, 1, 2, 3]))
    final = slab.copy()
    final.positions += [0.0, 0.0, 0.5]
    assert displacements(slab, final).max() == pytest.approx(0.5)
    fixed = molecule("CH3OH")
    fixed.set_constraint(FixAtoms([0]))
    turned = fixed.copy()
    turned.rotate(90, "z")
    assert displacements(fixed, turned).max() > 0.5
