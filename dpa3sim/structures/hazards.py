"""What ASE's readers pass over in silence, although it makes another structure of the file."""

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
# Statements by which a file lists only a part of its atoms, or a cell that is not read.
_PARTS = {
    "res": (r"(?mi)^SYMM\b|^LATT\s+(?!-1\b)[-\d]", "lists only the atoms that symmetry leaves"),
    "proteindatabank": (
        r"(?m)^CRYST1.{49}(?=.*\S)(?!\s*P ?1\s*(\d+\s*)?$)(?!\s*1\s*$)",
        "lists only the atoms that its space group leaves",
    ),
    "dmol-car": (
        r"(?m)^PBC(?!=)(\s+[-\d.]+){6}\s+\((?!P1\))",
        "lists only the atoms that its space group leaves",
    ),
    "espresso-in": (
        r"(?mi)^\s*([^!]*,)?\s*space_group\s*=|crystal_sg",
        "lists only the atoms that its space group leaves",
    ),
    "turbomole": (r"(?m)^\s*\$(periodic|cell|lattice)\b", "gives a cell, which is not read"),
}
_WAY_OUT = "convert it to a CIF or a POSCAR with all atoms of the cell"


def check(kind: str, source: Any) -> tuple[str, ...]:
    """Warnings of a file that ASE reads.

    Args:
        kind: its format. source: the path, or the open file, which is at its beginning again after.

    Raises:
        InputError: ASE would take a part of the structure for all of it.
    """
    if kind not in _PARTS:
        return ()
    pattern, what = _PARTS[kind]
    if re.search(pattern, _text(source)):
        raise InputError(f"{what}; {_WAY_OUT}")
    return ()


def mended(kind: str, atoms: Atoms, source: Any, given: ReadingSettings) -> Atoms:
    """The structure with what its format says and ASE does not take: masses, or elements."""
    if kind == "espresso-in":
        _espresso_masses(atoms, _text(source))
    if kind == "eon" and atoms.cell.rank == 3:  # the format has no other crystals
        atoms.set_pbc(True)
    if kind == "proteindatabank" and np.allclose(atoms.cell.lengths(), 1.0):
        atoms.set_cell(None)  # which the format writes for what is no crystal
        atoms.set_pbc(False)
    if kind == "lammps-dump-binary":
        return _numbered(atoms, given)
    return atoms


def _espresso_masses(atoms: Atoms, text: str) -> None:
    """Heavy hydrogen of an input of Quantum ESPRESSO, where its mass alone tells it."""
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
            # As much as people round, and far from hydrogen's own.
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
    """The species of each atom as the file names it, in its order."""
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
    """A structure whose numbers are types.

    Raises:
        InputError: the user gave no elements for them.
    """
    from ase.data import atomic_numbers

    wanted = given.symbols()
    if not wanted:
        raise InputError(
            "its atoms have numbered types, which are no elements; give the elements of the types "
            "in their order, as --elements O,H"
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
    """The content of a file that is a text, as far as it matters."""
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
