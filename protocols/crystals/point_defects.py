"""Sites of a crystal, and supercells with an atom left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .cells import Cells, symmetry

if TYPE_CHECKING:
    from ase import Atoms

# The neighbours of a vacancy are at most this many times as far as the nearest one.
FIRST_SHELL = 1.25


@dataclass(frozen=True)
class Site:
    """A site of the crystal, representing all symmetry-equivalent ones.

    Attributes:
        index: of its atom in the primitive cell. input_index: of one in the input cell.
        element: its element. wyckoff: its Wyckoff letter.
        multiplicity: number of equivalent sites in the primitive cell.
    """

    index: int
    input_index: int
    element: str
    wyckoff: str
    multiplicity: int


def sites(cells: Cells) -> list[Site]:
    """The symmetry-inequivalent sites of a crystal."""
    primitive = cells.primitive
    dataset = symmetry(primitive.atoms, cells.symprec)
    kinds = dataset.equivalent_atoms
    return [
        Site(
            index=int(index),
            input_index=int(np.flatnonzero(primitive.index == index)[0]),
            element=primitive.atoms.symbols[index],
            wyckoff=dataset.wyckoffs[index],
            multiplicity=int(np.count_nonzero(kinds == index)),
        )
        for index in np.unique(kinds)
    ]


def without(perfect: Atoms, index: int) -> Atoms:
    """The structure without one atom."""
    atoms = perfect.copy()
    del atoms[index]
    return atoms


def _distances(atoms: Atoms, point: np.ndarray) -> np.ndarray:
    from ase.geometry import find_mic

    return np.asarray(find_mic(atoms.positions - point, atoms.cell, atoms.pbc)[1])


def _first_shell(atoms: Atoms, point: np.ndarray) -> np.ndarray:
    distance = _distances(atoms, point)
    return np.flatnonzero(distance <= FIRST_SHELL * distance.min())


def rattled(start: Atoms, hole: np.ndarray, amount: float, rng: np.random.Generator) -> Atoms:
    """The structure with the neighbours of a vacancy at ``hole`` displaced at random."""
    atoms = start.copy()
    near = _first_shell(atoms, hole)
    atoms.positions[near] += rng.normal(scale=amount, size=(len(near), 3))
    return atoms


def shell_displacement(relaxed: Atoms, start: Atoms, hole: np.ndarray) -> float:
    """How much the nearest neighbours moved away from the vacancy, on average, Å."""
    near = _first_shell(start, hole)
    return float((_distances(relaxed, hole) - _distances(start, hole))[near].mean())


def image_distance(perfect: Atoms) -> float:
    """Distance of an atom to its nearest periodic image, Å."""
    from ase.geometry import minkowski_reduce

    return float(np.linalg.norm(minkowski_reduce(perfect.cell[:])[0], axis=1).min())
