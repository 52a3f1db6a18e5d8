"""Slabs that are cut out of a crystal: faces, cuts and thicknesses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import InputError

from .cells import Cells, symmetry

if TYPE_CHECKING:
    from ase import Atoms

# Each slab of a series is thicker than the one before by at least this, Å.
THICKER = 4.0
# Atoms whose heights differ by less (Å) belong to one plane, which is not cut.
PLANE = 0.3

Miller = tuple[int, int, int]


def parse_miller(text: str) -> list[Miller]:
    """Read a ``miller`` option: indices separated by commas, faces by spaces; empty for auto.

    Raises:
        InputError: the text is something else, or names no face.
    """
    if text.strip().lower() == "auto":
        return []
    faces: list[Miller] = []
    for word in text.split():
        match = re.fullmatch(r"\(?(-?\d+),(-?\d+),(-?\d+)\)?", word)
        match = match or re.fullmatch(r"(-?\d)(-?\d)(-?\d)", word)
        if not match:
            raise InputError(f"miller = {word!r} is not three whole numbers, such as 1,1,1")
        h, k, l = (int(n) for n in match.groups())  # noqa: E741 - their names everywhere
        divisor = math.gcd(h, k, l)
        if not divisor:
            raise InputError("miller = 0,0,0 does not define a face")
        face = (h // divisor, k // divisor, l // divisor)
        if face not in faces:
            faces.append(face)
    if not faces:
        raise InputError("miller is empty; write it as 1,1,1, or auto")
    return faces


def face_name(miller: Miller) -> str:
    """A face as text, such as ``(1 1 1)``."""
    return "(" + " ".join(str(n) for n in miller) + ")"


def distinct_faces(cells: Cells, largest: int = 1) -> list[Miller]:
    """The symmetry-inequivalent faces with indices up to ``largest``."""
    reciprocal = np.linalg.inv(cells.conventional.atoms.cell[:]).T
    seen: set[Miller] = set()
    faces: list[Miller] = []
    values = range(largest, -largest - 1, -1)
    every = [(h, k, m) for h in values for k in values for m in values]
    for face in sorted(every, key=lambda m: sum(map(abs, m))):
        if math.gcd(*face) != 1 or face in seen:
            continue
        faces.append(face)
        normals = cells.rotations @ (np.array(face) @ reciprocal)
        equal = np.rint(normals @ np.linalg.inv(reciprocal)).astype(int)
        # A slab has both faces, so that the opposite face needs no slab of its own.
        for m in (*equal.tolist(), *(-equal).tolist()):
            seen.add((m[0], m[1], m[2]))
    return faces


@dataclass(frozen=True)
class Cut:
    """A cut of the crystal along a face, with slabs of all thicknesses.

    Attributes:
        miller: of the face. slabs: from the thinnest to the thickest. periods: their numbers of
        lattice planes. symmetric: whether their two faces are equal.
    """

    miller: Miller
    slabs: tuple[Atoms, ...]
    periods: tuple[int, ...]
    symmetric: bool


def cuts_of(cells: Cells, miller: Miller, thickness: float, sizes: int, vacuum: float) -> list[Cut]:
    """All cuts of a face whose slabs have equal faces; if an element has none, all its cuts.

    Args:
        cells: of the crystal. miller: of the face, in the conventional cell.
        thickness: least one, Å. sizes: number of thicknesses. vacuum: in the cells of slabs, Å.
    """
    primitive = cells.primitive.atoms
    element = len(set(primitive.numbers.tolist())) == 1
    indices = _primitive_indices(cells, miller)
    height = float(1 / np.linalg.norm(_normal(primitive, indices)))
    first = max(1, math.ceil(thickness / height - 1e-6))
    step = max(1, math.ceil(THICKER / height - 1e-6))
    periods = tuple(first + n * step for n in range(sizes))
    cuts = []
    for shift in _shifts(primitive, indices, height):
        slabs = tuple(_slab(primitive, indices, n, shift, vacuum) for n in periods)
        symmetric = all(has_equal_faces(slab, cells.symprec) for slab in slabs)
        if symmetric or element:
            cuts.append(Cut(miller, slabs, periods, symmetric))
    return [cut for cut in cuts if cut.symmetric] or cuts


def _primitive_indices(cells: Cells, miller: Miller) -> Miller:
    """The indices of a face in the primitive cell."""
    change = cells.primitive.matrix @ np.linalg.inv(cells.conventional.matrix)
    # In a centred cell these may be fractions with a common denominator.
    scaled = np.rint(24 * change @ miller).astype(int)
    h, k, l = (scaled // np.gcd.reduce(scaled)).tolist()  # noqa: E741
    return h, k, l


def _normal(primitive: Atoms, indices: Miller) -> np.ndarray:
    """The reciprocal vector of a face, 1/Å: along its normal, one over the distance of planes."""
    normal: np.ndarray = np.array(indices) @ np.linalg.inv(primitive.cell[:]).T
    return normal


def _shifts(primitive: Atoms, indices: Miller, height: float) -> list[float]:
    """Heights, Å, halfway between neighbouring planes of atoms in one period."""
    normal = _normal(primitive, indices)
    heights = np.sort((primitive.positions @ normal / np.linalg.norm(normal)) % height)
    gaps = np.append(np.diff(heights), heights[0] + height - heights[-1])
    wide = [i for i, gap in enumerate(gaps) if gap > PLANE] or [int(np.argmax(gaps))]
    return [float(heights[i] + gaps[i] / 2) for i in wide]


def _slab(primitive: Atoms, indices: Miller, periods: int, shift: float, vacuum: float) -> Atoms:
    """A slab normal to z, cut ``shift`` (Å) above the origin, with vacuum in its cell."""
    from ase.build import surface

    moved, normal = primitive.copy(), _normal(primitive, indices)
    moved.positions -= shift * normal / np.linalg.norm(normal)
    slab = surface(moved, indices, periods, periodic=True)
    slab.set_tags(None)
    slab.pbc = (True, True, False)
    slab.center(vacuum=vacuum / 2, axis=2)
    return slab


def has_equal_faces(slab: Atoms, symprec: float) -> bool:
    """Whether a symmetry maps one face of a slab, with its normal along z, onto the other."""
    periodic = slab.copy()
    # A wide vacuum isolates it: with a narrow one the symmetry would be that of a crystal.
    periodic.center(vacuum=10.0, axis=2)
    periodic.pbc = True
    dataset = symmetry(periodic, symprec)
    return dataset is not None and bool((dataset.rotations[:, 2, 2] == -1).any())


def face_area(slab: Atoms) -> float:
    """Area of one face of a slab, Å^2."""
    return float(np.linalg.norm(np.cross(slab.cell[0], slab.cell[1])))
