"""Supercells from ``supercell`` options: the forms of the option, and the choice of a cell.

Sizes are the distances of opposite faces of a cell, which bound the distance to the nearest
periodic image, and not the lengths of its vectors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from .cells import Cells

FORMS = "auto, a face distance such as 20A, 2,2,2, nine whole numbers, or max-atoms=N"


@dataclass(frozen=True)
class Request:
    """What a ``supercell`` option asks for: one of these, or none for the protocol's own width.

    Attributes:
        width: smallest face distance, Å.
        max_atoms: largest number of atoms, with which the supercell is as wide as possible.
        matrix: ``(3, 3)`` whole numbers, in the vectors of the input cell.
    """

    width: float | None = None
    max_atoms: int | None = None
    matrix: tuple[tuple[int, int, int], ...] | None = None


@dataclass(frozen=True)
class Shape:
    """A supercell as multiples of a cell.

    Attributes:
        basis: ``(3, 3)`` whole numbers, that cell in the vectors of the primitive one.
        multiples: how often it is repeated along each of its vectors.
    """

    basis: np.ndarray
    multiples: tuple[int, int, int]

    @property
    def matrix(self) -> np.ndarray:
        """``(3, 3)`` whole numbers: the supercell in the vectors of the primitive cell."""
        return np.diag(self.multiples) @ self.basis

    @property
    def size(self) -> int:
        """Number of primitive cells."""
        return round(abs(np.linalg.det(self.matrix)))

    def smaller(self) -> Shape | None:
        """The next smaller supercell of about the same shape; None where there is none."""
        largest = max(self.multiples)
        if largest == 1:
            return None
        fewer = [max(1, round(n * (largest - 1) / largest)) for n in self.multiples]
        return Shape(self.basis, (fewer[0], fewer[1], fewer[2]))


def parse(text: str) -> Request:
    """Read a ``supercell`` option.

    Raises:
        InputError: the text has none of :data:`FORMS`.
    """
    text = text.strip()
    if text.lower() == "auto":
        return Request()
    if match := re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(a|å|ang)", text, re.IGNORECASE):
        if float(match[1]) > 0:
            return Request(width=float(match[1]))
    elif match := re.fullmatch(r"max[-_]atoms\s*=\s*(\d+)", text, re.IGNORECASE):
        if int(match[1]) > 0:
            return Request(max_atoms=int(match[1]))
    elif re.fullmatch(r"[-+]?\d+(([\s,]+)[-+]?\d+)*", text):
        numbers = [int(n) for n in re.split(r"[\s,]+", text)]
        if len(numbers) in (3, 9):
            full = np.diag(numbers) if len(numbers) == 3 else np.reshape(numbers, (3, 3))
            if round(np.linalg.det(full)) > 0:
                rows = full.tolist()
                return Request(matrix=tuple((r[0], r[1], r[2]) for r in rows))
            raise InputError(f"supercell = {text}: the determinant must be positive")
    raise InputError(f"supercell = {text!r} is not one of: {FORMS}")


def choose(cells: Cells, request: Request, width: float) -> Shape:
    """The requested supercell.

    Of the repetitions of the primitive and the conventional cell that are wide enough, it has the
    fewest atoms. These keep the symmetry of the crystal, whatever cell was given.

    Args:
        cells: of the crystal. request: from :func:`parse`.
        width: face distance, Å, if the request leaves it open.

    Raises:
        InputError: even the primitive cell has more atoms than ``max_atoms``.
    """
    if request.matrix is not None:
        return _asked(cells, np.array(request.matrix))
    bases = [np.eye(3, dtype=int), right_handed(in_primitive(cells, cells.conventional.matrix))]
    if request.max_atoms is not None:
        fitting = [s for b in bases if (s := _widest(cells, b, request.max_atoms)) is not None]
        if not fitting:
            n = len(cells.primitive.atoms)
            raise InputError(
                f"supercell = max-atoms={request.max_atoms}: even the primitive cell has {n} atoms"
            )
        return max(fitting, key=lambda s: (round(face_distance(cells, s.matrix), 6), -s.size))
    wanted = width if request.width is None else request.width
    return min((_wide(cells, basis, wanted) for basis in bases), key=lambda s: s.size)


def _asked(cells: Cells, matrix: np.ndarray) -> Shape:
    """The user's matrix: multiples of the input cell, or of the smallest cell of that shape."""
    given = right_handed(in_primitive(cells, np.eye(3)))
    n = np.diag(matrix)
    if (n > 0).all() and not (matrix - np.diag(n)).any():
        return Shape(given, (int(n[0]), int(n[1]), int(n[2])))
    common = int(np.gcd.reduce(matrix.ravel()))
    return Shape(right_handed(matrix // common @ given), (common,) * 3)


def face_distance(cells: Cells, matrix: Any) -> float:
    """Smallest distance between opposite faces of a supercell, Å.

    Args:
        cells: of the crystal. matrix: ``(3, 3)``, in the vectors of its primitive cell.
    """
    return float(widths(np.asarray(matrix) @ cells.primitive.atoms.cell[:]).min())


def widths(lattice: np.ndarray) -> np.ndarray:
    """Distances ``(3,)`` between opposite faces of a cell, whose vectors are rows."""
    return 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)


def in_primitive(cells: Cells, matrix: np.ndarray) -> np.ndarray:
    """Express a cell in vectors of the primitive cell instead of the input cell."""
    return np.rint(matrix @ np.linalg.inv(cells.primitive.matrix)).astype(int)


def right_handed(matrix: np.ndarray) -> np.ndarray:
    """The same lattice with the handedness of the cell in whose vectors it is given."""
    return -matrix if np.linalg.det(matrix) < 0 else matrix


def _wide(cells: Cells, basis: np.ndarray, width: float) -> Shape:
    heights = widths(basis @ cells.primitive.atoms.cell[:])
    n = [max(1, int(np.ceil(width / h - 1e-6))) for h in heights]
    return Shape(basis, (n[0], n[1], n[2]))


def _widest(cells: Cells, basis: np.ndarray, max_atoms: int) -> Shape | None:
    """The cell repeated along its narrowest sides as long as it has at most ``max_atoms``."""
    heights = widths(basis @ cells.primitive.atoms.cell[:])
    n = np.ones(3, dtype=int)
    best = None
    while True:
        shape = Shape(basis, (int(n[0]), int(n[1]), int(n[2])))
        if shape.size * len(cells.primitive.atoms) > max_atoms:
            return best
        best = shape
        n = n + (n * heights < (n * heights).min() * (1 + 1e-4))
