"""Coordinates and cells that can be computed at all."""

from __future__ import annotations

import numpy as np

from dpa3sim.common.errors import InputError

MAX_COORDINATE = 1.0e6
MIN_RELATIVE_VOLUME = 1.0e-6
MIN_VECTOR = 0.1
MAX_DENSITY = 20.0
# Largest number of images of a cell within MAX_IMAGES_RADIUS, Å: 30 times that of the densest
# crystals.
MAX_IMAGES, MAX_IMAGES_RADIUS = 3.0e6, 6.0
# Size of a box, Å, and the largest number of atoms in it, averaged over all atoms: 20 times that of
# the densest crystals.
CROWD_BOX, MAX_CROWD = 6.0, 1000


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Replace the vectors of non-periodic axes by unit vectors normal to the periodic ones.

    The neighbour search only uses the periodic vectors. The vectors of the other axes (zeros,
    as in ASE slabs and molecules, or anything else) must have no effect; this function ensures it.

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
    # An orthonormal basis of the null space of the periodic vectors.
    _, _, basis = np.linalg.svd(periodic.reshape(-1, 3), full_matrices=True)
    out[~pbc] = basis[len(periodic) :]
    return out


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Raise InputError for coordinates or cells without a neighbour list.

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
            "the origin; move the structure to the origin"
        )
    vectors = cell[pbc]
    if not np.isfinite(cell).all():
        raise InputError(f"the cell contains values that are not finite: {cell.tolist()}")
    if len(vectors) == 0:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < MIN_VECTOR:
        axis = "abc"[int(np.flatnonzero(pbc)[lengths.argmin()])]
        raise InputError(
            f"the structure is periodic along {axis}, but that cell vector is only "
            f"{lengths.min():.3g} Å long; set a cell, or switch off the periodicity"
        )
    if lengths.max() > MAX_COORDINATE:
        raise InputError(
            f"a cell vector is {lengths.max():.3g} Å long, more than {MAX_COORDINATE:.0e} Å"
        )
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if volume < MIN_RELATIVE_VOLUME * np.prod(lengths):
        raise InputError(f"the cell is singular, its periodic vectors are {vectors.tolist()}")
    if len(vectors) == 3 and len(positions) / volume > MAX_DENSITY:
        raise InputError(
            f"{len(positions)} atoms in {volume:.3g} Å^3: no material is as dense as that; "
            "are the cell vectors in Å?"
        )
    # Distances between opposite faces, which limit the search: first a lower bound, then exactly.
    heights = lengths * volume / np.prod(lengths)
    if _images(heights) > MAX_IMAGES:
        heights = 1.0 / np.linalg.norm(np.linalg.pinv(vectors), axis=0)
        if _images(heights) > MAX_IMAGES:
            raise InputError(
                f"the cell is too skewed, opposite faces are {heights.min():.3g} Å apart; "
                "use shorter vectors of the same lattice (ase.build.minimize_tilt, niggli_reduce)"
            )


def _images(heights: np.ndarray) -> float:
    return float(np.prod(2.0 * np.ceil(MAX_IMAGES_RADIUS / heights) + 1.0))


def check_crowd(positions: np.ndarray) -> None:
    """Raise InputError for so many close atoms that their pairs would fill the memory."""
    boxes = np.floor(positions / CROWD_BOX).astype(np.int64)
    keys = boxes @ np.array([73_856_093, 19_349_663, 83_492_791])
    _, counts = np.unique(keys, return_counts=True)
    if (counts**2).sum() > MAX_CROWD * len(positions):
        raise InputError(
            f"{counts.max()} atoms within {CROWD_BOX:g} Å: no material is as dense as that; "
            "are the coordinates in Å?"
        )
