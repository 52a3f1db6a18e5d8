"""Random variations of a structure: displacements, strains, other elements, point defects.

Each function returns new structures; random numbers come from the generator that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

# Random points of which the one with the most room becomes an interstitial site.
_POINTS = 64
# At most so many pairs of atoms are swapped.
_SWAPS = 4


def rattled(atoms: Atoms, amplitude: float, rng: np.random.Generator) -> Atoms:
    """Each coordinate displaced by a normal random number of this standard deviation, Å."""
    moved = atoms.copy()
    moved.positions += rng.normal(scale=amplitude, size=moved.positions.shape)
    return moved


def random_strain(largest: float, rng: np.random.Generator) -> np.ndarray:
    """A symmetric strain, ``(3, 3)``, whose components are uniform in ``[-largest, largest]``."""
    strain = np.zeros((3, 3))
    upper = np.triu_indices(3)
    strain[upper] = rng.uniform(-largest, largest, size=6)
    return strain + np.triu(strain, 1).T


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Cell and positions changed by ``1 + strain``, ``(3, 3)``."""
    changed = atoms.copy()
    changed.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return changed


def substituted(
    atoms: Atoms, substitutes: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> Atoms:
    """One or more atoms of the elements in ``substitutes`` exchanged by one of the others."""
    changed = atoms.copy()
    symbols = atoms.get_chemical_symbols()
    sites = [i for i, symbol in enumerate(symbols) if symbol in substitutes]
    for site in rng.choice(sites, size=int(rng.integers(1, len(sites) + 1)), replace=False):
        others = substitutes[symbols[site]]
        changed.symbols[site] = others[int(rng.integers(len(others)))]
    return changed


def swapped(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One to four pairs of unlike atoms exchanged; the composition stays."""
    changed = atoms.copy()
    numbers, free = atoms.numbers.copy(), np.arange(len(atoms))
    for _ in range(int(rng.integers(1, _SWAPS + 1))):
        if len(np.unique(atoms.numbers[free])) < 2:
            break
        first = int(rng.choice(free))
        second = int(rng.choice(free[atoms.numbers[free] != atoms.numbers[first]]))
        numbers[[first, second]] = numbers[[second, first]]
        # Each site takes part once: a second swap could undo the first.
        free = np.setdiff1d(free, [first, second])
    changed.numbers = numbers
    return changed


def with_vacancy(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One atom left out."""
    changed = atoms.copy()
    del changed[int(rng.integers(len(atoms)))]
    return changed


def with_interstitial(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A further atom of an element of the crystal, at the most spacious of 64 random points."""
    from ase import Atoms
    from ase.geometry import get_distances

    points = rng.uniform(size=(_POINTS, 3)) @ atoms.cell[:]
    distances = get_distances(points, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1]
    site = points[int(np.argmax(distances.min(axis=1)))]
    element = int(rng.choice(np.unique(atoms.numbers)))
    changed = atoms.copy()
    changed += Atoms([element], [site])
    return changed
