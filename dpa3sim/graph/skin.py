"""Candidate lists with a skin: searched rarely, and valid exactly while no pair can be missing.

A list made at positions x0 in cell H0 with radius rc + s is valid for positions x in cell H while

    u(1) + u(2) <= sigma_min(F) (rc + s) - rc,    F = H0^-1 H,    u_i = |x_i - x0_i F|

where u(1) and u(2) are the two largest displacements left after removing the homogeneous strain
and sigma_min the smallest singular value. This is exact, does not depend on the size of the cell,
and allows displaced or strained copies of a structure to share one list. The derivation is in
docs/methods.md#neighbour-lists-with-a-skin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpa3sim.graph.candidates import candidates
from dpa3sim.structures.geometry import complete_cell

# Rounding error of the test itself, Å, and the smallest skin with which a list is valid for its own
# reference, Å.
SLACK, MIN_SKIN = 1e-7, 1e-6
# Only the atoms that moved far are searched again; if more of them moved, all atoms are.
MAX_MOVED_FRACTION = 0.1


@dataclass(frozen=True)
class Deformation:
    """The difference of a structure from the reference of a candidate list.

    Attributes:
        cell: ``(3, 3)`` completed cell H.
        gradient: ``(3, 3)`` F.
        budget: largest sum of the two largest displacements, Å.
        displacements: ``(n_atoms,)`` u, Å, unwrapped.
    """

    cell: np.ndarray
    gradient: np.ndarray
    budget: float
    displacements: np.ndarray

    @property
    def valid(self) -> bool:
        """Whether the list still contains every pair within the cutoff."""
        return _two_largest(self.displacements) <= self.budget


@dataclass(frozen=True)
class SkinList:
    """All pairs within ``cutoff + skin`` of one structure, as padded rows.

    There may be more atoms than centres: the others, after them, are neighbours only.

    Attributes:
        positions: ``(n_nodes, 3)`` reference positions x0, Å; cell: ``(3, 3)`` completed H0.
        pbc: ``(3,)`` bool.
        cutoff, skin: Å.
        neighbour: ``(n_atoms, width)`` int64; the row's own index in empty slots.
        shifts: ``(n_atoms, width, 3)`` float64 lattice shifts, relative to x0.
        count: ``(n_atoms,)`` number of candidates of each centre, which are sorted by (j, S).
    """

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    cutoff: float
    skin: float
    neighbour: np.ndarray
    shifts: np.ndarray
    count: np.ndarray

    @classmethod
    def search(
        cls, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, skin: float
    ) -> SkinList:
        """Search all pairs."""
        skin = max(skin, MIN_SKIN)
        i, j, shifts = candidates(positions, cell, pbc, cutoff + skin)
        return cls._from_pairs(positions, complete_cell(cell, pbc), pbc, cutoff, skin, i, j, shifts)

    @classmethod
    def empty(cls, cell: np.ndarray, pbc: np.ndarray, cutoff: float, skin: float) -> SkinList:
        """The list of no atoms, of a completed cell."""
        nothing = np.zeros(0, dtype=np.int64)
        rows = padded_rows(nothing, nothing, np.zeros((0, 3)), 0)
        return cls(np.zeros((0, 3)), cell.copy(), pbc.copy(), cutoff, skin, *rows)

    @classmethod
    def _from_pairs(
        cls,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        cutoff: float,
        skin: float,
        i: np.ndarray,
        j: np.ndarray,
        shifts: np.ndarray,
    ) -> SkinList:
        order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
        rows = padded_rows(i[order], j[order], shifts[order], len(positions))
        return cls(positions.copy(), cell.copy(), pbc.copy(), cutoff, skin, *rows)

    def deformation(self, positions: np.ndarray, cell: np.ndarray) -> Deformation:
        """Compare a structure, wrapped or not, with the reference."""
        full = complete_cell(cell, self.pbc)
        gradient, budget = self.strain(full)
        left = positions - self.positions @ gradient
        left = left - self._images(left, full) @ full
        return Deformation(full, gradient, budget, np.linalg.norm(left, axis=1))

    def strain(self, cell: np.ndarray) -> tuple[np.ndarray, float]:
        """F ``(3, 3)`` and the budget for displacements, Å, for a completed cell."""
        if (cell == self.cell).all():
            return np.eye(3), self.skin - SLACK
        gradient = np.linalg.solve(self.cell, cell)
        smallest = np.linalg.svd(gradient, compute_uv=False)[-1]
        return gradient, float(smallest * (self.cutoff + self.skin) - self.cutoff - SLACK)

    def _images(self, displacement: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Lattice vectors by which atoms were wrapped since the search, ``(n_atoms, 3)``."""
        if not self.pbc.any():
            return np.zeros_like(displacement)
        images: np.ndarray = np.rint(displacement @ np.linalg.inv(cell)) * self.pbc
        return images

    def with_moved_atoms(self, positions: np.ndarray, state: Deformation) -> SkinList | None:
        """The same list after searching the rows of a few far-moved atoms again.

        This is for hops, insertions and Monte Carlo moves. The other atoms keep their reference.
        The pairs of the moved atoms are found in the reference cell from distances to all atoms.

        Returns:
            None if a new search is better, because too many atoms moved or the strain is large.
        """
        order = np.argsort(-state.displacements, kind="stable")
        limit = max(1, int(MAX_MOVED_FRACTION * len(order)))
        moved = None
        for n_moved in range(1, min(limit, len(order)) + 1):
            # Keep half of the budget; otherwise the next step would need another update.
            if _two_largest(state.displacements[order[n_moved:]]) <= 0.5 * state.budget:
                moved = order[:n_moved]
                break
        if moved is None or state.budget <= 0:
            return None
        reference = self.positions.copy()
        reference[moved] = positions[moved] @ np.linalg.inv(state.gradient)
        centre, neighbour, shifts = self._pairs_of(moved, reference)
        is_moved = np.zeros(len(reference), dtype=bool)
        is_moved[moved] = True
        i, column = np.nonzero(np.arange(self.neighbour.shape[1]) < self.count[:, None])
        j, old_shifts = self.neighbour[i, column], self.shifts[i, column]
        kept = ~(is_moved[i] | is_moved[j])
        # Add each pair of a moved atom from its other end; pairs of two moved atoms have both.
        back = ~is_moved[neighbour]
        return self._from_pairs(
            reference,
            self.cell,
            self.pbc,
            self.cutoff,
            self.skin,
            np.concatenate([i[kept], centre, neighbour[back]]),
            np.concatenate([j[kept], neighbour, centre[back]]),
            np.concatenate([old_shifts[kept], shifts, -shifts[back]]),
        )

    def _pairs_of(
        self, moved: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs of the atoms ``moved`` within the radius of the list, over all near images."""
        radius = (self.cutoff + self.skin) * (1 + 1e-9)
        inverse = np.linalg.inv(self.cell)
        # An atom within the radius is at most this many cells away from its nearest image along
        # each axis; an atom may have moved through any number of cells.
        reach = np.ceil(radius * np.linalg.norm(inverse, axis=0) + 0.5) * self.pbc
        images = np.stack(
            np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1
        ).reshape(-1, 3)
        fractional = positions @ inverse
        centres, neighbours, shifts = [], [], []
        for atom in moved:
            nearest = -np.rint(fractional - fractional[atom]) * self.pbc
            vectors = positions + nearest @ self.cell - positions[atom]
            vectors = vectors[None] + (images @ self.cell)[:, None]
            found = np.einsum("ijk,ijk->ij", vectors, vectors) <= radius**2
            found[(images == 0).all(axis=1), atom] = False
            image, j = np.nonzero(found)
            centres.append(np.full(len(j), atom))
            neighbours.append(j)
            shifts.append(images[image] + nearest[j])
        return np.concatenate(centres), np.concatenate(neighbours), np.concatenate(shifts)


def padded_rows(
    i: np.ndarray, j: np.ndarray, shifts: np.ndarray, n_atoms: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that are sorted by centre as ``neighbour``, ``shifts`` and ``count`` of a list."""
    count = np.bincount(i, minlength=n_atoms)
    column = np.arange(len(i)) - (np.cumsum(count) - count)[i]
    width = int(count.max(initial=0))
    neighbour = np.repeat(np.arange(n_atoms)[:, None], width, axis=1)
    neighbour[i, column] = j
    padded = np.zeros((n_atoms, width, 3))
    padded[i, column] = shifts
    return neighbour, padded, count


def _two_largest(displacements: np.ndarray) -> float:
    if len(displacements) <= 2:
        return float(displacements.sum())
    return float(np.partition(displacements, -2)[-2:].sum())
