"""Reading structure files of any kind that ASE knows."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dpa3sim.elements import SYMBOLS
from dpa3sim.errors import InputError
from dpa3sim.files import usual_recursion

if TYPE_CHECKING:
    from ase import Atoms

# Tried on content that neither its name nor its first bytes identify.
_GUESSES = ("vasp", "cif", "extxyz", "xyz")
COMPRESSED = (".gz", ".bz2", ".xz")
# A compressed file may grow so many times, or to so many bytes: text shrinks to a tenth.
_MAX_GROWTH, _ALWAYS_FINE = 100, 64 << 20
# So often a reader may look beyond the end of a file for what is not there.
_MAX_ENDS = 10_000
# Counts that are larger, and larger than the file, are none.
_MAX_COUNT = 1_000_000
_MAX_COLUMNS = 10_000


@dataclass(frozen=True)
class Source:
    """One structure and where it came from.

    Attributes:
        label: short name, unique among the structures of a command; names its outputs.
        origin: the file (with frame) as the user gave it.
        atoms: the structure.
    """

    label: str
    origin: str
    atoms: Atoms

    @property
    def sha256(self) -> str:
        """Hash of the structure: what decides its energy, and its constraints."""
        from ase.io.jsonio import encode

        from dpa3sim.structure import Structure

        constraints = encode([c.todict() for c in self.atoms.constraints])
        content = (Structure.from_atoms(self.atoms).key(), constraints)
        return hashlib.sha256(repr(content).encode()).hexdigest()


def read_structures(arguments: list[str]) -> list[Source | InputError]:
    """Read all structures, in order; one that cannot be read becomes its error.

    ``FILE`` is the last frame of a file, ``FILE@INDEX`` another one (``FILE@:`` all of them),
    ``-`` standard input.
    """
    sources: list[Source | InputError] = []
    for argument in arguments:
        try:
            sources.extend(_read(argument))
        except InputError as error:
            sources.append(error)
    return _unique(sources)


def read_structure(argument: str) -> Source:
    """Read one structure, the last if the file has several.

    Raises:
        InputError: it cannot be read.
    """
    source = read_structures([argument])[-1]
    if isinstance(source, InputError):
        raise source
    return source


def _read(argument: str) -> list[Source]:
    path, index = argument, None
    if "@" in argument and not _exists(Path(argument)):
        path, _, index = argument.rpartition("@")
        if not re.fullmatch(r"-?\d*(:-?\d*){0,2}", index) or not index:
            raise InputError(f"{argument}: {index!r} is no frame index")
    name = "stdin" if path == "-" else Path(path).stem
    text = _standard_input() if path == "-" else None
    if text is None:
        check_readable(Path(path))
    frames = _parse(path, text, last_only=index is None)
    if index is None:
        chosen = {name: (argument, frames[-1])}
    else:
        numbers = _frame_numbers(index, len(frames))
        if not numbers:
            raise InputError(f"{argument}: no such frame, the file has {len(frames)}")
        chosen = {f"{name}-{n}": (f"{path}@{n}", frames[n]) for n in numbers}
    sources = []
    for label, (origin, atoms) in chosen.items():
        check_atoms(origin, atoms)
        keep_writable(atoms)
        sources.append(Source(label, origin, atoms))
    return sources


def _frame_numbers(index: str, count: int) -> list[int]:
    """The frames that ``INDEX`` or ``START:STOP:STEP`` stands for, counted from 0."""
    if ":" in index:
        parts = [int(part) if part else None for part in index.split(":")]
        return list(range(count)[slice(*parts)])
    number = int(index)
    return [number % count] if -count <= number < count else []


def _standard_input() -> str:
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise InputError("-: the file is empty")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError("-: no structure that ASE can read (not a text)") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that none can have
        return False


def check_readable(path: Path) -> None:
    """Raise InputError for a file that is absent, closed to us, blank, or no good archive."""
    if _exists(path) and not (path.is_file() or path.is_dir()):  # it might never end
        raise InputError(f"{path}: is no file; - reads standard input")
    try:
        with path.open("rb") as file:
            # Stops at the first that is not.
            blank = not any(chunk.strip() for chunk in iter(lambda: file.read(65536), b""))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a structure file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None
    if blank:
        raise InputError(f"{path}: the file is empty")
    if path.suffix in COMPRESSED:
        _check_compressed(path)


def _check_compressed(path: Path) -> None:
    """Raise InputError for a file that is damaged, or made to fill the memory."""
    import lzma
    import zlib

    from ase.io.formats import open_with_compression

    limit, total = max(_ALWAYS_FINE, _MAX_GROWTH * path.stat().st_size), 0
    try:
        with open_with_compression(str(path), "rb") as file:
            while chunk := file.read(1 << 20):
                total += len(chunk)
                if total > limit:
                    raise InputError(
                        f"{path}: grows to more than {_MAX_GROWTH} times its size, which no "
                        "structure does; uncompress it yourself if it is one"
                    )
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be uncompressed ({short(error)})") from None


def _parse(path: str, text: str | None, last_only: bool) -> list[Atoms]:
    """Frames of a structure file, or of the ``text`` that came instead of one.

    ASE takes the format of a file from its name and content.
    """
    from ase.io import read

    errors: list[str] = []
    for kind in formats(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with usual_recursion(), opened(path, text, kind) as (source, options):
                    index = slice(-1, None) if last_only else slice(None)
                    frames = read(source, index, format=kind, **options)
            # ASE's readers raise whatever their parsing runs into.
            except Exception as error:
                errors.append(f"as {kind}: {short(error)}")
                continue
        if frames:
            return list(frames)
        errors.append(f"as {kind}: no structure in it")
    raise InputError(f"{path}: no structure that ASE can read ({'; '.join(errors)})")


def short(error: Exception) -> str:
    """What an error of a library says, in part of a line."""
    return " ".join(str(error)[:1000].split())[:120] or type(error).__name__


@contextmanager
def opened(path: str, text: str | None, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What ASE's reader of a format is to be given: an open file, or the path, and options."""
    from ase.io.formats import ioformats

    form = ioformats[kind]
    options: dict[str, Any] = {"do_not_split_by_at_sign": True}
    if kind == "extxyz":
        options["properties_parser"] = _properties
    if text is None and not form.acceptsfd:
        if kind == "db":
            check_tables(path)
        yield path, options
        return
    with _bytes(path) if text is None else io.BytesIO(text.encode()) as binary:
        if form.isbinary:
            yield binary, options
            return
        # Only comments have other letters than ASCII, in whatever encoding.
        with _Text(binary, encoding="utf-8-sig", errors="replace") as source:
            if kind == "vasp":
                _check_counts(source)
            yield source, options


@contextmanager
def _bytes(path: str) -> Iterator[IO[bytes]]:
    """The content of a file, uncompressed; large ones on the disk.

    Readers go back after every frame, for which a compressed file is read from its beginning.
    """
    from ase.io.formats import open_with_compression

    with open_with_compression(path, "rb") as file:
        if Path(path).suffix not in COMPRESSED:
            yield file
            return
        with tempfile.SpooledTemporaryFile(_ALWAYS_FINE) as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy


class _Text(io.TextIOWrapper):
    """A text that ends: readers that trust a count, or look for a line, would go on for ever."""

    _ends = 0

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """The next line; empty at the end, but not for ever."""
        line = super().readline(size)
        if not line:
            self._ends += 1
            if self._ends > _MAX_ENDS:
                raise EOFError("the file ends before what it announces")
        return line


def _check_counts(source: _Text) -> None:
    """Raise ValueError for a POSCAR that claims more atoms than it can have."""
    head = [source.readline() for _ in range(8)]
    room = _MAX_COUNT + source.seek(0, io.SEEK_END)
    source.seek(0)
    for line in head[1:]:
        count = sum(max(0, number) for word in line.split() if (number := _whole(word)))
        if count > room:
            raise ValueError(f"{count} atoms are more than the file has room for")


def _properties(line: str) -> Any:
    """What the comment of an extxyz frame says, as ASE reads it."""
    from ase.io.extxyz import key_val_str_to_dict

    info = key_val_str_to_dict(line)
    for word in str(info.get("Properties", "")).split(":"):
        if (_whole(word) or 0) > _MAX_COLUMNS:
            raise ValueError(f"{word} columns")
    return info


def _whole(word: str) -> int | None:
    """The number that Python, and so ASE's readers, take a word for: ``1_0`` and ``٣`` are some."""
    try:
        return int(word)
    except ValueError:
        return None


def check_tables(path: str) -> None:
    """Raise ValueError for a database with views, which compute: without an end, if they like."""
    import sqlite3

    with closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as database:
        kinds = {kind for (kind,) in database.execute("SELECT type FROM sqlite_master")}
    if not kinds <= {"table", "index"}:
        raise ValueError("no ASE database: it has views or triggers")


def formats(path: str) -> tuple[str, ...]:
    """The format of a file, or those to try when neither name nor content tells."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if path == "-":
        return _GUESSES
    try:
        kind = filetype(path)
    except (UnknownFileTypeError, OSError, UnicodeDecodeError):
        return _GUESSES
    return (kind,) if kind in ioformats else _GUESSES


def check_atoms(argument: str, atoms: Atoms) -> None:
    """Raise InputError, which names ``argument``, for what is no structure of whole atoms."""
    if len(atoms) == 0:
        raise InputError(f"{argument}: the structure has no atoms")
    strange = atoms.numbers[(atoms.numbers < 0) | (atoms.numbers > len(SYMBOLS))]
    if len(strange):  # zero is ASE's X, which is told elsewhere
        raise InputError(f"{argument}: there is no element with the atomic number {strange[0]}")
    for constraint in atoms.constraints:
        if not _fits(constraint, len(atoms)):
            raise InputError(f"{argument}: a constraint holds atoms that are not there")
    occupancy = atoms.info.get("occupancy")
    # ASE's CIF reader puts a dictionary there; other files may have anything of that name.
    sites = occupancy.values() if isinstance(occupancy, dict) else ()
    if any(_is_partial(site) for site in sites):
        raise InputError(
            f"{argument}: has partially occupied sites; make an ordered structure of it first"
        )


def _fits(constraint: Any, count: int) -> bool:
    """Whether a constraint is of a structure of so many atoms."""
    find = getattr(constraint, "get_indices", None)  # some are of no atoms in particular
    indices = list(find()) if find else []
    return not indices or bool(-count <= min(indices) and max(indices) < count)


def _is_partial(site: Any) -> bool:
    """Whether the shares of elements in a site are others than one of all."""
    if not isinstance(site, dict):
        return False
    return len(site) > 1 or not all(isinstance(s, int | float) and s >= 1 for s in site.values())


def keep_writable(atoms: Atoms) -> None:
    """Drop arrays that a file may bring but that no extxyz file could hold."""
    for name, array in list(atoms.arrays.items()):
        if not re.fullmatch(r"\w+", name, re.ASCII) or array.dtype.kind not in "biufU":
            del atoms.arrays[name]


def _unique(sources: list[Source | InputError]) -> list[Source | InputError]:
    """Tell apart the labels that would name the same output: by folder, then by number."""
    for rename in (_with_folder, _with_number):
        labels = Counter(s.label for s in sources if isinstance(s, Source))
        seen: Counter[str] = Counter()
        for index, source in enumerate(sources):
            if isinstance(source, Source) and labels[source.label] > 1:
                seen[source.label] += 1
                label = rename(source, seen[source.label])
                sources[index] = replace(source, label=label)
    return sources


def _with_folder(source: Source, number: int) -> str:
    folder = Path(source.origin).parent.name
    return f"{folder}-{source.label}" if folder else source.label


def _with_number(source: Source, number: int) -> str:
    return source.label if number == 1 else f"{source.label}-{number}"
