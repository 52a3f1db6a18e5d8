"""Small structures of different bonding on which a model is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS

if TYPE_CHECKING:
    from ase import Atoms

RATTLE, SEED = 0.05, 1
# Water: molecules on a cubic grid, Å apart, as dense as the liquid.
GRID = 3.1


def probes(elements: Sequence[str]) -> dict[str, Atoms]:
    """The structures that consist of these elements, at their symmetric positions.

    Of an element by itself the list has no crystal but these; a model of other elements has none.
    """
    from ase.build import bulk

    found = {
        "Si": bulk("Si", a=5.431, cubic=True),
        "C": bulk("C", a=3.567, cubic=True),
        "Cu": bulk("Cu", a=3.615, cubic=True),
        "NaCl": bulk("NaCl", "rocksalt", a=5.64, cubic=True),
        "MgO": bulk("MgO", "rocksalt", a=4.212, cubic=True),
        "H2O": _water(),
    }
    known = {ATOMIC_NUMBERS[symbol] for symbol in elements}
    return {name: atoms for name, atoms in found.items() if known.issuperset(atoms.numbers)}


def rattled(atoms: Atoms) -> Atoms:
    """The structure with all atoms moved off their positions at random."""
    moved = atoms.copy()
    moved.rattle(RATTLE, seed=SEED)
    return moved


def _water() -> Atoms:
    """Eight molecules, each turned another way."""
    from ase.build import molecule

    rng = np.random.default_rng(SEED)
    box = molecule("H2O")[:0]
    for place in np.ndindex(2, 2, 2):
        one = molecule("H2O")
        one.rotate(float(rng.uniform(0, 360)), rng.normal(size=3), center="COM")
        one.positions += GRID * np.array(place)
        box += one
    box.set_cell([2 * GRID] * 3)
    box.pbc = True
    return box
