"""Dimers and isolated atoms: what keeps atoms apart, and the zero of the energy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.sample.frames import marked

if TYPE_CHECKING:
    from ase import Atoms

# Distances of dimers in sums of covalent radii; beyond these, to the cutoff of the model.
NEAREST, FARTHEST = 0.6, 1.6
# One distance beyond for so many within.
_BEYOND = 3


def dimer_distances(first: int, second: int, points: int, cutoff: float) -> np.ndarray:
    """Distances of two elements, Å, ascending.

    Args:
        first, second: atomic numbers. points: number of distances up to :data:`FARTHEST`.
        cutoff: of the model, Å.
    """
    from ase.data import covalent_radii

    bond = float(covalent_radii[first] + covalent_radii[second])
    near = np.linspace(NEAREST * bond, FARTHEST * bond, points)
    if FARTHEST * bond >= cutoff or points == 0:
        return near[near < cutoff]
    beyond = np.linspace(FARTHEST * bond, cutoff, 2 + points // _BEYOND)[1:-1]
    return np.concatenate([near, beyond])


def dimers(numbers: Sequence[int], points: int, cutoff: float) -> Iterator[Atoms]:
    """All pairs of the elements, at the distances of :func:`dimer_distances`."""
    from ase import Atoms

    for first, second in combinations_with_replacement(sorted(set(numbers)), 2):
        for distance in dimer_distances(first, second, points, cutoff):
            pair = Atoms([first, second], [[0, 0, 0], [0, 0, distance]])
            yield marked(pair, "dimers", str(pair.symbols), f"distance {distance:.3f} A")


def isolated_atoms(numbers: Sequence[int]) -> Iterator[Atoms]:
    """One atom of each element."""
    from ase import Atoms

    for number in sorted(set(numbers)):
        atom = Atoms([number], [[0, 0, 0]])
        yield marked(atom, "atoms", str(atom.symbols))
