"""Neighbour candidates: all pairs of atoms within a radius, for any cell and periodicity."""

from __future__ import annotations

import numpy as np
import vesin

from dpa3sim.errors import InputError

MAX_COORDINATE = 1.0e6
MIN_RELATIVE_VOLUME = 1.0e-6
MIN_VECTOR = 0.1
MAX_DENSITY = 20.0


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Replace the vectors of non-periodic axes by unit vectors normal to the periodic ones.

    The neighbour search only uses the periodic vectors; what stands on the other axes (zeros,
    as in ASE slabs and molecules, or anything else) must not matter, and this makes it so.

    Args:
        cell: ``(3, 3)``, lattice vectors as rows, Å.
        pbc: ``(3,)`` bool.

    Returns:
        ``(3, 3)`` non-singular cell whose periodic rows are those of ``cell``.
    """
    out = np.array(cell, dtype=np.float64)
    periodic = out[pbc]
    if len(periodic) == 3:
        return out
    # The null space of the periodic vectors, an orthonormal basis of it.
    _, _, basis = np.linalg.svd(periodic.reshape(-1, 3), full_matrices=True)
    out[~pbc] = basis[len(periodic) :]
    return out


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Raise InputError for coordinates or cells that have no neighbour list.

    Args:
        positions: ``(n, 3)``, Å.
        cell: ``(3, 3)``, lattice vectors as rows, Å.
        pbc: ``(3,)`` bool.
    """
    if len(positions) == 0:
        raise InputError("the structure has no atoms")
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise InputError(f"atom {bad[0]} has a coordinate that is not finite: {positions[bad[0]]}")
    bad = np.flatnonzero((np.abs(positions) > MAX_COORDINATE).any(axis=1))
    if len(bad):
        raise InputError(
            f"atom {bad[0]} at {positions[bad[0]]} is more than {MAX_COORDINATE:.0e} Å away from "
            "the origin; move the structure there"
        )
    vectors = cell[pbc]
    if not np.isfinite(vectors).all():
        raise InputError(f"the cell contains values that are not finite: {cell.tolist()}")
    if len(vectors) == 0:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < MIN_VECTOR:
        axis = "abc"[int(np.flatnonzero(pbc)[lengths.argmin()])]
        raise InputError(
            f"the structure is periodic along {axis}, but that cell vector is only "
            f"{lengths.min():.3g} Å long; give a cell or switch the periodicity off"
        )
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if volume < MIN_RELATIVE_VOLUME * np.prod(lengths):
        raise InputError(f"the cell is singular, its periodic vectors are {vectors.tolist()}")
    if len(vectors) == 3 and len(positions) / volume > MAX_DENSITY:
        raise InputError(
            f"{len(positions)} atoms in {volume:.3g} Å^3: no material is as dense as that; "
            "are the cell vectors in Å?"
        )


def candidates(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs (i, j, S) != (i, i, 0) with ``|x_j + S cell - x_i| <= radius``.

    Pairs a rounding error beyond ``radius`` may be in the list; callers filter exactly.
    Positions need not be wrapped; cells may be skewed, left-handed or smaller than ``radius``.

    Returns:
        i, j: ``(n_pairs,)`` int64; shifts: ``(n_pairs, 3)`` int64. No particular order.
    """
    finder = vesin.NeighborList(cutoff=radius * (1 + 1e-9) + 1e-9, full_list=True)
    i, j, shifts = finder.compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=complete_cell(cell, pbc),
        periodic=np.ascontiguousarray(pbc, dtype=bool),
        quantities="ijS",
    )
    return i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
