"""POSCAR and CONTCAR of VASP 4, 5 and 6, with the labels and flags of other programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES, Frame, ReadingSettings, chosen
from dpa3sim.structures.isotopes import as_elements, resolved

if TYPE_CHECKING:
    from ase import Atoms

# A count that is larger than this and larger than the file is not a count.
MAX_COUNT = 1_000_000


@dataclass
class _Lines:
    """The lines of a file, which are read one by one."""

    lines: list[str]
    number: int = 0

    def next(self) -> str:
        """The next line.

        Raises:
            ValueError: the file has ended.
        """
        self.number += 1
        if self.number > len(self.lines):
            raise ValueError(f"the file ends at line {len(self.lines)}")
        return self.lines[self.number - 1]

    def numbers(self, count: int) -> list[float]:
        """``count`` numbers from the beginning of the next line.

        Raises:
            ValueError: the line has fewer numbers.
        """
        words = self.next().split()
        try:
            found = [float(re.sub("[dD]", "e", word)) for word in words[:count]]
        except ValueError:
            found = []
        if len(found) < count:
            text = self.lines[self.number - 1].strip()[:40]
            raise ValueError(f"line {self.number} ({text!r}) does not have {count} numbers")
        return found


def frames(source: TextIO, given: ReadingSettings, path: str) -> Iterator[Frame]:
    """The structure of a file, with its constraints and velocities.

    Args:
        source: the file. given: what the file does not say.
        path: its location; a POTCAR or OUTCAR beside it names the elements of a file of VASP 4.

    Raises:
        ValueError: it is not a POSCAR.
        InputError: it does not name its elements, or names different ones twice.
    """
    lines = _Lines(source.read().splitlines())
    comment, scale = lines.next(), _scale(lines)
    cell = np.array([lines.numbers(3) for _ in range(3)])
    if scale[0] < 0:
        volume = abs(np.linalg.det(cell))
        if volume == 0:
            raise ValueError("the cell has no volume")
        scale = np.cbrt(-scale / volume)
    cell *= scale
    names, counts = _species(lines)
    total = sum(counts)
    if total > MAX_COUNT + len(lines.lines):
        raise ValueError(f"{total} atoms are more than the file can contain")
    mode = lines.next().strip().lower()
    selective = mode.startswith("s")
    mode = lines.next().strip().lower() if selective else mode
    rows, rest = [], []
    for _ in range(total):
        rows.append(lines.numbers(3))
        rest.append(lines.lines[lines.number - 1].split("!")[0].split("#")[0].split()[3:])
    labels, flags = _split(rest, selective, names, counts)
    symbols = _symbols(names, counts, labels, comment, given, path)
    velocities = _velocities(lines, total)
    atoms = _atoms(symbols, np.array(rows).reshape(-1, 3), cell, mode, scale)
    if velocities is not None:
        atoms.set_velocities(velocities)
    if flags is not None:
        _constrain(atoms, flags)
    yield Frame(atoms)


def _scale(lines: _Lines) -> np.ndarray:
    """One factor or three; a single negative one is the volume of the cell.

    Raises:
        ValueError: there are neither one nor three.
    """
    found: list[float] = []
    for word in lines.next().split()[:3]:
        try:
            found.append(float(re.sub("[dD]", "e", word)))
        except ValueError:
            break
    if len(found) not in (1, 3) or 0 in found or (len(found) == 3 and min(found) < 0):
        raise ValueError("line 2 is not a scaling factor")
    return np.array(found)


def _species(lines: _Lines) -> tuple[list[str] | None, list[int]]:
    """The line of elements, None in files of VASP 4, and the number of atoms of each."""
    words = re.split("[!#]", lines.next())[0].split()
    names = None
    if words and not words[0].lstrip("+").isdigit():
        # `Na_pv/6a2f54` is Na with its potential.
        names = [word.split("/")[0].split("_")[0] for word in words]
        words = re.split("[!#]", lines.next())[0].split()
    try:
        counts = [int(word) for word in words]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise ValueError(f"line {lines.number} does not contain the numbers of atoms")
    if names is not None and len(names) != len(counts):
        raise ValueError(f"{len(names)} elements, but {len(counts)} numbers of atoms")
    return names, counts


# -- what follows the coordinates -----------------------------------------------------------------


def _split(
    rest: Sequence[Sequence[str]],
    selective: bool,
    names: Sequence[str] | None,
    counts: Sequence[int],
) -> tuple[list[str] | None, np.ndarray | None]:
    """Labels of all atoms, if there are any, and which coordinates may move, ``(n, 3)`` bool.

    VASP reads the flags right behind the coordinates; other programs write the element before or
    behind them, and a fluorine looks like a flag.

    Raises:
        InputError: the flags can be read in two ways.
    """
    if not selective:
        flagged = all(_flags(words) for words in rest)  # of no effect in such a file
        return None if flagged else _labels([words[0] if words else "" for words in rest]), None
    species = [n for n, c in zip(names or [], counts, strict=bool(names)) for _ in range(c)]
    readings = []
    for first in (0, 1):  # where the flags begin
        flags = [_flags(words[first:]) for words in rest]
        labels = [_symbol("".join(words[:1] if first else words[3:4])) for words in rest]
        if None in flags or (first and None in labels):
            continue
        fits = all(a in (None, b) for a, b in zip(labels, species, strict=bool(species)))
        readings.append((fits, _labels(labels), np.array(flags, dtype=bool).reshape(-1, 3)))
    if not readings:
        number = next((k for k, words in enumerate(rest) if _flags(words) is None), 0)
        raise InputError(f"selective dynamics: atom {number} needs three flags, each T or F")
    readings = [reading for reading in readings if reading[0]] or readings
    if any((reading[2] != readings[0][2]).any() for reading in readings):
        raise InputError(
            "selective dynamics: an F behind the coordinates can be fluorine or a flag here; "
            "write the flags right behind the coordinates, without elements"
        )
    return readings[0][1:]


def _flags(words: Sequence[str]) -> list[bool] | None:
    """Three Fortran logicals, T, .TRUE., t, F, .false. and so on; None if there are none."""
    found = [re.fullmatch(r"\.?([tTfF])[a-zA-Z]*\.?", word) for word in words[:3]]
    flags = [match.group(1) in "tT" for match in found if match]
    return flags if len(flags) == 3 else None


def _symbol(word: str) -> str | None:
    """The element of a label such as ``Fe``, ``Fe1`` or ``Fe_pv``."""
    found = re.match(r"[A-Za-z]{1,2}", word)
    symbol = found.group().capitalize() if found else ""
    rest = word[len(symbol) :]
    if (symbol in SYMBOLS or symbol in ISOTOPES) and re.fullmatch(r"(\d*|_\w*|[\d+-]*)", rest):
        return symbol
    return None


def _labels(words: Sequence[str | None]) -> list[str] | None:
    """The elements, if every atom has one."""
    found = [_symbol(word or "") for word in words]
    return None if not found or None in found else [s for s in found if s]


# -- elements -------------------------------------------------------------------------------------


def _symbols(
    names: Sequence[str] | None,
    counts: Sequence[int],
    labels: Sequence[str] | None,
    comment: str,
    given: ReadingSettings,
    path: str,
) -> list[str]:
    """The element of each atom.

    Raises:
        InputError: the file does not name them, or contradicts itself.
    """
    wanted = given.symbols()
    if names is None:
        if wanted:
            names = chosen(wanted, len(counts), "the file")
        elif labels is not None:
            return list(labels)
        else:
            names = _from_comment(comment, counts) or _from_neighbours(path, len(counts))
            if names is None:
                raise InputError(
                    "does not name its elements (a file of VASP 4); write them in a line above the "
                    "numbers "
                    "of atoms, or pass them with --elements"
                )
    for name in names:
        if name not in SYMBOLS and name not in ISOTOPES:
            raise InputError(f"unknown element {name!r} in the line of elements")
    symbols = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    if labels is not None:
        for number, (a, b) in enumerate(zip(symbols, labels, strict=True)):
            if a != b:
                raise InputError(
                    f"atom {number} is {a} according to the line of elements, and {b} by its label"
                )
    return symbols


def _from_comment(comment: str, counts: Sequence[int]) -> list[str] | None:
    """The elements from the first line: ``Ga N``, or a formula such as ``Ga2N2``."""
    words = re.split(r"[\s,]+", comment.strip())
    first = [re.sub(r"[\d.]+$", "", word) for word in words[: len(counts)]]
    if len(first) == len(counts) and all(word in SYMBOLS or word in ISOTOPES for word in first):
        more = words[len(counts) : len(counts) + 1]
        return None if more and more[0] in SYMBOLS else first
    formula = re.split(r"[_\-]", words[0])[0]
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    if "".join(s + n for s, n in parts) != formula or any(s not in SYMBOLS for s, _ in parts):
        return None
    merged: list[tuple[str, int]] = []
    for symbol, number in parts:
        merged.append((symbol, int(number or 1)))
    for before, after in pairwise(merged):
        if before[0] == after[0]:
            return None
    if len(merged) != len(counts):
        return None
    ratios = {count / number for (_, number), count in zip(merged, counts, strict=True) if number}
    return [symbol for symbol, _ in merged] if len(ratios) == 1 else None


def _from_neighbours(path: str, count: int) -> list[str] | None:
    """The elements from the potentials of a POTCAR or an OUTCAR in the same folder."""
    for name in ("POTCAR", "OUTCAR"):
        file = Path(path).with_name(name) if path != "-" else Path(name)
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                found = [line.split()[3] for line in lines if re.match(r"\s*TITEL\s*=", line)]
        except (OSError, ValueError, IndexError):
            continue
        names = [word.split("_")[0].split(".")[0] for word in found]
        if len(names) == count and all(name in SYMBOLS for name in names):
            return names
    return None


# -- the structure --------------------------------------------------------------------------------


def _atoms(
    symbols: Sequence[str], rows: np.ndarray, cell: np.ndarray, mode: str, scale: np.ndarray
) -> Atoms:
    from ase import Atoms

    places: dict[str, Any]
    if mode[:1] in ("c", "k"):
        places = {"positions": rows * scale}
    else:
        places = {"scaled_positions": rows}
    with as_elements():
        atoms = Atoms(symbols, cell=cell, pbc=True, **places)
    return resolved(atoms)


def _constrain(atoms: Atoms, free: np.ndarray) -> None:
    """Fix atoms, or some of their coordinates along the cell vectors."""
    from ase.constraints import FixAtoms, FixScaled

    fixed = ~free
    constraints: list[Any] = []
    for index in np.flatnonzero(fixed.any(axis=1) & ~fixed.all(axis=1)):
        constraints.append(FixScaled(int(index), fixed[index], atoms.cell))
    if fixed.all(axis=1).any():
        constraints.append(FixAtoms(np.flatnonzero(fixed.all(axis=1))))
    atoms.set_constraint(constraints)


def _velocities(lines: _Lines, count: int) -> np.ndarray | None:
    """Velocities ``(n, 3)`` in ASE's units, if the file has Cartesian ones."""
    from ase.units import fs

    if count == 0 or lines.number >= len(lines.lines):
        return None
    mode = lines.next().strip().lower()
    if mode.startswith("l"):  # velocities of the lattice, from a run with a variable cell
        lines.number += 8
        mode = ""
    if mode[:1] not in ("", "c", "k"):
        return None
    try:
        return np.array([lines.numbers(3) for _ in range(count)]) / fs
    except ValueError:
        return None
