"""The neighbours of some atoms of a structure, and which of them other processes own.

A ghost is an atom that another rank owns and that has an image within the radius of the list of an
own atom. It is one row however many of its images are near; images are the shifts of edges, as with
one rank. Ghosts follow from the own atoms, not from a region: any atoms can belong to any rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpa3sim.graph.candidates import candidates
from dpa3sim.graph.skin import MIN_SKIN, SkinList, padded_rows

# A little more than rounding in fractional coordinates.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Halo:
    """What a rank knows of its neighbours until lists are renewed.

    Attributes:
        nodes: ``(n + g,)`` atoms of the structure: the own ones in their order, then the ghosts by
            owner, of each in their order.
        n_own: n.
        ghosts_of: ``(ranks,)`` how many ghosts each rank owns.
        neighbours: candidates of the own atoms, in the numbers of ``nodes``. They have the order
            that they have with one rank, which decides between equal distances.
    """

    nodes: np.ndarray
    n_own: int
    ghosts_of: np.ndarray
    neighbours: SkinList

    @property
    def ghosts(self) -> np.ndarray:
        """``(g,)`` atoms of the structure."""
        return self.nodes[self.n_own :]


def find_halo(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    owner: np.ndarray,
    rank: int,
    ranks: int,
    cutoff: float,
    skin: float,
) -> Halo:
    """Search the neighbours of the atoms that a rank owns.

    Args:
        positions: ``(n_atoms, 3)``, Å, wrapped or not; the same on all ranks, and the reference of
            the list. cell: ``(3, 3)``, completed, Å. pbc: ``(3,)`` bool.
        owner: ``(n_atoms,)`` rank that owns each atom.
        rank: whose atoms these are, of ``ranks``.
        cutoff, skin: Å; the sum is the radius of the list.

    Raises:
        InputError: there are more atoms in one place than in any material.
    """
    skin = max(skin, MIN_SKIN)
    own = np.flatnonzero(owner == rank)
    if not len(own):
        return without_neighbours(owner, rank, ranks, SkinList.empty(cell, pbc, cutoff, skin))
    i, j, shifts = _pairs(positions, cell, pbc, own, cutoff + skin)
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
    i, j, shifts = i[order], j[order], shifts[order]
    ghosts = np.unique(j[owner[j] != rank])
    ghosts = ghosts[np.argsort(owner[ghosts], kind="stable")]
    nodes = np.concatenate([own, ghosts])
    number = np.full(len(positions), -1)
    number[nodes] = np.arange(len(nodes))
    rows = padded_rows(i, number[j], shifts, len(own))
    neighbours = SkinList(positions[nodes], cell.copy(), pbc.copy(), cutoff, skin, *rows)
    return Halo(nodes, len(own), np.bincount(owner[ghosts], minlength=ranks), neighbours)


def without_neighbours(owner: np.ndarray, rank: int, ranks: int, neighbours: SkinList) -> Halo:
    """The halo of a rank that has no atoms, or could not search their neighbours."""
    own = np.flatnonzero(owner == rank)
    return Halo(own, len(own), np.zeros(ranks, dtype=np.int64), neighbours)


def _pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, own: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j, S) within the radius, i a number within ``own``, of which j may be any atom."""
    inverse = np.linalg.inv(cell)
    fractional = positions @ inverse
    wrapped = np.floor(fractional) * pbc
    fractional = fractional - wrapped
    atoms, images = _images_near(fractional, pbc, own, radius * np.linalg.norm(inverse, axis=0))
    points = positions[atoms] + (images - wrapped[atoms]) @ cell
    number = np.full(len(positions), -1)
    number[own] = np.arange(len(own))
    centre = np.where((images == 0).all(axis=1), number[atoms], -1)
    first, second, _ = candidates(points, np.zeros((3, 3)), np.zeros(3, dtype=bool), radius)
    kept = centre[first] >= 0
    first, second = first[kept], second[kept]
    i, j = atoms[first], atoms[second]
    shifts = images[second] - wrapped[j] + wrapped[i]
    return centre[first], j, shifts.astype(np.int64)


def _images_near(
    fractional: np.ndarray, pbc: np.ndarray, own: np.ndarray, pad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms with images in the box around the own atoms, padded by ``pad`` ``(3,)``.

    Returns:
        atoms ``(n_points,)`` and images ``(n_points, 3)`` int64, in lattice vectors.
    """
    low = fractional[own].min(axis=0) - pad - _ROUNDING - fractional
    high = fractional[own].max(axis=0) + pad + _ROUNDING - fractional
    start = np.where(pbc, np.ceil(low), 0).astype(np.int64)
    stop = np.where(pbc, np.floor(high), 0).astype(np.int64)
    counts = np.where(pbc, np.maximum(stop - start + 1, 0), (low <= 0) & (high >= 0))
    total = counts.prod(axis=1)
    atoms = np.repeat(np.arange(len(fractional)), total)
    left = np.arange(len(atoms)) - np.repeat(np.cumsum(total) - total, total)
    images = np.empty((len(atoms), 3), dtype=np.int64)
    for axis in range(3):
        left, images[:, axis] = np.divmod(left, counts[atoms, axis])
    return atoms, images + start[atoms]
