"""Neighbour candidates: all pairs of atoms within a radius, for any cell and periodicity."""

from __future__ import annotations

import itertools

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.geometry import check_crowd, complete_cell

# vesin divides a cell into at most this number of boxes.
VESIN_BOXES = 1.0e5


def _check_boxes(positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, radius: float) -> None:
    """Raise InputError for structures so long and thin that vesin 0.6 would divide by zero.

    It divides the cell, or the extent of the atoms along non-periodic axes, into boxes. If there
    are too many, it keeps the ratios of their numbers and rounds them down.
    """
    inverse = np.linalg.inv(box)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    heights = np.where(pbc, heights, heights * np.ptp(positions @ inverse, axis=0))
    # The directions along which it measures the extent of the atoms are not specified.
    diagonal = float(np.linalg.norm(np.ptp(positions, axis=0)))
    largest = np.where(pbc | ~pbc.any(), heights, np.maximum(heights, diagonal))
    if np.maximum(largest / radius, 1.0).prod() <= VESIN_BOXES:
        return
    lengths = [(a,) if a == b else (0.0, a, b) for a, b in zip(heights, largest, strict=True)]
    for chosen in itertools.product(*lengths):
        if not _can_divide(np.maximum(np.floor(np.array(chosen) / radius), 1.0)):
            raise InputError(
                f"the structure is too thin for its size, {heights.round(1).tolist()} Å along its "
                "axes: the neighbour search cannot divide it"
            )


def _can_divide(n: np.ndarray) -> bool:
    """Whether vesin can divide into about ``n``, ``(3,)``, boxes along the axes."""
    if n.prod() <= VESIN_BOXES:
        return True
    last = np.floor(np.cbrt(VESIN_BOXES * n[2] ** 2 / (n[0] * n[1])))
    middle = np.floor(last * n[1] / n[2])
    return bool(min(last, middle, np.floor(middle * n[0] / n[1])) >= 1)


def candidates(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs (i, j, S) != (i, i, 0) with ``|x_j + S cell - x_i| <= radius``.

    The list may contain pairs that are a rounding error beyond ``radius``; callers filter exactly.
    Positions need not be wrapped; cells may be skewed, left-handed or smaller than ``radius``.

    Returns:
        i, j: ``(n_pairs,)`` int64; shifts: ``(n_pairs, 3)`` int64; in no particular order.

    Raises:
        InputError: there are more atoms in one place than in any material.
    """
    import vesin  # imports torch, which commands that only read files do not need

    box = complete_cell(cell, pbc)
    check_crowd(positions)
    _check_boxes(positions, box, pbc, radius)
    finder = vesin.NeighborList(cutoff=radius * (1 + 1e-9) + 1e-9, full_list=True)
    i, j, shifts = finder.compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=box,
        periodic=np.ascontiguousarray(pbc, dtype=bool),
        quantities="ijS",
    )
    return i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
