"""What every training structure says of itself, and when its atoms are too close."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.structures.geometry import complete_cell
from dpa3sim.structures.inspection import pairs

if TYPE_CHECKING:
    from ase import Atoms

# Keys of ``info``; readers of labels ignore them.
KIND, PARENT, DETAIL = "config_type", "parent", "detail"
# The extra inputs of a model, which a structure passes on to what is made of it.
_INPUTS = ("charge", "spin", "charge_spin", "fparam")


def plain(atoms: Atoms) -> Atoms:
    """Elements, positions, cell, periodicity and extra inputs; no labels, constraints or masses."""
    from ase import Atoms

    found = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    found.info = {name: atoms.info[name] for name in _INPUTS if name in atoms.info}
    if atoms.has("aparam"):
        found.set_array("aparam", atoms.get_array("aparam"))
    return found


def marked(atoms: Atoms, kind: str, parent: str, detail: str = "") -> Atoms:
    """The structure itself, which from now on says what it is.

    Args:
        atoms: the structure. kind: of :data:`~dpa3sim.sample.settings.KINDS`.
        parent: name of the structure that it was made of. detail: how it was made, if needed.
    """
    atoms.info |= {KIND: kind, PARENT: parent}
    if detail:
        atoms.info[DETAIL] = detail
    return atoms


def kind_of(atoms: Atoms) -> str:
    """The kind that a structure says it is; an empty text if it says nothing."""
    return str(atoms.info.get(KIND, ""))


def too_close(atoms: Atoms, share: float) -> bool:
    """Whether two atoms are closer than ``share`` times the sum of their covalent radii."""
    from ase.data import covalent_radii

    if share == 0 or len(atoms) == 0:
        return False
    radii = covalent_radii[atoms.numbers]
    i, j, distances = pairs(atoms.positions, atoms.cell[:], atoms.pbc, 2 * share * radii.max())
    return bool((distances < share * (radii[i] + radii[j])).any())


def supercell(atoms: Atoms, min_atoms: int, max_atoms: int) -> Atoms:
    """The structure repeated along its shortest periodic sides until it has enough atoms.

    It never has more than ``max_atoms``, unless it had before; then it is as it was. Structures
    that are not periodic are as they were.
    """
    from dpa3sim.protocols.crystals.supercells import widths

    periodic = np.flatnonzero(atoms.pbc)
    repeats = np.ones(3, dtype=int)
    if len(periodic):
        sides = widths(complete_cell(atoms.cell[:], atoms.pbc))
        while len(atoms) * repeats.prod() < min_atoms:
            larger = repeats.copy()
            larger[periodic[np.argmin((sides * repeats)[periodic].round(6))]] += 1
            if len(atoms) * larger.prod() > max_atoms:
                break
            repeats = larger
    repeated = plain(atoms).repeat(repeats.tolist())
    repeated.info = plain(atoms).info
    return repeated
