"""Edges: the neighbours that the model sees, sorted by centre and distance.

The rules are those of docs/model.md#neighbours-edges-and-angles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.graph.candidates import candidates
from dpa3sim.structures.geometry import check_geometry

Truncation = Literal["deepmd", "none"]
MIN_DISTANCE = 0.1


@dataclass(frozen=True)
class EdgeRules:
    """The rules of a model that decide which pairs are edges.

    Attributes:
        e_rcut: edges have ``r <= e_rcut``, Å.
        a_rcut: angle-edges have ``r < a_rcut``, Å.
        e_sel: the nearest ``e_sel`` neighbours of a centre become edges.
        a_sel: of those, the nearest ``a_sel`` may become angle-edges.
        excluded_pairs: ordered type pairs that have no edge but keep their rank.
        truncate: ``"deepmd"`` applies the two limits, ``"none"`` ignores them.
    """

    e_rcut: float
    a_rcut: float
    e_sel: int
    a_sel: int
    excluded_pairs: frozenset[tuple[int, int]] = frozenset()
    truncate: Truncation = "deepmd"


@dataclass(frozen=True)
class Edges:
    """The edges of one structure, sorted by (i, r, j, S).

    Attributes:
        i, j: ``(n_edges,)`` centre and neighbour.
        shifts: ``(n_edges, 3)`` lattice shift S of the neighbour.
        n_angle_edges: ``(n_atoms,)`` m_i: the first m_i edges of centre i are its angle-edges.
        n_cut_edges: number of neighbours within ``e_rcut`` that ``e_sel`` removes, for all centres.
        n_cut_angle_edges: number of neighbours within ``a_rcut`` that ``a_sel`` removes.
    """

    i: np.ndarray
    j: np.ndarray
    shifts: np.ndarray
    n_angle_edges: np.ndarray
    n_cut_edges: int
    n_cut_angle_edges: int

    def vectors(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Edge vectors ``d_ij = x_j + S cell - x_i``, ``(n_edges, 3)`` float64, Å."""
        return edge_vectors(positions, cell, self.i, self.j, self.shifts)


def edge_vectors(
    positions: np.ndarray, cell: np.ndarray, i: np.ndarray, j: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
    """``(x_j + S cell) - x_i``, ``(n, 3)``, Å."""
    # The image first, because deepmd-kit ranks distances that it computes in this order. Element by
    # element, so that the resident graph ranks equal distances in the same way to the last bit.
    offset = shifts[:, :1] * cell[0] + shifts[:, 1:2] * cell[1] + shifts[:, 2:] * cell[2]
    return (positions[j] + offset) - positions[i]


def _lengths(vectors: np.ndarray) -> np.ndarray:
    x, y, z = vectors.T
    r: np.ndarray = np.sqrt(x * x + y * y + z * z)
    return r


def find_edges(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, types: np.ndarray, rules: EdgeRules
) -> Edges:
    """Find the edges of one structure.

    Equal distances are ranked by neighbour index, then by shift. Distances that differ only by a
    rounding error count as different, as in deepmd-kit
    (docs/model.md#ties-at-the-selection-limit). Excluded pairs are dropped after ranking, so
    they count towards the limits.

    Args:
        positions: ``(n_atoms, 3)``, Å, wrapped or not.
        cell: ``(3, 3)``, lattice vectors as rows, Å; ignored along non-periodic axes.
        pbc: ``(3,)`` bool; the axes are independent.
        types: ``(n_atoms,)`` int, used for exclusions only.
        rules: the model's cutoffs and limits.

    Raises:
        InputError: there are no atoms, non-finite numbers, a singular cell, or atoms closer than
            0.1 Å.
    """
    check_geometry(positions, cell, pbc)
    i, j, shifts = candidates(positions, cell, pbc, rules.e_rcut)
    r = _lengths(edge_vectors(positions, cell, i, j, shifts))
    _check_overlap(i, j, shifts, r)
    keep = r <= rules.e_rcut
    i, j, shifts, r = i[keep], j[keep], shifts[keep], r[keep]
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, r, i))
    i, j, shifts, r = i[order], j[order], shifts[order], r[order]

    counts = np.bincount(i, minlength=len(positions))
    starts = np.cumsum(counts) - counts
    slot = np.arange(len(i)) - starts[i]
    limited = rules.truncate == "deepmd"
    in_e_sel = slot < rules.e_sel if limited else np.ones(len(i), dtype=bool)
    in_a_sel = slot < rules.a_sel if limited else np.ones(len(i), dtype=bool)
    in_a_rcut = r < rules.a_rcut
    present = in_e_sel & ~_excluded(types[i], types[j], rules.excluded_pairs)
    # Rows are sorted by r, so the angle-edges of a centre are the first of its edges.
    angle_edge = present & in_a_rcut & in_a_sel
    return Edges(
        i=i[present],
        j=j[present],
        shifts=shifts[present],
        n_angle_edges=np.bincount(i[angle_edge], minlength=len(positions)),
        n_cut_edges=int((~in_e_sel).sum()),
        n_cut_angle_edges=int((in_a_rcut & ~in_a_sel).sum()),
    )


def _excluded(
    types_i: np.ndarray, types_j: np.ndarray, pairs: frozenset[tuple[int, int]]
) -> np.ndarray:
    excluded = np.zeros(len(types_i), dtype=bool)
    for a, b in pairs:
        excluded |= (types_i == a) & (types_j == b)
    return excluded


def _check_overlap(i: np.ndarray, j: np.ndarray, shifts: np.ndarray, r: np.ndarray) -> None:
    if len(r) == 0 or r.min() >= MIN_DISTANCE:
        return
    # Name the pair once, lower index first.
    k = min(np.flatnonzero(r == r.min()), key=lambda k: (i[k], j[k]))
    image = f" (its periodic image {shifts[k].tolist()})" if shifts[k].any() else ""
    raise InputError(
        f"atoms {i[k]} and {j[k]}{image} overlap: their distance is {r[k]:.3g} Å, "
        f"less than {MIN_DISTANCE} Å"
    )
