"""The first guess of a path between two structures, bent around collisions of atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

# Two atoms collide on a path if their distance falls below this share of the sum of their covalent
# radii, and below this share of their distances at both ends.
COLLISION, CLOSER = 0.7, 0.85
# Points between the ends at which a path is checked, and how often it is bent at most.
SAMPLES, BENDS = 39, 4


def initial_path(
    initial: Atoms, final: Atoms, n_images: int, interpolation: str
) -> tuple[list[Atoms], tuple[str, ...]]:
    """The images before the model is evaluated, with the two ends, and warnings.

    A straight path may lead one atom through another, and the image dependent pair potential cannot
    leave a line on which symmetry holds the atoms. Such a path is bent first.

    Args:
        initial, final: the ends, superposed.
        n_images: number of images between them.
        interpolation: ``"idpp"`` or ``"linear"``.
    """
    from ase.mep import NEB
    from ase.mep.neb import idpp_interpolate

    images = [initial, *(initial.copy() for _ in range(n_images)), final]
    band = NEB(images, method="improvedtangent")
    pairs = collisions(initial, final)
    if not pairs:
        band.interpolate(method=interpolation, mic=True, apply_constraint=False)
        return images, ()
    band.interpolate(method="linear", mic=True, apply_constraint=False)
    bend = _bend(initial, final)
    for image, s in zip(images[1:-1], np.linspace(0, 1, len(images))[1:-1], strict=True):
        image.positions += np.sin(np.pi * s) * bend
    if interpolation == "idpp":
        idpp_interpolate(images=band, traj=None, log=None, mic=True)
    i, j = pairs[0]
    names = f"{initial.symbols[i]} {i} and {initial.symbols[j]} {j}"
    return images, (
        f"atoms {names} collide on the straight path, which was bent around the collision in one "
        "of several directions: check the images, or use a structure on the path as an end",
    )


def collisions(initial: Atoms, final: Atoms, bend: np.ndarray | None = None) -> list[Any]:
    """Pairs ``(i, j)`` of atoms that collide on the straight path, the worst first.

    Args:
        initial, final: the ends, in periodic images nearest to each other.
        bend: ``(n, 3)``, displacement of the middle of the path from a straight one, Å.
    """
    from ase.data import covalent_radii

    radii = covalent_radii[initial.numbers]
    sums = radii[:, None] + radii[None, :]
    at_ends = np.minimum(*(_distances(end, end.positions) for end in (initial, final)))
    least = np.full(sums.shape, np.inf)
    for s in np.linspace(0, 1, SAMPLES + 2)[1:-1]:
        positions = (1 - s) * initial.positions + s * final.positions
        if bend is not None:
            positions = positions + np.sin(np.pi * s) * bend
        least = np.minimum(least, _distances(initial, positions))
    close = least < np.minimum(COLLISION * sums, CLOSER * at_ends)
    found = [(i, j) for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True)]
    return sorted(found, key=lambda pair: float(least[pair] / sums[pair]))


def _distances(cell: Atoms, positions: np.ndarray) -> np.ndarray:
    """Distances of all pairs, ``(n, n)`` Å, between nearest images."""
    from ase.geometry import get_distances

    found = get_distances(positions, cell=cell.cell, pbc=cell.pbc)[1]
    return np.asarray(found)


def _bend(initial: Atoms, final: Atoms) -> np.ndarray:
    """Displacements ``(n, 3)`` of the middle of the path, Å, that avoid all collisions.

    Colliding atoms evade each other perpendicular to their relative motion, in proportion to how
    far they move; fixed atoms stay. They evade towards the side on which they pass already, or else
    in an arbitrary direction, which is the same for all pairs and in every run.
    """
    from ase.constraints import FixAtoms
    from ase.data import covalent_radii

    moves = final.positions - initial.positions
    lengths = np.linalg.norm(moves, axis=1)
    for constraint in initial.constraints:
        if isinstance(constraint, FixAtoms):
            lengths[constraint.index] = 0.0
    radii, bend = covalent_radii[initial.numbers], np.zeros_like(moves)
    rng = np.random.default_rng(0)
    arbitrary = np.array([0.36, 0.48, 0.8])
    for _ in range(BENDS):
        pairs = collisions(initial, final, bend if bend.any() else None)
        if not pairs:
            break
        for i, j in pairs:
            if lengths[i] + lengths[j] == 0:
                continue
            side = _sideways(
                initial.positions[j] - initial.positions[i], moves[j] - moves[i], arbitrary
            )
            share = lengths[j] / (lengths[i] + lengths[j])
            wanted = 1.1 * (radii[i] + radii[j])
            for atom, amount in ((j, share * wanted), (i, -(1 - share) * wanted)):
                along = float(bend[atom] @ side) * np.sign(amount or 1.0)
                bend[atom] += np.sign(amount) * max(0.0, abs(amount) - along) * side
        arbitrary = rng.normal(size=3)
    return bend


def _sideways(apart: np.ndarray, motion: np.ndarray, arbitrary: np.ndarray) -> np.ndarray:
    """The unit vector perpendicular to a relative motion, towards the side of the other atom.

    Args:
        apart: ``(3,)`` from one atom to the other at the start. motion: ``(3,)`` of the other one.
        arbitrary: used if they meet exactly.
    """
    along = motion / np.linalg.norm(motion)
    for vector in (apart, arbitrary, np.array([1.0, 0, 0]), np.array([0, 1.0, 0])):
        across = vector - (vector @ along) * along
        if np.linalg.norm(across) > 0.05:
            return np.asarray(across / np.linalg.norm(across))
    raise AssertionError("no vector is perpendicular")
