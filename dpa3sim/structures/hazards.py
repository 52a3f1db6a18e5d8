"""Content that ASE's readers silently ignore, although it changes the structure."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES, ReadingSettings, chosen
from dpa3sim.structures.isotopes import set_masses

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


def prepared(kind: str, source: Any) -> Any:
    """The source for ASE's reader; PDB and GROMACS files with elements instead of names.

    Raises:
        InputError: an atom has no element, or several places.
    """
    from dpa3sim.structures import residues

    readers = {"proteindatabank": residues.pdb, "gromacs": residues.gromacs}
    return readers[kind](source.read()) if kind in readers else source


def mended(kind: str, atoms: Atoms, given: ReadingSettings) -> Atoms:
    """The structure with a cell or elements that its format has and ASE ignores."""
    if kind == "eon" and atoms.cell.rank == 3:  # the format has only periodic crystals
        atoms.set_pbc(True)
    if kind == "proteindatabank" and np.allclose(atoms.cell.lengths(), 1.0):
        atoms.set_cell(None)  # the format uses this cell for molecules
        atoms.set_pbc(False)
    if kind == "lammps-dump-binary":
        return _numbered(atoms, given)
    return atoms


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
