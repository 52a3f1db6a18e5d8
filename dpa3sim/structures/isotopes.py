"""D and T are hydrogen with another mass, whichever library reads or writes the file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.structures.given import ISOTOPES

if TYPE_CHECKING:
    from ase import Atoms

# Masses differ between tables from the fourth digit on.
SAME_MASS = 0.01
# Files round masses: a mass within this, u, and this share is that of the element.
ROUNDED, RELATIVE = 0.02, 0.001
# The index of the first isotope in ASE's tables, which no file reaches by counting elements.
FIRST = 7919
_lock = threading.RLock()


@contextmanager
def as_elements() -> Iterator[None]:
    """Let ASE's readers and writers treat D and T as elements far beyond the last one.

    They look up symbols in two tables of the library, which temporarily contain these entries.
    Structures that were read in this way need :func:`resolved`.
    """
    from ase.data import atomic_numbers, chemical_symbols

    with _lock:
        before = len(chemical_symbols)
        if before < FIRST:  # not nested
            chemical_symbols.extend(["X"] * (FIRST - before))
            chemical_symbols.extend(ISOTOPES)
            atomic_numbers.update({symbol: FIRST + k for k, symbol in enumerate(ISOTOPES)})
        try:
            yield
        finally:
            if before < FIRST:
                del chemical_symbols[before:]
                for symbol in ISOTOPES:
                    del atomic_numbers[symbol]


def resolved(atoms: Atoms) -> Atoms:
    """Turn isotopes that were read within :func:`as_elements` to heavy hydrogen, in place."""
    found = [(atoms.numbers == FIRST + k, mass) for k, mass in enumerate(ISOTOPES.values())]
    known = atoms.has("masses")
    for which, _ in found:
        atoms.numbers[which] = 1
    for which, mass in found:
        if which.any() and not known:
            set_masses(atoms, which, mass)
    return atoms


def set_masses(atoms: Atoms, which: np.ndarray, mass: float) -> None:
    """Set the mass, u, of the atoms in ``which``, ``(n,)`` bool; the others keep theirs."""
    masses = atoms.get_masses()
    masses[which] = mass
    atoms.set_masses(masses)


def with_symbols(atoms: Atoms) -> Atoms:
    """A copy whose heavy hydrogen has its numbers within :func:`as_elements`.

    Without isotopes, it is the structure itself.
    """
    if not atoms.has("masses"):
        return atoms
    masses = atoms.get_masses()
    marked = atoms.copy()
    for k, mass in enumerate(ISOTOPES.values()):
        marked.numbers[(atoms.numbers == 1) & (np.abs(masses - mass) < SAME_MASS)] = FIRST + k
    return atoms if (marked.numbers == atoms.numbers).all() else marked


def names(symbols: Sequence[str], masses: np.ndarray) -> list[str]:
    """A name for each atom, equal for atoms of the same element and mass: ``H``, ``D``, ``O18``.

    Args:
        symbols: elements. masses: ``(n,)``, u.
    """
    from ase.data import atomic_masses, atomic_numbers

    found = []
    for symbol, mass in zip(symbols, masses.tolist(), strict=True):
        heavy = [d for d, m in ISOTOPES.items() if abs(mass - m) < SAME_MASS and symbol == "H"]
        usual = float(atomic_masses[atomic_numbers[symbol]])
        if abs(mass - usual) <= ROUNDED + RELATIVE * usual:
            found.append(symbol)
        else:
            found.append(heavy[0] if heavy else f"{symbol}{round(mass)}")
    return found
