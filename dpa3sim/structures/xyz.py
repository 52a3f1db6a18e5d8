"""XYZ in its dialects: plain, extended (ASE, GPUMD in small letters), and with i-PI's comments."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Iterator
from contextlib import redirect_stdout
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
MAX_COLUMNS = 10_000
KEYS = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
# Results that ASE insists on in its own form; they are no part of the structure.
RESULTS = re.compile(
    r"(?<![\w\"'])(virial|stress|dipole|energy|free_energy|magmom|polarization)(?=\s*=)"
)
# Names of columns in other programs.
COLUMNS = {"species": "species", "pos": "pos", "z": "Z", "mass": "masses", "masses": "masses"}
IPI_CELL = re.compile(r"CELL\s*[(\[{](abcABC|H|GENH)[)\]}]\s*:\s*([-+\d.eE\s]*)")
IPI_QUANTITY = re.compile(r"\b([a-z_]+)\{([^{}]*)\}")
# i-PI's trajectories whose three columns are positions.
IPI_PLACES = ("positions", "x_centroid", "positions_ase")
# A comment that gives a cell in some other way.
CELL_WORDS = re.compile(
    r"\b(lattice|unit_?cell|cell\w*|box\w*|pbc|boundary|abc|vec\d|[abc]|alpha|beta|gamma)\b\s*[=:({\[]"
    r"|\b(lattice|unit_? ?cell|cell(?!ul)|box|pbc|abc|cryst|tv\b)\w*",
    re.IGNORECASE,
)
# Exponents of Fortran.
_FORTRAN = re.compile(r"(?<=[\d.])[dD]([-+]?\d+)$")
NUMBER = re.compile(r"(?<![\w.])[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(?![\w.])")


def frames(source: TextIO, last: bool, given: ReadingSettings | None = None) -> Iterator[Frame]:
    """The frames of a file, or only the last one.

    Args:
        given: the elements of numbered atoms.

    Raises:
        ValueError: it is not an xyz file.
        InputError: the cell, an element or a unit of a frame is not understood.
    """
    room = MAX_COUNT + source.seek(0, io.SEEK_END)
    source.seek(0)
    found = _blocks(source, room)
    if last:
        found = iter(deque(found, maxlen=1))
    for block in found:
        yield _frame(block, given or ReadingSettings())


def _blocks(source: TextIO, room: int) -> Iterator[list[str]]:
    """The lines of each frame: number of atoms, comment, atoms, and ADF's VEC lines.

    Args:
        room: the largest number of atoms in a file of this size.

    Raises:
        ValueError: a count is not valid, or the file ends too early.
    """
    line, number = source.readline(), 0
    while line:
        if not line.strip():
            line = source.readline()
            continue
        count = int(line.split()[0])
        if not 0 <= count <= room:
            raise ValueError(f"frame {number} claims {count} atoms")
        block = [str(count)]
        for _ in range(count + 1):
            line = source.readline()
            if not line:
                raise ValueError(f"frame {number} has {len(block) - 1} of {count + 1} lines")
            block.append(line.rstrip("\r\n"))
        line = source.readline()
        while line.startswith("VEC"):
            block.append(line.rstrip("\r\n"))
            line = source.readline()
        yield block
        number += 1


def _frame(block: list[str], given: ReadingSettings) -> Frame:
    comment = block[1].strip()
    if found := IPI_CELL.search(comment):
        return _of_ipi(block, found, given)
    looks_so = comment.lstrip("# ").startswith("CELL") or IPI_QUANTITY.search(comment)
    if looks_so and "{" in comment and "=" not in comment:
        raise InputError(
            f"the comment {_short(comment)!r} looks like one of i-PI, but cannot be read"
        )
    return Frame(
        _checked(_read(block, given), comment, any(w.startswith("VEC") for w in block[-3:]))
    )


def _read(block: list[str], given: ReadingSettings) -> Atoms:
    """A frame as ASE reads it, with the keywords of other programs in ASE's spelling.

    Raises:
        ValueError: it is not a frame. InputError: a symbol is not an element.
    """
    try:
        return _by_ase(block)
    except (KeyError, ValueError):
        changed = _spelled(block, given)
        if changed == block:
            raise
        return _by_ase(changed)


def _by_ase(block: list[str]) -> Atoms:
    from ase.io.extxyz import read_xyz

    with as_elements():
        (atoms,) = read_xyz(
            io.StringIO("\n".join(block) + "\n"), index=slice(None), properties_parser=_properties
        )
        return resolved(atoms)


def _spelled(block: list[str], given: ReadingSettings) -> list[str]:
    """A frame with elements for labels (``Fe1``) and types, and numbers that Python knows.

    Raises:
        InputError: a symbol is not an element, or is the number of a type.
    """
    comment = RESULTS.sub(r"_\1", block[1])
    place = _place_of_symbols(comment)
    if place is None:
        return [block[0], comment, *block[2:]]
    count, rows = int(block[0]), []
    for line in block[2 : 2 + count]:
        words = line.split()
        if len(words) <= place:
            return [block[0], comment, *block[2:]]
        words[place] = _element(words[place], given)
        rows.append(" ".join(_FORTRAN.sub(r"e\1", word) for word in words))
    return [block[0], comment, *rows, *block[2 + count :]]


def _place_of_symbols(comment: str) -> int | None:
    """The column of the symbols, from 0; None if there is none."""
    words = str(_properties(comment).get("Properties", "species:S:1")).split(":")
    before = 0
    for name, count in zip(words[::3], words[2::3], strict=False):
        if name == "species":
            return before
        before += _whole(count) or 0
    return None


def _element(word: str, given: ReadingSettings) -> str:
    """The element of a symbol, a label such as ``Fe1`` or ``O_w``, or a numbered type.

    Raises:
        InputError: it is none.
    """
    if re.fullmatch(r"\d+", word):
        if wanted := given.symbols():
            number = int(word)
            if not 1 <= number <= len(wanted):
                chosen(wanted, number, "the file")
            return wanted[number - 1]
        raise InputError(
            f"its atoms have numbers ({word}), which can be types or atomic numbers; write "
            "symbols, or pass the elements of the types in their order, such as --elements O,H"
        )
    found = re.fullmatch(r"([A-Za-z]{1,2})([\d_+\-].*)?", word)
    symbol = found.group(1).capitalize() if found else ""
    if symbol in SYMBOLS or symbol in ISOTOPES:
        return symbol
    raise InputError(f"{word[:20]!r} is not an element")


def _properties(line: str) -> dict[str, Any]:
    """The content of the comment of an extended frame.

    Raises:
        ValueError: the cell is not valid, or there are too many columns.
        InputError: the same key occurs twice in different spelling.
    """
    from ase.io.extxyz import key_val_str_to_dict

    def spelled(match: re.Match[str]) -> str:
        return KEYS[match.group(1).lower()] + "="

    names = "|".join(KEYS)
    line = re.sub(rf"(?<![\w\"'])({names})\s*=\s*", spelled, line, flags=re.IGNORECASE)
    info: dict[str, Any] = key_val_str_to_dict(line)
    words = str(info.get("Properties", "")).split(":")
    for word in words:
        if (_whole(word) or 0) > MAX_COLUMNS:
            raise ValueError(f"{word} columns")
    for k in range(0, len(words) if "Properties" in info else 0, 3):
        words[k] = COLUMNS.get(words[k].lower(), words[k])
    if "Properties" in info:
        info["Properties"] = ":".join(words)
    return info


def _whole(word: str) -> int | None:
    """The number that Python, and ASE's reader, read from a word, even ``1_0`` and ``٣``."""
    try:
        return int(word)
    except ValueError:
        return None


def _checked(atoms: Atoms, comment: str, vectors: bool) -> Atoms:
    """The structure, unless its comment gives a cell that was not understood.

    Raises:
        InputError: it gives such a cell.
    """
    known = atoms.cell.rank > 0 or vectors
    if atoms.pbc.any() and not known:
        raise InputError("the comment says that the frame is periodic, but gives no Lattice")
    if not known and _names_a_cell(comment):
        raise InputError(
            f"the comment {_short(comment)!r} seems to give a cell, but not in a known "
            'format; write it as Lattice="ax ay az bx by bz cx cy cz" (Å), or pbc="F F F" for '
            "a molecule"
        )
    return atoms


def _names_a_cell(comment: str) -> bool:
    """Whether a comment seems to give a cell: a keyword and numbers, or numbers alone."""
    if re.search(r"\bpbc\s*=\s*[\"']?\s*F\w*[\s,]+F\w*[\s,]+F", comment, re.IGNORECASE):
        return False
    words = re.split(r"[\s,;]+", comment.strip("# \t,;"))
    found = [k for k, word in enumerate(words) if NUMBER.fullmatch(word)]
    values = [float(words[k]) for k in found]
    if len(found) in (3, 6, 9) and len(found) == len(words):
        return True
    in_a_row = len(found) in (6, 9) and found[-1] - found[0] == len(found) - 1
    if in_a_row and "=" not in comment and _is_a_cell(values):
        return True
    numbers = len(NUMBER.findall(comment))
    return numbers >= 3 and CELL_WORDS.search(comment) is not None


def _is_a_cell(values: list[float]) -> bool:
    """Whether six numbers can be lengths and angles of a cell, or nine its vectors, in any unit."""
    if len(values) == 6:
        return min(values[:3]) > 1 and all(30 <= angle <= 150 for angle in values[3:])
    return abs(np.linalg.det(np.reshape(values, (3, 3)))) > 1


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# -- i-PI -----------------------------------------------------------------------------------------


def _of_ipi(block: list[str], cell: re.Match[str], given: ReadingSettings) -> Frame:
    """A frame of i-PI; cell and positions are in the units of the comment, by default bohr.

    Raises:
        InputError: the unit is unknown, the quantity is not positions, or the cell is impossible.
    """
    comment = block[1]
    units = dict(IPI_QUANTITY.findall(comment))
    cell_unit = units.pop("cell", "atomic_unit")
    quantities = [name for name in units if name != "step"]
    places = [name for name in quantities if name in IPI_PLACES]
    if quantities and not places:
        raise InputError(f"the frame contains {quantities[0]}, not positions")
    atoms = _read([block[0], "", *block[2:]], given)
    atoms.positions *= _angstrom(units[places[0]] if places else "atomic_unit")
    atoms.set_cell(_ipi_cell(cell.group(1), cell.group(2)) * _angstrom(cell_unit))
    atoms.pbc = True
    return Frame(atoms)


def _angstrom(unit: str) -> float:
    """The value of a unit of length, Å.

    Raises:
        InputError: i-PI does not know the unit.
    """
    from ipi.utils.units import unit_to_internal

    try:
        with redirect_stdout(io.StringIO()):  # it prints a table for unknown units
            # From i-PI's own table, so that its rounding of a bohr does not matter.
            scale, angstrom = (unit_to_internal("length", u, 1.0) for u in (unit, "angstrom"))
    except Exception:  # i-PI raises several kinds of errors
        raise InputError(f"the comment has the unknown unit of length {unit!r}") from None
    return float(scale / angstrom)


def _ipi_cell(kind: str, text: str) -> np.ndarray:
    """Lattice vectors as rows from i-PI's three ways to write them.

    H lists them as columns (upper triangular), GENH as rows.
    """
    from ase.geometry import cellpar_to_cell

    words = text.split()
    count = 6 if kind == "abcABC" else 9
    try:
        values = np.array([float(word) for word in words[:count]])
    except ValueError:
        values = np.zeros(0)
    if len(values) < count or not np.isfinite(values).all():
        raise InputError(f"CELL({kind}) does not have {count} numbers")
    if kind != "abcABC":
        matrix = values.reshape(3, 3)
        return matrix.T if kind == "H" else matrix
    try:
        return np.asarray(cellpar_to_cell(values))
    except AssertionError:
        raise InputError(f"CELL(abcABC) {' '.join(words[:6])} does not form a cell") from None
