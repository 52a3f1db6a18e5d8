"""Any number of structures, one by one, from files, folders, archives and databases.

None of these is read as a whole. A structure that cannot be read becomes an error in its place.
"""

from __future__ import annotations

import glob
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dpa3sim.common.errors import InputError
from dpa3sim.structures.formats import COMPRESSED, check_tables, frames, short
from dpa3sim.structures.given import Frame, ReadingSettings
from dpa3sim.structures.reading import Source, check_readable, read_structures, source_of

if TYPE_CHECKING:
    from ase import Atoms

# In a folder or an archive, other files are not structures; a named file may have any name.
ENDINGS = tuple(
    ".vasp .poscar .cif .mcif .xyz .extxyz .traj .xsf .gen .pdb .in .pwi .res .cell .lmp .data "
    ".lammps-data .lammpstrj .dump".split()
)
NAMES = ("POSCAR", "CONTCAR")
# An archive member that unpacks to more than this, in bytes, is not a structure.
LARGEST_MEMBER = 2**30
PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Entry:
    """One structure of a screening.

    Attributes:
        origin: the file as the user named it, with the frame if it has several.
        label: short name.
        atoms: the structure, or the error.
        notes: what the user must know about the interpretation of the file.
    """

    origin: str
    label: str
    atoms: Atoms | InputError
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """The structure.

        Raises:
            InputError: it could not be read.
        """
        if isinstance(self.atoms, InputError):
            raise self.atoms
        return Source(self.label, self.origin, self.atoms, self.notes)


def entries(arguments: Sequence[str], given: ReadingSettings | None = None) -> Iterator[Entry]:
    """All structures of the arguments, in a fixed order.

    An argument is a file, ``FILE@INDEX`` (some of its frames), a pattern such as ``'in/*.cif'``, a
    folder (searched recursively), a zip archive, an ASE database, or ``-`` for standard input.
    All frames of a file are used.

    Args:
        arguments: see above. given: what the files do not say.
    """
    reader = _Reader(given or ReadingSettings())
    for argument in arguments:
        path = Path(argument)
        if argument == "-" or ("@" in argument and not path.exists()):
            yield from reader.selected(argument)
        elif path.is_dir():
            yield from reader.folder(path)
        elif not path.exists() and PATTERN & set(argument):
            yield from reader.pattern(argument)
        else:
            yield from reader.file(path, argument, path.name)


def _is_structure(name: str) -> bool:
    if name.startswith("."):
        return False
    lower = name.lower()
    for ending in COMPRESSED:
        lower = lower.removesuffix(ending)
    return lower.endswith((*ENDINGS, ".zip", ".db")) or name.startswith(NAMES)


@dataclass(frozen=True)
class _Reader:
    """Reads the structures of an argument."""

    given: ReadingSettings

    def selected(self, argument: str) -> Iterator[Entry]:
        """Standard input, or some frames of a file."""
        for source in read_structures([argument], self.given):
            origin = argument if isinstance(source, InputError) else source.origin
            yield _entry(origin, getattr(source, "label", argument), source)

    def pattern(self, argument: str) -> Iterator[Entry]:
        """All files whose names match, including those in matching folders."""
        found = sorted(glob.glob(argument, recursive=True))
        if not found:
            yield Entry(argument, argument, InputError(f"{argument}: no file has a matching name"))
        for name in found:
            if Path(name).is_dir():
                yield from self.folder(Path(name))
            else:
                yield from self.file(Path(name), name, Path(name).name)

    def folder(self, folder: Path) -> Iterator[Entry]:
        """All structure files in a folder and its subfolders."""
        count = 0
        for root, folders, names in os.walk(folder):
            folders.sort()
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(names):
                if _is_structure(name):
                    count += 1
                    path = Path(root, name)
                    yield from self.file(path, str(path), name)
        if not count:
            kinds = ", ".join((*NAMES, *ENDINGS))
            message = f"{folder}: this folder contains no structure file (names like {kinds})"
            yield Entry(str(folder), folder.name, InputError(message))

    def file(self, path: Path, origin: str, name: str) -> Iterator[Entry]:
        """The structures of one file; ``name`` is its original name."""
        try:
            check_readable(path)
            if zipfile.is_zipfile(path):
                yield from self.archive(path, origin)
            elif name.endswith(".db"):
                yield from _database(path, origin)
            else:
                yield from self.frames(path, origin, name)
        except InputError as error:
            message = str(error).replace(str(path), origin)
            yield Entry(origin, name, InputError(message))

    def archive(self, path: Path, origin: str) -> Iterator[Entry]:
        """The structures of the members, which are unpacked one by one to a temporary folder."""
        try:
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
                members = [
                    m for m in archive.infolist() if _is_structure(PurePosixPath(m.filename).name)
                ]
                members = [m for m in members if not m.is_dir() and "__MACOSX" not in m.filename]
                if not members:
                    raise InputError(f"{path}: this archive contains no structure file")
                for member in sorted(members, key=lambda m: m.filename):
                    name = PurePosixPath(member.filename).name
                    inner = f"{origin}:{member.filename}"
                    unpacked = Path(folder, name)
                    if error := _unpack(archive, member, inner, unpacked):
                        yield Entry(inner, name, error)
                        continue
                    yield from self.file(unpacked, inner, name)
                    unpacked.unlink()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"{path}: not a readable archive ({error})") from None

    def frames(self, path: Path, origin: str, name: str) -> Iterator[Entry]:
        """One frame after the other; a single frame has the name of its file."""
        found = frames(str(path), None, self.given, last=False)
        label, pending, number = Path(name).stem, next(found), 0
        try:
            for following in found:
                yield _frame(f"{origin}@{number}", f"{label}-{number}", pending)
                number, pending = number + 1, following
        except InputError as error:
            yield _frame(f"{origin}@{number}", f"{label}-{number}", pending)
            broken = f"{origin}@{number + 1}"
            message = f"{broken}: cannot be read, and neither can the frames after it ({error})"
            yield Entry(broken, f"{label}-{number + 1}", InputError(message))
            return
        if number:
            yield _frame(f"{origin}@{number}", f"{label}-{number}", pending)
        else:
            yield _frame(origin, label, pending)


def _unpack(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, inner: str, to: Path
) -> InputError | None:
    """Write a member of an archive to a file; return the error if that is not possible."""
    if member.file_size > LARGEST_MEMBER or to.name.endswith(".zip"):
        reason = "an archive in an archive" if to.name.endswith(".zip") else "too large"
        return InputError(f"{inner}: is {reason}")
    try:
        with archive.open(member) as data:
            to.write_bytes(data.read(member.file_size + 1))
    # The errors that zipfile raises for damaged or encrypted archives.
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        return InputError(f"{inner}: cannot be unpacked ({error})")
    return None


def _database(path: Path, origin: str) -> Iterator[Entry]:
    import ase.db

    try:
        check_tables(str(path))
        with ase.db.connect(path) as database:
            for row in database.select():
                frame = Frame(row.toatoms())
                yield _frame(f"{origin}@{row.id}", f"{path.stem}-{row.id}", frame)
    except InputError:
        raise
    except Exception as error:  # ASE's readers raise all kinds of errors
        raise InputError(f"{path}: not an ASE database ({short(error)})") from None


def _frame(origin: str, label: str, frame: Frame | InputError) -> Entry:
    return _entry(origin, label, source_of(label, origin, frame))


def _entry(origin: str, label: str, source: Source | InputError) -> Entry:
    if isinstance(source, InputError):
        return Entry(origin, label, source)
    return Entry(origin, label, source.atoms, source.notes)
