"""Force constants from analytic Hessians of small cells.

A phonon of wave vector q fits a cell with as many primitive cells as its smallest period. It is
enough to differentiate this smallest cell for each q instead of one supercell for all (nondiagonal
supercells, Lloyd-Williams and Monserrat, Phys. Rev. B 92, 184301 (2015)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy import Phonopy

    from dpa3sim.potential.interface import BatchPotential

Report = Callable[[int, int], None]


def analytic_force_constants(
    phonon: Phonopy, atoms: Atoms, potential: BatchPotential, report: Report
) -> np.ndarray:
    """Force constants ``(n, n_supercell, 3, 3)``, eV/Å^2, of the supercell of ``phonon``.

    Args:
        phonon: a phonopy object whose unit cell is the primitive one.
        atoms: the primitive cell.
        potential: computes the second derivatives.
        report: called with the number of wave vectors that are done, and of all.
    """
    from phonopy.harmonic.dynmat_to_fc import DynmatToForceConstants

    transform = DynmatToForceConstants(phonon.primitive, phonon.supercell, is_full_fc=False)
    points = transform.commensurate_points
    matrices = _dynamical_matrices(phonon, atoms, potential, points, report)
    transform.dynamical_matrices = matrices
    transform.run()
    return np.asarray(transform.force_constants)


def hessian_sizes(phonon: Phonopy, atoms: Atoms) -> list[int]:
    """Number of atoms of each cell that :func:`analytic_force_constants` differentiates."""
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    counting = _Counting()
    points = np.asarray(get_commensurate_points(phonon.supercell_matrix))
    _dynamical_matrices(phonon, atoms, counting, points, lambda done, total: None)
    return counting.sizes


class _Counting:
    """Stands in for a potential: counts the Hessians it is asked for, and returns zeros."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def hessian(self, structure: Atoms, atoms: Sequence[int]) -> np.ndarray:
        self.sizes.append(len(structure))
        return np.zeros((3 * len(atoms), 3 * len(structure)))


def _dynamical_matrices(
    phonon: Phonopy,
    atoms: Atoms,
    potential: BatchPotential | _Counting,
    points: np.ndarray,
    report: Report,
) -> np.ndarray:
    """D(q), ``(n_q, 3n, 3n)``, mass-weighted: computed for one q of each star, then rotated."""
    index = {_key(q): place for place, q in enumerate(points)}
    period = {place: period_of(q) for place, q in enumerate(points)}
    found: dict[int, np.ndarray] = {}
    operations = phonon.primitive_symmetry.symmetry_operations
    mapped = _atom_maps(phonon)
    lattice = phonon.primitive.cell
    scaled = phonon.primitive.scaled_positions
    masses = np.repeat(phonon.primitive.masses, 3)
    weight = 1 / np.sqrt(np.outer(masses, masses))
    # Long periods come first: their cells also fit the multiples of their wave vectors.
    for place in sorted(period, key=lambda p: (-period[p], p)):
        if place in found:
            continue
        cell, offsets = nondiagonal(atoms, points[place], period[place])
        hessian = potential.hessian(cell, range(len(atoms)))
        for multiple in range(period[place]):
            q = multiple * points[place]
            if index[_key(q)] in found:
                continue
            matrix = weight * _at(q, hessian, cell, atoms, offsets)
            for rotation, targets in zip(operations["rotations"], mapped, strict=True):
                rotated_q = np.linalg.inv(rotation).T @ q
                rotated = _rotated(matrix, rotation, targets, lattice)
                for sign, value in ((1, rotated), (-1, rotated.conj())):
                    star = index.get(_key(sign * rotated_q))
                    # A supercell less symmetric than the crystal lacks some of the star.
                    if star is not None and star not in found:
                        found[star] = value * _phases(points[star] - sign * rotated_q, scaled)
        report(len(found), len(points))
    return np.array([found[place] for place in range(len(points))])


def _key(q: np.ndarray) -> tuple[int, ...]:
    """Equal for wave vectors that differ by a reciprocal lattice vector."""
    return tuple(np.rint(np.mod(np.rint(np.asarray(q) * 1e6) / 1e6, 1) * 1e5).astype(int) % 100000)


def period_of(q: np.ndarray) -> int:
    """The smallest number that makes q a reciprocal lattice vector."""
    for number in range(1, 10000):
        if np.abs(number * q - np.rint(number * q)).max() < 1e-5:
            return number
    raise ValueError(f"{q} fits no supercell")


def nondiagonal(atoms: Atoms, q: np.ndarray, period: int) -> tuple[Atoms, np.ndarray]:
    """The smallest cell that q fits.

    Returns:
        The cell, ``period`` copies of ``atoms`` one after the other, and the place of each copy
        ``(period, 3)`` in vectors of ``atoms``.
    """
    lattice = atoms.cell[:]
    matrix = next(m for m in _hermite(period) if np.abs(m @ q - np.rint(m @ q)).max() < 1e-5)
    # The places in the cell are found in a box that covers it.
    grid = np.array(list(np.ndindex(*(np.full(3, period)))))
    inside = np.mod(np.rint(grid @ np.linalg.inv(matrix) * period), period).astype(int)
    _, first = np.unique(inside, axis=0, return_index=True)
    offsets = grid[np.sort(first)]
    cell = atoms.repeat((period, 1, 1))
    cell.set_cell(matrix @ lattice)
    cell.positions = ((offsets @ lattice)[:, None] + atoms.positions[None]).reshape(-1, 3)
    return cell, offsets


def _hermite(determinant: int) -> Iterator[np.ndarray]:
    """All superlattices of this many cells, as Hermite normal forms."""
    for a in (d for d in range(1, determinant + 1) if determinant % d == 0):
        rest = determinant // a
        for b in (d for d in range(1, rest + 1) if rest % d == 0):
            c = rest // b
            for x in range(b):
                for y in range(c):
                    for z in range(c):
                        yield np.array([[a, x, y], [0, b, z], [0, 0, c]])


def _at(
    q: np.ndarray, hessian: np.ndarray, cell: Atoms, atoms: Atoms, offsets: np.ndarray
) -> np.ndarray:
    """Sum over copies of H(0i, lj) exp(2πi q·(r_lj - r_0i)), ``(3n, 3n)``."""
    n = len(atoms)
    scaled = atoms.positions @ np.linalg.inv(atoms.cell[:])
    blocks = hessian.reshape(n, 3, len(offsets), n, 3)
    phases = np.exp(2j * np.pi * offsets @ q)
    summed = np.einsum("ialjb,l->iajb", blocks, phases)
    matrix = summed.reshape(3 * n, 3 * n) * _phases(q, scaled)
    return (matrix + matrix.conj().T) / 2


def _phases(q: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """exp(2πi q·(r_j - r_i)) for each element of a dynamical matrix, ``(3n, 3n)``."""
    inner = np.exp(2j * np.pi * (scaled[None] - scaled[:, None]) @ q)
    phases: np.ndarray = inner.repeat(3, axis=0).repeat(3, axis=1)
    return phases


def _rotated(
    matrix: np.ndarray, rotation: np.ndarray, targets: np.ndarray, lattice: np.ndarray
) -> np.ndarray:
    """D(Rq) = R D(q) R^T; translations drop out since phases are between atoms, not cells."""
    cartesian = lattice.T @ rotation @ np.linalg.inv(lattice.T)
    n = len(targets)
    blocks = matrix.reshape(n, 3, n, 3)
    turned = np.einsum("ac,icjd,bd->iajb", cartesian, blocks, cartesian)
    result = np.empty_like(turned)
    result[targets[:, None], :, targets[None]] = turned.transpose(0, 2, 1, 3)
    rotated: np.ndarray = result.reshape(3 * n, 3 * n)
    return rotated


def _atom_maps(phonon: Phonopy) -> list[Any]:
    """For each symmetry operation, the atom that each atom is mapped onto."""
    operations = phonon.primitive_symmetry.symmetry_operations
    scaled = phonon.primitive.scaled_positions
    maps = []
    for rotation, translation in zip(
        operations["rotations"], operations["translations"], strict=True
    ):
        moved = scaled @ rotation.T + translation
        difference = moved[:, None] - scaled[None]
        difference -= np.rint(difference)
        distance = np.linalg.norm(difference @ phonon.primitive.cell, axis=2)
        maps.append(distance.argmin(axis=1))
    return maps
