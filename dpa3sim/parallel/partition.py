"""Which process computes which atom. This decides the cost and never the result."""

from __future__ import annotations

import numpy as np

# Work of an edge, in angles: as in blocks of centres.
EDGE_COST = 6
# Atoms are divided anew where the busiest process has this many times the mean work.
MOST_IMBALANCE = 1.05


def work_of(n_edges: np.ndarray, n_angle_edges: np.ndarray) -> np.ndarray:
    """Work of every atom ``(n_atoms,)``, in angles, from its numbers of edges and angle-edges."""
    return n_angle_edges.astype(np.int64) ** 2 + EDGE_COST * n_edges.astype(np.int64) + 1


def owners(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, work: np.ndarray, ranks: int
) -> np.ndarray:
    """Divide atoms into compact parts of equal work, by recursive bisection.

    The atoms of some ranks are divided between two halves of these along their longest extent, in
    the order of fractional coordinates, equal ones by number. Work is whole, so that its sums are
    exact.

    Args:
        positions: ``(n_atoms, 3)``, Å, wrapped or not. cell: ``(3, 3)``, completed, Å.
        pbc: ``(3,)`` bool.
        work: ``(n_atoms,)`` int64, of each atom.
        ranks: how many parts; some are empty if there are more of them than atoms.

    Returns:
        ``(n_atoms,)`` int64, from 0 to ``ranks - 1``.
    """
    fractional, heights = fractional_coordinates(positions, cell, pbc)
    owner = np.zeros(len(positions), dtype=np.int64)
    parts = [(np.arange(len(positions)), 0, ranks)]
    while parts:
        atoms, first, count = parts.pop()
        if count == 1 or not len(atoms):
            owner[atoms] = first
            continue
        own = fractional[atoms]
        axis = int(np.argmax(np.ptp(own, axis=0) * heights))
        atoms = atoms[np.lexsort((atoms, own[:, axis]))]
        half = count // 2
        before = np.concatenate([[0], np.cumsum(work[atoms])])
        # The cut whose share of the work is nearest to that of the ranks.
        cut = int(np.argmin(np.abs(before * count - before[-1] * half)))
        parts += [(atoms[:cut], first, half), (atoms[cut:], first + half, count - half)]
    return owner


def fractional_coordinates(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wrapped coordinates ``(n_atoms, 3)``, and distances of opposite faces ``(3,)``, Å.

    Coordinates are from 0 to below 1 along periodic axes. There ``cell`` must be completed.
    """
    inverse = np.linalg.inv(cell)
    fractional = positions @ inverse
    fractional = fractional - np.floor(fractional) * pbc
    return fractional, 1.0 / np.linalg.norm(inverse, axis=0)
