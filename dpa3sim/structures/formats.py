"""The format of a file, and its frames, read by our own readers where ASE's assume too much."""

from __future__ import annotations

import codecs
import io
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import usual_recursion
from dpa3sim.structures.given import Frame, ReadingSettings

if TYPE_CHECKING:
    from ase import Atoms

COMPRESSED = (".gz", ".bz2", ".xz")
# Larger files are decompressed on the disk.
IN_MEMORY = 64 << 20
# Formats to try if neither the name nor the first bytes identify the format.
GUESSES = ("vasp", "cif", "extxyz")
# How often a reader may look for lines beyond the end of a file.
_MAX_ENDS = 10_000
# Common names of formats, and the names of their readers.
ALIASES = {
    "poscar": "vasp",
    "contcar": "vasp",
    "xyz": "extxyz",
    "mcif": "cif",
    "lammps": "lammps-data",
    "lammps-dump": "lammps-dump-text",
    "dump": "lammps-dump-text",
    "lmp": "lammps-data",
    "qe": "espresso-in",
    "pdb": "proteindatabank",
}
# Formats by the end of the name, where ASE knows none or another one; the content comes first.
_NAMES = (
    (r"\.(cif|mcif|mmcif)$", "cif"),
    (r"\.(ext)?xyz$", "extxyz"),
    (r"\.(lmp|lammps|lammps-data|lammpsdata)$|^data\.", "lammps-data"),
    (r"\.(dump|lammpstrj|lammps-dump)$|^dump\.", "lammps-dump-text"),
    (r"\.(vasp|poscar|contcar)$", "vasp"),
)
# Formats by the first bytes, for files whose names say little, or something else.
_CONTENTS = (
    (r"(?mi)^[ \t]*&(control|system)\b", "espresso-in"),
    (r"(?m)^ITEM: (TIMESTEP|UNITS)", "lammps-dump-text"),
    (r"(?mi)^[ \t]*\d+[ \t]+atoms[ \t]*(#.*)?$(?=[\s\S]*\b(xlo[ \t]+xhi|avec)\b)", "lammps-data"),
    (r"(?mi)^[ \t]*data_\S*[ \t]*$(?=[\s\S]*\n[ \t]*(_|loop_))|^_cell_length_a\s", "cif"),
    (
        r"(?m)^[ \t]*(CRYSTAL|SLAB|POLYMER|MOLECULE|ATOMS|ANIMSTEPS\b.*)[ \t]*$"
        r"(?=\s*(PRIMVEC|PRIMCOORD|CONVVEC|CRYSTAL|[A-Z]?[a-z]?\d*[ \t]+[-\d.]))",
        "xsf",
    ),
)
_PEEK = 8_000
# Names that identify a format, whatever the content looks like.
_NAMED_BY_ASE = re.compile(r"POSCAR|CONTCAR|CENTCAR|OUTCAR|XDATCAR|vasp.*\.xml$", re.IGNORECASE)


def frames(
    path: str, text: str | None, given: ReadingSettings, last: bool
) -> Iterator[Frame | InputError]:
    """The frames of a file, or of ``text`` instead; a frame that cannot be read is an error.

    Args:
        path: the file, or ``-``. last: whether to read only the last frame.

    Raises:
        InputError: there is no frame, or the following ones cannot be read.
    """
    errors: list[str] = []
    for kind in kinds(path, text, given):
        found = _read(path, text, kind, given, last)
        try:
            first = next(found, None)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except ValueError as error:
            errors.append(f"as {kind}: {error}")
            continue
        if first is None:
            errors.append(f"as {kind}: it contains no structure")
            continue
        yield first
        try:
            yield from found
        except ValueError as error:  # InputError is one
            raise InputError(f"{error}") from None
        return
    raise InputError(f"{path}: not a structure that ASE can read ({'; '.join(errors)})")


def _read(
    path: str, text: str | None, kind: str, given: ReadingSettings, last: bool
) -> Iterator[Frame | InputError]:
    """Frames of a file in one format.

    Raises:
        InputError: it is refused. ValueError: any other error of a reader.
    """
    try:
        if kind in _READERS:
            with _opened(path, text) as source:
                yield from _own(source, kind, given, last, path)
        else:
            yield from _by_ase(path, text, kind, given, last)
    except InputError:
        raise
    # Readers raise all kinds of errors.
    except Exception as error:
        raise ValueError(short(error)) from None


_READERS = ("cif", "extxyz", "vasp", "espresso-in", "lammps-data", "lammps-dump-text")


def _own(
    source: Any, kind: str, given: ReadingSettings, last: bool, path: str
) -> Iterator[Frame | InputError]:
    """Frames read by one of our own readers."""
    if kind == "cif":
        from dpa3sim.structures import cif

        found = list(cif.frames(source.read()))
        yield from found[-1:] if last else found
    elif kind == "extxyz":
        from dpa3sim.structures import xyz

        yield from xyz.frames(source, last, given)
    elif kind == "vasp":
        from dpa3sim.structures import poscar

        yield from poscar.frames(source, given, path)
    elif kind == "espresso-in":
        from dpa3sim.structures import espresso

        yield from espresso.frames(source)
    else:
        from dpa3sim.structures import lammps

        if kind == "lammps-data":
            yield from lammps.data_frames(source, given)
        else:
            yield from lammps.dump_frames(source, given, last)


def _by_ase(
    path: str, text: str | None, kind: str, given: ReadingSettings, last: bool
) -> Iterator[Frame]:
    """Frames read by ASE's reader."""
    from ase.io import iread
    from ase.io.formats import ioformats

    from dpa3sim.structures import hazards
    from dpa3sim.structures.isotopes import as_elements, resolved

    form = ioformats[kind]
    options: dict[str, Any] = {"do_not_split_by_at_sign": True}
    with _source(path, text, kind, form) as source:
        notes = hazards.check(kind, source)
        source = hazards.prepared(kind, source)
        index = slice(-1, None) if last else slice(None)
        found = iter(iread(source, index=index, format=kind, **options))
        while True:
            with usual_recursion(), warnings.catch_warnings(), as_elements():
                warnings.simplefilter("ignore")
                atoms = next(found, None)
            if atoms is None:
                return
            yield Frame(hazards.mended(kind, resolved(_whole(atoms)), given), notes)


def _whole(found: Any) -> Atoms:
    """The structure; some readers return something else."""
    from ase import Atoms

    if not isinstance(found, Atoms):
        raise ValueError(f"the reader returns {type(found).__name__}, not a structure")
    return found


def short(error: Exception) -> str:
    """The message of an error of a library, as part of a line."""
    return " ".join(str(error)[:1000].split())[:120] or type(error).__name__


# -- formats --------------------------------------------------------------------------------------


def kinds(path: str, text: str | None, given: ReadingSettings) -> tuple[str, ...]:
    """The format of a file, or those to try if neither name nor content decides.

    Raises:
        InputError: the format that the user chose is unknown.
    """
    if given.format is not None:
        return (_named(given.format),)
    name = re.sub(r"\.(gz|bz2|xz)$", "", Path(path).name)
    start = text[:_PEEK] if text is not None else _start(path)
    if not _NAMED_BY_ASE.search(name):
        for pattern, kind in _CONTENTS:
            if re.search(pattern, start):
                return (kind,)
    for pattern, kind in _NAMES:
        if re.search(pattern, name, re.IGNORECASE):
            return (kind,)
    if path == "-":
        return GUESSES
    return _by_name(path)


def _by_name(path: str) -> tuple[str, ...]:
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        kind = filetype(path)
    except (UnknownFileTypeError, OSError, UnicodeDecodeError):
        return GUESSES
    return (ALIASES.get(kind, kind),) if kind in ioformats else GUESSES


def _named(name: str) -> str:
    """A format by any of its names.

    Raises:
        InputError: there is no such format.
    """
    from ase.io.formats import ioformats

    from dpa3sim.common.settings import suggestion

    kind = ALIASES.get(name.lower(), name.lower())
    if kind in ioformats and ioformats[kind].can_read:
        return kind
    hint = suggestion(name, [*ALIASES, *ioformats])
    raise InputError(f"format {name!r} is unknown, or cannot be read{hint}")


def _start(path: str) -> str:
    """The first part of a file, as text."""
    from ase.io.formats import open_with_compression

    try:
        with open_with_compression(path, "rb") as file:
            start = file.read(_PEEK)
    except OSError:
        return ""
    encoding = _encoding(start[:2])
    if b"\0" in start and encoding != "utf-16":
        return ""
    return start.decode(encoding, errors="replace")


# -- opened files ---------------------------------------------------------------------------------


@contextmanager
def _source(path: str, text: str | None, kind: str, form: Any) -> Iterator[Any]:
    """What ASE's reader of a format needs: an open file, or the path."""
    if text is None and not form.acceptsfd:
        if kind == "db":
            check_tables(path)
        yield path
    elif form.isbinary:
        with _bytes(path, text) as binary:
            yield binary
    else:
        with _opened(path, text) as source:
            yield source


@contextmanager
def _opened(path: str, text: str | None) -> Iterator[Text]:
    """A file as text; only comments contain characters beyond ASCII, in any encoding."""
    with _bytes(path, text) as binary:
        start = binary.read(2)
        binary.seek(0)
        with Text(binary, encoding=_encoding(start), errors="replace") as source:
            yield source


def _encoding(start: bytes) -> str:
    """The encoding of a text by its first two bytes; Windows also writes UTF-16."""
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


@contextmanager
def _bytes(path: str, text: str | None) -> Iterator[Any]:
    """The content of a file, decompressed; large files are decompressed on the disk.

    Readers seek backwards after every frame, which would read a compressed file from its start.
    """
    from ase.io.formats import open_with_compression

    if text is not None:
        yield io.BytesIO(text.encode())
        return
    with open_with_compression(path, "rb") as file:
        if Path(path).suffix not in COMPRESSED:
            yield file
            return
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy


class Text(io.TextIOWrapper):
    """A text that ends: readers that trust a count, or look for a line, would go on forever."""

    def __init__(self, binary: IO[bytes], **options: Any) -> None:
        super().__init__(binary, **options)
        self._ends = 0

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """The next line; it is empty at the end, but not forever."""
        line = super().readline(size)
        if not line:
            self._ends += 1
            if self._ends > _MAX_ENDS:
                raise EOFError("the file ends before what it announces")
        return line


def check_tables(path: str) -> None:
    """Raise ValueError for a database with views, which could compute without end."""
    import sqlite3

    with closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as database:
        found = {kind for (kind,) in database.execute("SELECT type FROM sqlite_master")}
    if not found <= {"table", "index"}:
        raise ValueError("not an ASE database: it has views or triggers")
