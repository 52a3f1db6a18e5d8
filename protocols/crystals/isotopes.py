"""Isotopes: atoms of one element that differ in their mass are different species of a crystal.

Forces do not depend on masses, but vibrations do: no symmetry may exchange isotopes, and no smaller
cell may merge them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

# Masses (u) that agree to so many decimals are equal, since files round them.
DECIMALS = 6
# Difference between the codes of two isotopes of an element, larger than any atomic number.
STEP = 1000


def species(atoms: Atoms) -> np.ndarray:
    """Whole numbers ``(n,)``, equal for atoms of the same element and mass.

    A number is the atomic number plus :data:`STEP` times the place of the mass among the masses of
    that element in ``atoms``, so that it is the atomic number if every element has one mass.
    """
    numbers = np.asarray(atoms.numbers)
    if not atoms.has("masses"):
        return numbers
    masses, codes = atoms.get_masses().round(DECIMALS), numbers.copy()
    for number in np.unique(numbers):
        here = numbers == number
        codes[here] += STEP * np.unique(masses[here], return_inverse=True)[1]
    return codes


def symbols(atoms: Atoms) -> list[str]:
    """A name for each atom in phonopy's notation, with the place of its mass: ``H``, ``H1``."""
    places = species(atoms) // STEP
    return [f"{s}{p or ''}" for s, p in zip(atoms.symbols, places.tolist(), strict=True)]


def check_masses(atoms: Atoms) -> None:
    """Raise InputError unless all masses are positive numbers, as dynamics needs."""
    masses = atoms.get_masses()
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(bad):
        atom = int(bad[0])
        raise InputError(
            f"atom {atom} ({atoms.symbols[atom]}) has the mass {masses[atom]:g} u; correct the "
            "masses of the structure, or leave them out"
        )
