"""Stiffness tensors that a crystal allows, and the standard orientation that they are stated in."""

from __future__ import annotations

import numpy as np

from .cells import Cells

# International number up to which a space group belongs to a Laue class.
LAUE_CLASSES = (
    (2, "-1"),
    (15, "2/m"),
    (74, "mmm"),
    (88, "4/m"),
    (142, "4/mmm"),
    (148, "-3"),
    (167, "-3m"),
    (176, "6/m"),
    (194, "6/mmm"),
    (206, "m-3"),
    (230, "m-3m"),
)


def laue_class(cells: Cells) -> str:
    """Such as ``m-3m``."""
    return next(name for last, name in LAUE_CLASSES if cells.number <= last)


def invariant_tensors(rotations: np.ndarray) -> np.ndarray:
    """Basis ``(n, 6, 6)`` of the stiffness tensors invariant under ``rotations`` ``(m, 3, 3)``."""
    from matscipy.elasticity import Voigt_6x6_to_full_3x3x3x3

    pairs = [(i, j) for i in range(6) for j in range(i, 6)]
    units = np.zeros((len(pairs), 6, 6))
    for place, (i, j) in enumerate(pairs):
        units[place, i, j] = units[place, j, i] = 1.0
    tensors = np.array([Voigt_6x6_to_full_3x3x3x3(unit) for unit in units])
    mean = np.zeros_like(tensors)
    for r in rotations:
        turned = np.einsum("ia,jb,nabcd->nijcd", r, r, tensors, optimize=True)
        mean += np.einsum("kc,ld,nijcd->nijkl", r, r, turned, optimize=True) / len(rotations)
    voigt = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    flat = mean[:, voigt[0], voigt[1]][:, :, voigt[0], voigt[1]].reshape(len(pairs), 36)
    _, sizes, rows = np.linalg.svd(flat, full_matrices=False)
    return rows[sizes > 1e-6 * sizes[0]].reshape(-1, 6, 6)


def needed_components(basis: np.ndarray) -> tuple[int, ...]:
    """The fewest Voigt components whose strains determine all tensors of ``basis``."""
    chosen: list[int] = []
    rank = 0
    for component in range(6):
        columns = basis[:, :, [*chosen, component]].reshape(len(basis), -1)
        found = int(np.linalg.matrix_rank(columns, tol=1e-6))
        if found > rank:
            chosen.append(component)
            rank = found
    return tuple(chosen)


def standard_orientation(cells: Cells) -> np.ndarray:
    """Rotation ``(3, 3)`` from the input to the axes of the IEEE standard 176 (1987).

    z is along c and x along a, with three exceptions: orthorhombic axes are named so that
    c < a < b, monoclinic ones have y along b and z along c, and triclinic ones have z along c and y
    normal to a and c.
    """
    a, b, c = cells.conventional.atoms.cell[:]
    if laue_class(cells) == "mmm":
        c, a, b = sorted((a, b, c), key=np.linalg.norm)
    z = c / np.linalg.norm(c)
    if laue_class(cells) == "2/m":
        y = b / np.linalg.norm(b)
    elif laue_class(cells) == "-1":
        y = np.cross(c, a) / np.linalg.norm(np.cross(c, a))
    else:
        x = a - (a @ z) * z
        y = np.cross(z, x / np.linalg.norm(x))
    # Orthogonal to rounding, and right-handed whatever cell was given.
    y = y - (y @ z) * z
    y /= np.linalg.norm(y)
    return np.array([np.cross(y, z), y, z])


def sense_of_axes(frame: np.ndarray, stiffness: np.ndarray, cells: Cells) -> np.ndarray:
    """The standard orientation, with the sense of its axes fixed where the lattice leaves it open.

    A half turn of trigonal axes about z, or of those of the class 4/m about x, leads to equally
    good axes but changes the sign of some constants: of C14 (C15), or of C16. These are made
    positive.
    """
    kind = laue_class(cells)
    if kind not in ("-3", "-3m", "4/m"):
        return frame
    turn = np.diag([1.0, -1.0, -1.0]) if kind == "4/m" else np.diag([-1.0, -1.0, 1.0])
    c = rotated(stiffness, frame)
    decisive = [c[0, 5]] if kind == "4/m" else [c[0, 3], c[0, 4]]
    largest = next((v for v in decisive if abs(v) > 1e-3 * np.abs(c).max()), 0.0)
    return turn @ frame if largest < 0 else frame


def rotated(stiffness: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """A stiffness tensor ``(6, 6)`` in rotated axes: ``x' = rotation @ x``."""
    from matscipy.elasticity import rotate_elastic_constants

    turned: np.ndarray = rotate_elastic_constants(stiffness, rotation)
    return turned
