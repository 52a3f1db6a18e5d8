"""Small structures of different bonding on which a model is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.validate.literature import CRYSTALS

if TYPE_CHECKING:
    from ase import Atoms

RATTLE, SEED = 0.05, 1
MOVING = ("Si", "NaCl", "H2O")
# Water: molecules on a cubic grid, Å apart, as dense as the liquid.
GRID = 3.1


def probes(elements: Sequence[str], *, primitive: bool = False) -> dict[str, Atoms]:
    """The structures that consist of these elements, at their symmetric positions.

    Args:
        elements: of a model. primitive: the primitive cells of crystals, not the cubic ones.
    """
    names = ("Si", "C", "Cu", "NaCl", "MgO")
    found = {name: CRYSTALS[name].atoms(name, cubic=not primitive) for name in names}
    found["H2O"] = _water()
    known = {ATOMIC_NUMBERS[symbol] for symbol in elements}
    return {name: atoms for name, atoms in found.items() if known.issuperset(atoms.numbers)}


def moving(elements: Sequence[str]) -> dict[str, Atoms]:
    """The probes whose atoms are moved; any of them where the usual ones are of other elements."""
    known = probes(elements)
    return {name: known[name] for name in MOVING if name in known} or known


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
