"""Any number of structures one by one: files of many frames, folders, archives, databases.

None of them is read as a whole; what cannot be read becomes an error with its place in the order.
"""

from __future__ import annotations

import glob
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dpa3sim.errors import InputError
from dpa3sim.files import usual_recursion
from dpa3sim.reading import (
    check_atoms,
    check_readable,
    check_tables,
    formats,
    keep_writable,
    opened,
    read_structures,
    short,
)

if TYPE_CHECKING:
    from ase import Atoms

# In a folder or an archive, other files are not structures; a file named by itself may be anything.
ENDINGS = (".vasp", ".poscar", ".cif", ".xyz", ".extxyz", ".traj", ".xsf", ".gen", ".pdb", ".in")
NAMES = ("POSCAR", "CONTCAR")
# A member of an archive that unpacks to more than this is no structure, bytes.
LARGEST_MEMBER = 2**30
PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Entry:
    """One structure of a screening.

    Attributes:
        origin: where it came from: the file as the user gave it, with the frame if it has several.
        label: short name.
        atoms: the structure, or why there is none.
    """

    origin: str
    label: str
    atoms: Atoms | InputError


def entries(arguments: Sequence[str]) -> Iterator[Entry]:
    """All structures that the arguments stand for, in a fixed order.

    An argument is a file, ``FILE@INDEX`` (some of its frames), a pattern such as ``'in/*.cif'``, a
    folder (searched through), a zip archive, an ASE database, or ``-`` for standard input. Of a
    file with several frames all are taken.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-" or ("@" in argument and not path.exists()):
            yield from _selected(argument)
        elif path.is_dir():
            yield from _folder(path)
        elif not path.exists() and PATTERN & set(argument):
            yield from _pattern(argument)
        else:
            yield from _file(path, argument, path.name)


def _selected(argument: str) -> Iterator[Entry]:
    for source in read_structures([argument]):
        if isinstance(source, InputError):
            yield Entry(argument, argument, source)
        else:
            yield Entry(source.origin, source.label, source.atoms)


def _pattern(argument: str) -> Iterator[Entry]:
    found = sorted(glob.glob(argument, recursive=True))
    if not found:
        yield Entry(argument, argument, InputError(f"{argument}: no file has such a name"))
    for name in found:
        if Path(name).is_dir():
            yield from _folder(Path(name))
        else:
            yield from _file(Path(name), name, Path(name).name)


def _folder(folder: Path) -> Iterator[Entry]:
    count = 0
    for root, folders, names in os.walk(folder):
        folders.sort()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            if _is_structure(name):
                count += 1
                path = Path(root, name)
                yield from _file(path, str(path), name)
    if not count:
        kinds = ", ".join((*NAMES, *ENDINGS))
        message = f"{folder}: no structure file is in this folder (names like {kinds})"
        yield Entry(str(folder), folder.name, InputError(message))


def _is_structure(name: str) -> bool:
    if name.startswith("."):
        return False
    return name.lower().endswith((*ENDINGS, ".zip", ".db")) or name.startswith(NAMES)


def _file(path: Path, origin: str, name: str) -> Iterator[Entry]:
    """The structures of one file; ``name`` is what it is called, wherever it lies now."""
    try:
        check_readable(path)
        if zipfile.is_zipfile(path):
            yield from _archive(path, origin)
        elif name.endswith(".db"):
            yield from _database(path, origin)
        else:
            yield from _frames(path, origin, name)
    except InputError as error:
        message = str(error).replace(str(path), origin)
        yield Entry(origin, name, InputError(message))


def _archive(path: Path, origin: str) -> Iterator[Entry]:
    """Members are unpacked one by one, under a name of ours: theirs may point anywhere."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            members = [
                m for m in archive.infolist() if _is_structure(PurePosixPath(m.filename).name)
            ]
            members = [m for m in members if not m.is_dir() and "__MACOSX" not in m.filename]
            if not members:
                raise InputError(f"{path}: no structure file is in this archive")
            for member in sorted(members, key=lambda m: m.filename):
                name = PurePosixPath(member.filename).name
                inner = f"{origin}:{member.filename}"
                if member.file_size > LARGEST_MEMBER or name.endswith(".zip"):
                    reason = "an archive in an archive" if name.endswith(".zip") else "too large"
                    yield Entry(inner, name, InputError(f"{inner}: is {reason}"))
                    continue
                unpacked = Path(folder, name)
                try:
                    with archive.open(member) as data:
                        unpacked.write_bytes(data.read(member.file_size + 1))
                # Whatever a damaged or encrypted archive makes zipfile raise.
                except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
                    yield Entry(inner, name, InputError(f"{inner}: cannot be unpacked ({error})"))
                    continue
                yield from _file(unpacked, inner, name)
                unpacked.unlink()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path}: no readable archive ({error})") from None


def _database(path: Path, origin: str) -> Iterator[Entry]:
    import ase.db

    try:
        check_tables(str(path))
        with ase.db.connect(path) as database:
            for row in database.select():
                yield _entry(f"{origin}@{row.id}", f"{path.stem}-{row.id}", row.toatoms())
    except InputError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parsing runs into
        raise InputError(f"{path}: no ASE database ({short(error)})") from None


def _frames(path: Path, origin: str, name: str) -> Iterator[Entry]:
    """Frame after frame; a file of one is called by its own name."""
    errors: list[str] = []
    label = Path(name).stem
    for kind in formats(str(path)):
        frames = _read(path, kind)
        try:
            first = next(frames, None)
        except InputError as error:
            errors.append(f"as {kind}: {error}")
            continue
        if first is None:
            errors.append(f"as {kind}: no structure in it")
            continue
        number, pending = 0, first
        try:
            for following in frames:
                yield _entry(f"{origin}@{number}", f"{label}-{number}", pending)
                number, pending = number + 1, following
        except InputError as error:
            yield _entry(f"{origin}@{number}", f"{label}-{number}", pending)
            broken = f"{origin}@{number + 1}"
            message = f"{broken}: cannot be read, nor what follows it ({error})"
            yield Entry(broken, f"{label}-{number + 1}", InputError(message))
            return
        if number:
            yield _entry(f"{origin}@{number}", f"{label}-{number}", pending)
        else:
            yield _entry(origin, label, pending)
        return
    raise InputError(f"{path}: no structure that ASE can read ({'; '.join(errors)})")


def _read(path: Path, kind: str) -> Iterator[Atoms]:
    """Frames of a file; InputError for whatever ASE's readers raise."""
    from ase.io import iread

    try:
        with opened(str(path), None, kind) as (source, options):
            frames = iter(iread(source, index=":", format=kind, **options))
            while True:
                with usual_recursion(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    frame: Any = next(frames, None)
                if frame is None:
                    return
                yield frame
    except Exception as error:
        raise InputError(short(error)) from None


def _entry(origin: str, label: str, atoms: Atoms) -> Entry:
    try:
        check_atoms(origin, atoms)
    except InputError as error:
        return Entry(origin, label, error)
    keep_writable(atoms)
    return Entry(origin, label, atoms)
