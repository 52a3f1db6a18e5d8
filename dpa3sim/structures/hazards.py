"""Content that ASE's readers silently ignore, although it changes the structure."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES, ReadingSettings, chosen
from dpa3sim.structures.isotopes import SAME_MASS, set_masses

if TYPE_CHECKING:
    from ase import Atoms

_LARGEST = 4 << 20
# Statements with which a file lists only some of its atoms, or a cell that is not read.
_PARTS = {
    "res": (r"(?mi)^SYMM\b|^LATT\s+(?!-1\b)[-\d]", "lists only the symmetry-inequivalent atoms"),
    "proteindatabank": (
        r"(?m)^CRYST1.{49}(?=.*\S)(?!\s*P ?1\s*(\d+\s*)?$)(?!\s*1\s*$)",
        "lists only the symmetry-inequivalent atoms of its space group",
    ),
    "dmol-car": (
        r"(?m)^PBC(?!=)(\s+[-\d.]+){6}\s+\((?!P1\))",
        "lists only the symmetry-inequivalent atoms of its space group",
    ),
    "espresso-in": (
        r"(?mi)^\s*([^!]*,)?\s*space_group\s*=|crystal_sg",
        "lists only the symmetry-inequivalent atoms of its space group",
    ),
    "turbomole": (r"(?m)^\s*\$(periodic|cell|lattice)\b", "has a cell, which ASE does not read"),
}
_WAY_OUT = "convert it to a CIF or a POSCAR with all atoms of the cell"


def check(kind: str, source: Any) -> tuple[str, ...]:
    """Check a file that ASE reads; returns warnings.

    Args:
        kind: its format. source: the path, or the open file, which is rewound afterwards.

    Raises:
        InputError: ASE would read only a part of the structure.
    """
    if kind not in _PARTS:
        return ()
    pattern, what = _PARTS[kind]
    if re.search(pattern, _text(source)):
        raise InputError(f"{what}; {_WAY_OUT}")
    return ()


def mended(kind: str, atoms: Atoms, source: Any, given: ReadingSettings) -> Atoms:
    """The structure with masses or elements that its format has and ASE ignores."""
    if kind == "espresso-in":
        _espresso_masses(atoms, _text(source))
    if kind == "eon" and atoms.cell.rank == 3:  # the format has only periodic crystals
        atoms.set_pbc(True)
    if kind == "proteindatabank" and np.allclose(atoms.cell.lengths(), 1.0):
        atoms.set_cell(None)  # the format uses this cell for molecules
        atoms.set_pbc(False)
    if kind == "lammps-dump-binary":
        return _numbered(atoms, given)
    return atoms


def _espresso_masses(atoms: Atoms, text: str) -> None:
    """Set the mass of heavy hydrogen, which a Quantum ESPRESSO input shows by its mass only."""
    card = re.search(
        r"(?mi)^\s*ATOMIC_SPECIES[^\n]*\n((?:\s*[A-Za-z]\S*\s+[\d.deDE+-]+\s+\S+.*\n?)+)", text
    )
    if card is None:
        return
    heavy = {}
    for line in card.group(1).splitlines():
        words = line.split()
        try:
            mass = float(words[1].lower().replace("d", "e"))
        except (IndexError, ValueError):
            continue
        for isotope in ISOTOPES.values():
            # Within usual rounding, and far from the mass of hydrogen.
            if abs(mass - isotope) < 5 * SAME_MASS and re.match(r"[HhDdTt](?![a-z])", words[0]):
                heavy[words[0]] = isotope
    rows = _espresso_labels(text)
    if not heavy or len(rows) != len(atoms):
        return
    for label, mass in heavy.items():
        which = np.array([row == label for row in rows]) & (atoms.numbers == 1)
        if which.any():
            set_masses(atoms, which, mass)


def _espresso_labels(text: str) -> list[str]:
    """The species of each atom as named in the file, in its order."""
    card = re.search(r"(?mi)^\s*ATOMIC_POSITIONS[^\n]*\n", text)
    rows = []
    for line in text[card.end() :].splitlines() if card else ():
        words = line.split("!")[0].split("#")[0].split()
        if not words:
            continue
        if len(words) < 4 or not re.match(r"[-+.\d(]", words[1]):
            break
        rows.append(words[0])
    return rows


def _numbered(atoms: Atoms, given: ReadingSettings) -> Atoms:
    """A structure whose numbers are atom types.

    Raises:
        InputError: the user did not name their elements.
    """
    from ase.data import atomic_numbers

    wanted = given.symbols()
    if not wanted:
        raise InputError(
            "its atoms have numbered types, which are not elements; pass the elements of the types "
            "in their order, such as --elements O,H"
        )
    count = int(atoms.numbers.max(initial=0))
    names = chosen(wanted, max(count, len(wanted)), "the file")
    types = atoms.numbers.copy()
    symbols = ["H" if name in ISOTOPES else name for name in names]
    atoms.numbers[:] = [atomic_numbers[symbols[number - 1]] for number in types]
    for k, name in enumerate(names, start=1):
        if name in ISOTOPES and (types == k).any():
            set_masses(atoms, types == k, ISOTOPES[name])
    return atoms


def _text(source: Any) -> str:
    """The content of a text file, up to a limit."""
    if isinstance(source, str):
        try:
            with Path(source).open(encoding="utf-8", errors="replace") as file:
                return file.read(_LARGEST)
        except OSError:
            return ""
    if not isinstance(source, io.TextIOBase):
        return ""
    where = source.tell()
    source.seek(0)
    text = source.read(_LARGEST)
    source.seek(where)
    return text
