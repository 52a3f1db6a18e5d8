"""Frames of files whose labels have names: extended XYZ, trajectories, databases."""

from __future__ import annotations

import io
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dpa3sim.common.errors import InputError
from dpa3sim.structures import formats, xyz
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import check_readable
from dpa3sim.train.data.frames import Frame, Rejected
from dpa3sim.train.data.labels import LabelReader
from dpa3sim.train.data.settings import DataSettings

if TYPE_CHECKING:
    from ase import Atoms

# The version of the tables of a screening (dpa3sim.screen.database).
SCREENING_VERSION = 2
_SQLITE = b"SQLite format 3\0"
# ASE reads these two only as 9 numbers, and would drop half of them.
_TENSORS = ("stress", "virial")
_KEPT = "label_"
# A frame is its place in the file, and what is there: a structure, or why it cannot be read.
Found = Iterator[tuple[int, "Atoms | InputError"]]


def frames(path: str, settings: DataSettings) -> Iterator[Frame | Rejected]:
    """The frames of a file, one after the other.

    Raises:
        InputError: the file cannot be read, a name that the user gave is absent, or stresses are
            in other units.
    """
    check_readable(Path(path))
    labels = LabelReader(settings)
    for number, atoms in _found(path):
        origin = f"{path}, frame {number}"
        try:
            if isinstance(atoms, InputError):
                raise atoms
            yield labels.frame(atoms, origin)
        except InputError as error:
            yield Rejected(origin, str(error))
    labels.finish(path)


def _found(path: str) -> Found:
    if _is_sqlite(path):
        return _database(path)
    if "extxyz" in formats.kinds(path, None, ReadingSettings())[:1]:
        return _xyz(path)
    return _trajectory(path)


# -- text and trajectories ------------------------------------------------------------------------


def _xyz(path: str) -> Found:
    """Frame by frame, so that a bad one does not hide those after it."""
    from ase.io.formats import open_with_compression

    number = 0
    with (
        open_with_compression(path, "rb") as binary,
        formats.Text(binary, encoding="utf-8-sig", errors="replace") as text,
    ):
        try:
            for block in _blocks(text):
                yield number, _xyz_frame(block)
                number += 1
        except InputError as error:
            yield number, _last(error)


def _blocks(source: TextIO) -> Iterator[list[str]]:
    """The lines of each frame: number of atoms, comment, atoms, and ADF's VEC lines.

    Raises:
        InputError: a frame does not begin with its number of atoms, or the file ends within one.
    """
    line = source.readline()
    while line:
        if not line.strip():
            line = source.readline()
            continue
        word = line.split()[0]
        if not (word.isascii() and word.isdigit()) or int(word[:20]) > xyz.MAX_COUNT:
            raise InputError(f"{word[:20]!r} is not a number of atoms")
        block = [line]
        for _ in range(int(word) + 1):
            line = source.readline()
            if not line:
                raise InputError(f"the file ends after {len(block) - 1} of {int(word) + 1} lines")
            block.append(line)
        line = source.readline()
        while line.startswith("VEC"):
            block.append(line)
            line = source.readline()
        yield block


def _xyz_frame(block: list[str]) -> Atoms | InputError:
    names = "|".join(_TENSORS)
    block[1] = re.sub(rf"(?<![\w\"'])({names})(?=\s*=)", rf"{_KEPT}\1", block[1])
    try:
        (frame,) = xyz.frames(io.StringIO("".join(block)), last=False)
    except InputError as error:
        return error
    except KeyError as error:  # ASE looks up symbols and types of columns
        return InputError(f"it has an unknown element or column {error}")
    except Exception as error:  # readers raise all kinds of errors
        return InputError(f"it cannot be read ({formats.short(error)})")
    for name in _TENSORS:
        if _KEPT + name in frame.atoms.info:
            frame.atoms.info[name] = frame.atoms.info.pop(_KEPT + name)
    return frame.atoms


def _trajectory(path: str) -> Found:
    """Any other format that has results, such as ``.traj``, OUTCAR and ``vasprun.xml``."""
    number = -1
    try:
        for number, frame in enumerate(formats.frames(path, None, ReadingSettings(), last=False)):
            yield number, frame if isinstance(frame, InputError) else frame.atoms
    except InputError as error:
        if number < 0:
            raise
        yield number + 1, _last(error)


def _last(error: InputError) -> InputError:
    return InputError(f"it cannot be read, and neither can the frames after it ({error})")


# -- databases ------------------------------------------------------------------------------------


def _is_sqlite(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _database(path: str) -> Found:
    """The rows of an ASE database or of a screening.

    Raises:
        InputError: it is neither, or it is damaged.
    """
    try:
        formats.check_tables(path)
        with closing(_read_only(path)) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        found = _screening(path) if "structures" in names else _ase_database(path)
        yield from found
    except InputError:
        raise
    except Exception as error:  # ASE's readers and sqlite raise all kinds of errors
        reason = formats.short(error)
        raise InputError(
            f"{path}: neither an ASE database nor results of a screening ({reason})"
        ) from None


def _read_only(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)


def _ase_database(path: str) -> Found:
    """Structures with their results; labels may also be among the keys or the data of a row."""
    import ase.db

    with ase.db.connect(path, type="db") as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.data, **row.key_value_pairs)
            yield row.id, atoms


def _screening(path: str) -> Found:
    """What the calculations of a screening ended with, with the results of the model."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.jsonio import decode

    with closing(_read_only(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != SCREENING_VERSION:
            raise InputError(f"{path}: holds results of a screening of another version")
        rows = database.execute(
            "SELECT id, structure FROM structures WHERE structure IS NOT NULL ORDER BY position"
        )
        for number, text in rows:
            data = decode(text)
            results = data.pop("results", {})
            atoms = Atoms.fromdict(data)
            if not atoms.pbc.all():  # the stress of a slab depends on its vacuum
                results.pop("stress", None)
            atoms.calc = SinglePointCalculator(atoms, **results)
            yield number, atoms
