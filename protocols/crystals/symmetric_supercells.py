"""Supercells for phonons, which have the full symmetry of the lattice.

The candidates are multiples of the conventional cell, equal along axes that the symmetry makes
equal, and the same with the centrings that this symmetry allows. Their width is the smallest
distance between opposite faces, not the length of a vector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from dpa3sim.common.errors import InputError

from .cells import Cells
from .supercells import Request, in_primitive, right_handed, widths

# "auto" is as wide as this (Å), or twice the cutoff: docs/methods.md#supercells-for-phonons.
AUTO_WIDTH = 15.0
# A warning is given of more atoms.
MANY_ATOMS = 300
# No face distance of a candidate exceeds this multiple of the requested one.
WIDEST = 1.8

_P = np.eye(3)
_I = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2
_F = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
_A = np.array([[2, 0, 0], [0, 1, 1], [0, -1, 1]]) / 2
_B = np.array([[1, 0, 1], [0, 2, 0], [-1, 0, 1]]) / 2
_C = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]]) / 2
_R = np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3
_H = np.array([[2, 1, 0], [-1, 1, 0], [0, 0, 3]]) / 3
# Last space group number of a crystal system, which axes are equal, and its centrings.
_SYSTEMS = (
    (2, (0, 1, 2), (_P,)),
    (15, (0, 1, 2), (_P, _C)),
    (74, (0, 1, 2), (_P, _I, _F, _A, _B, _C)),
    (142, (0, 0, 1), (_P, _I, _F, _C)),
    (194, (0, 0, 1), (_P, _R, _H)),
    (230, (0, 0, 0), (_P, _I, _F)),
)


def choose(cells: Cells, size: Request, cutoff: float) -> tuple[np.ndarray, list[str]]:
    """The vectors ``(3, 3)`` of a supercell in those of the primitive cell, and warnings.

    Args:
        cells: the crystal.
        size: from :func:`~.supercells.parse`.
        cutoff: of the model, Å.

    Raises:
        InputError: every supercell has more atoms than allowed.
    """
    n_atoms, warnings = len(cells.primitive.atoms), []
    primitive = cells.primitive.atoms.cell[:]
    enough = max(AUTO_WIDTH, 2 * cutoff)
    if size.matrix is not None:
        matrix = right_handed(in_primitive(cells, np.array(size.matrix)))
    elif size.max_atoms is not None:
        volume = abs(cells.primitive.atoms.cell.volume) / n_atoms * size.max_atoms
        matrix = _widest(cells, size.max_atoms, volume ** (1 / 3))
    else:
        matrix = _smallest(cells, enough if size.width is None else size.width)
    width = min(widths(matrix @ primitive))
    count = n_atoms * round(abs(np.linalg.det(matrix)))
    if width < 2 * cutoff:
        warnings.append(
            f"the supercell is {width:.1f} Å wide, less than twice the cutoff of the model "
            f"({cutoff:g} Å), so that force constants overlap; supercell=auto avoids that"
        )
    if not _symmetric(matrix @ primitive, cells.rotations):
        warnings.append(
            "the supercell has less symmetry than the crystal, which costs displacements and "
            "splits degenerate modes; supercell=auto keeps the symmetry"
        )
    if count > MANY_ATOMS and size == Request():
        warnings.append(
            f"a supercell {enough:g} Å wide has {count} atoms here; "
            f"supercell=max-atoms={MANY_ATOMS} is faster and narrower"
        )
    return matrix, warnings


def _smallest(cells: Cells, width: float) -> np.ndarray:
    """The supercell of at least ``width`` with the fewest atoms; of these the widest."""
    found = [
        (round(np.linalg.det(matrix)), -round(w, 6), index, matrix)
        for index, (matrix, w) in enumerate(_candidates(cells, width))
        if w >= width - 1e-6
    ]
    return min(found, key=lambda entry: entry[:3])[3]


def _widest(cells: Cells, max_atoms: int, around: float) -> np.ndarray:
    """The widest supercell with at most ``max_atoms``; of these the one with the fewest atoms."""
    n = len(cells.primitive.atoms)
    found = [
        (-round(w, 6), round(np.linalg.det(matrix)), index, matrix)
        for index, (matrix, w) in enumerate(_candidates(cells, around))
        if n * round(np.linalg.det(matrix)) <= max_atoms
    ]
    if not found:
        raise InputError(
            f"supercell=max-atoms={max_atoms}: the smallest symmetric cell has more atoms"
        )
    return min(found, key=lambda entry: entry[:3])[3]


def _candidates(cells: Cells, width: float) -> Iterator[tuple[np.ndarray, float]]:
    """Matrices in vectors of the primitive cell, and widths, up to a multiple of ``width``."""
    primitive = cells.primitive.atoms.cell[:]
    conventional = cells.conventional.atoms.cell[:]
    to_primitive = conventional @ np.linalg.inv(primitive)
    _, axes, centrings = next(s for s in _SYSTEMS if cells.number <= s[0])
    counts = [max(1, math.ceil(WIDEST * width / w)) for w in widths(conventional)]
    ranges = [
        range(1, max(c for c, a in zip(counts, axes, strict=True) if a == axis) + 1)
        for axis in range(max(axes) + 1)
    ]
    for n in itertools.product(*ranges):
        repeats = np.diag([n[axis] for axis in axes])
        for centring in centrings:
            matrix = centring @ repeats @ to_primitive
            whole = np.rint(matrix)
            if np.abs(matrix - whole).max() < 1e-3:
                matrix = right_handed(whole.astype(int))
                vectors = matrix @ primitive
                # A rhombohedral centring breaks the symmetry of a hexagonal crystal.
                if _symmetric(vectors, cells.rotations):
                    yield matrix, float(min(widths(vectors)))


def _symmetric(vectors: np.ndarray, rotations: np.ndarray) -> bool:
    """Whether Cartesian rotations map a lattice, whose vectors are rows, onto itself."""
    mapped = vectors @ rotations.transpose(0, 2, 1) @ np.linalg.inv(vectors)
    return bool(np.abs(mapped - np.rint(mapped)).max() < 1e-3)
