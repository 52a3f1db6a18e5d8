"""Superposition of two structures of the same atoms: it assigns atoms and removes rigid motions.

A molecule may be rotated, shifted and listed in another order, and a crystal may be shifted; none
of that is a reaction. Superpositions are proper rotations (Kabsch, Acta Cryst. A 32, 922 (1976)),
so that mirror images stay different; atoms of an element are assigned by the smallest sum of
squared distances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

# Two structures are the same if all atoms are closer than this to their counterparts, Å.
SAME_PLACE = 0.1
# Equal atoms that exchange places over less than this (Å) react, like the hydrogen atoms in the
# inversion of ammonia; over longer distances, they are only listed in another order.
EXCHANGE = 1.2
# An order is kept unless another reduces the sum of squared distances by this factor.
SHORTER = 0.99
# Largest number of rounds in which assignment and rotation are improved in turn.
ROUNDS = 50
# Molecules up to this size are started from rotations all over the sphere.
SMALL = 60
# Number of translations of a crystal that are tried.
MAX_SHIFTS = 64


def matched(initial: Atoms, final: Atoms) -> tuple[Atoms, int]:
    """``final`` with its atoms in the order that moves them least, and how many changed place.

    Rigid motions do not count: molecules are superposed first, and crystals without constraints are
    shifted by the displacement of most atoms. The order is kept unless another one is shorter. It
    is also kept if the structures differ only by an exchange of equal atoms and these are in the
    places of the first structure as given, or move by less than a bond. If they would move further,
    the copy is the same structure in another order.
    """
    if len(initial) == 0:
        return final, 0
    in_place = _assigned(initial, final, final.positions)
    same_elements = bool((initial.numbers == final.numbers).all())
    if same_elements and _is_exchange(initial, final, in_place):
        return final, 0
    order = in_place
    if is_free_molecule(initial):
        order = _superposed_order(initial, final)
    elif not initial.constraints:
        order = _shifted_order(initial, final, in_place)
    changed = int(np.count_nonzero(order != np.arange(len(order))))
    if same_elements and changed:
        kept, other = displacements(initial, final), displacements(initial, final[order])
        if other.max() < SAME_PLACE:
            if kept.max() < EXCHANGE:
                return final, 0
        elif (other**2).sum() > SHORTER * (kept**2).sum():
            return final, 0
    return final[order], changed


def displacements(initial: Atoms, final: Atoms) -> np.ndarray:
    """How far each atom moves, ``(n,)`` Å, apart from rigid motions; the order is the same."""
    near = brought_near(initial, final)
    return np.linalg.norm(near.positions - initial.positions, axis=1)


def brought_near(initial: Atoms, final: Atoms) -> Atoms:
    """``final`` in the cell of ``initial``, superposed by rigid motions.

    A molecule is rotated and shifted. Otherwise every atom is taken in the periodic image nearest
    to its start, and a structure without constraints is shifted as a whole.
    """
    near = final.copy()
    if is_free_molecule(initial):
        near.positions = superpose(initial.positions, final.positions)
        return near
    near.set_cell(initial.cell)
    vectors = _nearest(initial, final.positions - initial.positions)
    if not initial.constraints:
        # Relative to one atom, since the nearest images of a large shift may differ.
        first = vectors[np.argmin(np.linalg.norm(vectors, axis=1))]
        uniform = _nearest(initial, vectors - first)
        vectors = _nearest(initial, uniform - np.median(uniform, axis=0))
    near.positions = initial.positions + vectors
    return near


def _nearest(atoms: Atoms, vectors: np.ndarray) -> np.ndarray:
    """The shortest periodic images of ``vectors`` ``(n, 3)``, Å."""
    from ase.geometry import find_mic

    return np.asarray(find_mic(vectors, atoms.cell, atoms.pbc)[0])


def _moves(initial: Atoms, positions: np.ndarray) -> np.ndarray:
    """Distances ``(n,)`` of atoms at ``positions`` from their places in ``initial``, Å."""
    from ase.geometry import find_mic

    return np.asarray(find_mic(positions - initial.positions, initial.cell, initial.pbc)[1])


def is_free_molecule(atoms: Atoms) -> bool:
    """Whether the energy is invariant under rotations and translations."""
    return not atoms.pbc.any() and not atoms.constraints


def superpose(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """``moving`` ``(n, 3)`` rotated and shifted onto ``fixed``, by least squares."""
    center, other = fixed.mean(axis=0), moving.mean(axis=0)
    return (moving - other) @ _rotation(fixed - center, moving - other) + center


def _rotation(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The proper rotation R with ``moving @ R`` closest to ``fixed``, both about their centers."""
    u, _, vt = np.linalg.svd(moving.T @ fixed)
    # The sign is put on the direction of least extent, which planar molecules do not have.
    u[:, -1] *= np.sign(np.linalg.det(u @ vt)) or 1.0
    return np.asarray(u @ vt)


def _assigned(initial: Atoms, final: Atoms, positions: np.ndarray) -> np.ndarray:
    """The atom of ``final``, at ``positions``, assigned to each of ``initial``, ``(n,)``."""
    from ase.geometry import get_distances
    from scipy.optimize import linear_sum_assignment

    order = np.arange(len(initial))
    _, distances = get_distances(initial.positions, positions, cell=initial.cell, pbc=initial.pbc)
    for number in np.unique(initial.numbers):
        here = np.flatnonzero(initial.numbers == number)
        there = np.flatnonzero(final.numbers == number)
        rows, columns = linear_sum_assignment(distances[np.ix_(here, there)] ** 2)
        order[here[rows]] = there[columns]
    return order


def _is_exchange(initial: Atoms, final: Atoms, order: np.ndarray) -> bool:
    """Whether all atoms, as given, are in places of the first structure, but not in their own."""
    exchanged = _moves(initial, final.positions[order]).max() < SAME_PLACE
    return bool(exchanged and _moves(initial, final.positions).max() > SAME_PLACE)


def _superposed_order(initial: Atoms, final: Atoms) -> np.ndarray:
    """The order of a molecule, with the rotation that makes its distances shortest."""
    fixed = initial.positions - initial.positions.mean(axis=0)
    moving = final.positions - final.positions.mean(axis=0)
    still = initial.copy()
    still.positions = fixed
    best, least = np.arange(len(initial)), np.inf
    if (initial.numbers == final.numbers).all():
        least = float(((fixed - superpose(fixed, moving)) ** 2).sum())
    for start in _starts(fixed, moving):
        order, total = _improved(still, final, moving, start)
        if total < SHORTER * least:
            best, least = order, total
        if least < 1e-8 * len(initial):
            break
    return best


def _improved(
    still: Atoms, final: Atoms, moving: np.ndarray, rotation: np.ndarray
) -> tuple[np.ndarray, float]:
    """Assign and rotate until nothing changes; the order and its sum of squared distances."""
    fixed, order = still.positions, None
    turned = moving @ rotation
    for _ in range(ROUNDS):
        found = _assigned(still, final, turned)
        if order is not None and (found == order).all():
            break
        order = found
        turned = moving @ _rotation(fixed, moving[order])
    assert order is not None
    return order, float(((fixed - turned[order]) ** 2).sum())


def _starts(fixed: np.ndarray, moving: np.ndarray) -> list[np.ndarray]:
    """Initial rotations: none, those between principal axes, and a uniform grid."""
    from scipy.spatial.transform import Rotation

    axes = [np.linalg.svd(points, full_matrices=True)[2].T for points in (moving, fixed)]
    starts = [np.eye(3)]
    for signs in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        flip = np.diag([*signs, 1.0])
        turn = axes[0] @ flip @ axes[1].T
        flip[2, 2] = np.sign(np.linalg.det(turn))
        starts.append(axes[0] @ flip @ axes[1].T)
    if len(fixed) <= SMALL:
        # The axes of a symmetric or linear molecule are not unique.
        starts += list(Rotation.create_group("I").as_matrix())
        starts += [starts[1] @ turn for turn in Rotation.create_group("O").as_matrix()]
    return starts


def _shifted_order(initial: Atoms, final: Atoms, in_place: np.ndarray) -> np.ndarray:
    """The order of atoms in a crystal that may have been shifted as a whole."""
    if (initial.numbers == final.numbers).all():
        near = brought_near(initial, final)
        if np.median(np.linalg.norm(near.positions - initial.positions, axis=1)) < SAME_PLACE:
            return _assigned(initial, final, near.positions)  # most atoms are in the right order
    least = _moves(initial, final.positions[in_place])
    if np.median(least) < SAME_PLACE:  # most atoms are in place, and only a few have moved
        return in_place
    numbers, counts = np.unique(initial.numbers, return_counts=True)
    rare = numbers[np.argmin(counts)]
    first = final.positions[np.flatnonzero(final.numbers == rare)[0]]
    best, total = in_place, float((least**2).sum())
    for target in initial.positions[initial.numbers == rare][:MAX_SHIFTS]:
        shifted = final.positions + (target - first)
        order = _assigned(initial, final, shifted)
        found = float((_moves(initial, shifted[order]) ** 2).sum())
        if found < 0.5 * total:
            best, total = order, found
    return best
