"""Isotopes: atoms of one element that differ in their mass are different species of a crystal.

Forces do not tell them apart, vibrations do: no symmetry may exchange them, and no smaller cell may
merge them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

# Masses (u) that agree to so many decimals are equal: files round them.
DECIMALS = 6
# Between the numbers of two isotopes of an element: more than there are elements.
STEP = 1000


def species(atoms: Atoms) -> np.ndarray:
    """Whole numbers ``(n,)``, equal for atoms of the same element and mass.

    These are atomic numbers, plus :data:`STEP` times the place of the mass among the masses of
    that element in ``atoms``: they are atomic numbers where no element has more than one mass.
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
    """A name for each atom in phonopy's way, with the place of its mass: ``H``, ``H1``."""
    places = species(atoms) // STEP
    return [f"{s}{p or ''}" for s, p in zip(atoms.symbols, places.tolist(), strict=True)]


def check_masses(atoms: Atoms) -> None:
    """Raise InputError unless all masses are positive numbers, which dynamics need."""
    masses = atoms.get_masses()
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(bad):
        atom = int(bad[0])
        raise InputError(
            f"atom {atom} ({atoms.symbols[atom]}) has the mass {masses[atom]:g} u; correct the "
            "masses of the structure, or leave them out"
        )
