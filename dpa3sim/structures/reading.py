"""Structures of a command line: files, frames of files, standard input."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.formats import COMPRESSED, IN_MEMORY, frames, short
from dpa3sim.structures.given import Frame, ReadingSettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.structures.inspection import Inspection

# A compressed file may grow by this factor, or to so many bytes; text shrinks to a tenth.
_MAX_GROWTH, _ALWAYS_FINE = 100, IN_MEMORY


@dataclass(frozen=True)
class Source:
    """One structure and its origin.

    Attributes:
        label: short name, unique among the structures of a command; names its outputs.
        origin: the file (with frame) as the user named it.
        atoms: the structure.
        notes: what the user must know about the interpretation of the file.
    """

    label: str
    origin: str
    atoms: Atoms
    notes: tuple[str, ...] = field(default=())

    @property
    def sha256(self) -> str:
        """Hash of everything that affects its energy and motion, including its constraints."""
        from ase.io.jsonio import encode

        from dpa3sim.structures.system import System

        constraints = encode([c.todict() for c in self.atoms.constraints])
        content: tuple[Any, ...] = (System.from_atoms(self.atoms).key(), constraints)
        if self.atoms.has("masses") and (masses := _unusual_masses(self.atoms)):
            content = (*content, masses)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    @cached_property
    def inspection(self) -> Inspection:
        """A line for the user to check, and the suspicious facts."""
        from dpa3sim.structures.inspection import inspect

        return inspect(self.atoms)

    @property
    def line(self) -> str:
        """The structure in one line for the user to check."""
        return self.inspection.line

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know before anything is computed."""
        return (*self.notes, *self.inspection.warnings)


def _unusual_masses(atoms: Atoms) -> list[float]:
    """All masses, u, if any atom has another mass than its element; else an empty list."""
    import numpy as np
    from ase.data import atomic_masses

    from dpa3sim.structures.isotopes import SAME_MASS

    masses = atoms.get_masses()
    usual = atomic_masses[np.clip(atoms.numbers, 0, len(atomic_masses) - 1)]
    return masses.tolist() if (np.abs(masses - usual) > SAME_MASS).any() else []


def read_structures(
    arguments: list[str], given: ReadingSettings | None = None
) -> list[Source | InputError]:
    """Read all structures, in order; a structure that cannot be read becomes an error.

    ``FILE`` is the last frame of a file, ``FILE@INDEX`` another one (``FILE@:`` all of them),
    ``-`` standard input.

    Args:
        arguments: the files. given: what the files do not say.
    """
    sources: list[Source | InputError] = []
    for argument in arguments:
        try:
            sources.extend(_read(argument, given or ReadingSettings()))
        except InputError as error:
            sources.append(error)
    return _unique(sources)


def read_structure(argument: str, given: ReadingSettings | None = None) -> Source:
    """Read one structure, the last if the file has several.

    Raises:
        InputError: it cannot be read.
    """
    source = read_structures([argument], given)[-1]
    if isinstance(source, InputError):
        raise source
    return source


def _read(argument: str, given: ReadingSettings) -> list[Source | InputError]:
    path, index = argument, None
    if "@" in argument and not _exists(Path(argument)):
        path, _, index = argument.rpartition("@")
        if not re.fullmatch(r"-?\d*(:-?\d*){0,2}", index) or not index:
            raise InputError(f"{argument}: {index!r} is not a frame index")
    name = "stdin" if path == "-" else Path(path).stem
    text = _standard_input() if path == "-" else None
    if text is None:
        check_readable(Path(path))
    found = list(frames(path, text, given, last=index is None))
    if index is None:
        chosen = {name: (argument, found[-1])}
    else:
        numbers = _frame_numbers(index, len(found))
        if not numbers:
            raise InputError(f"{argument}: this frame does not exist, the file has {len(found)}")
        chosen = {f"{name}-{n}": (f"{path}@{n}", found[n]) for n in numbers}
    return [source_of(label, origin, frame) for label, (origin, frame) in chosen.items()]


def source_of(label: str, origin: str, frame: Frame | InputError) -> Source | InputError:
    """The structure of a frame, or the error if it is not a structure of whole atoms."""
    if isinstance(frame, InputError):
        return InputError(f"{origin}: {frame}")
    try:
        check_atoms(origin, frame.atoms)
    except InputError as error:
        return error
    keep_writable(frame.atoms)
    return Source(label, origin, frame.atoms, frame.warnings)


def _frame_numbers(index: str, count: int) -> list[int]:
    """The frame numbers that ``INDEX`` or ``START:STOP:STEP`` selects, counted from 0."""
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
        raise InputError("-: not a structure that ASE can read (not a text)") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def check_readable(path: Path) -> None:
    """Raise InputError for a file that is missing, unreadable, empty, or a damaged archive."""
    if _exists(path) and not (path.is_file() or path.is_dir()):  # reading it might never end
        raise InputError(f"{path}: is not a regular file; - reads standard input")
    try:
        with path.open("rb") as file:
            # Stops at the first chunk that is not blank.
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
    """Raise InputError for a file that is damaged, or designed to fill the memory."""
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
                        f"{path}: expands to more than {_MAX_GROWTH} times its size, which no "
                        "structure file does; if it is one, decompress it yourself"
                    )
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be decompressed ({short(error)})") from None


def check_atoms(argument: str, atoms: Atoms) -> None:
    """Raise InputError, naming ``argument``, unless it is a structure of whole atoms."""
    if len(atoms) == 0:
        raise InputError(f"{argument}: the structure has no atoms")
    strange = atoms.numbers[(atoms.numbers < 0) | (atoms.numbers > len(SYMBOLS))]
    if len(strange):  # zero is ASE's X, which is reported elsewhere
        raise InputError(f"{argument}: there is no element with the atomic number {strange[0]}")
    for constraint in atoms.constraints:
        if not _fits(constraint, len(atoms)):
            raise InputError(f"{argument}: a constraint refers to atoms that do not exist")
    if atoms.has("masses"):
        import numpy as np

        masses = atoms.get_masses()
        wrong = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
        if len(wrong):
            raise InputError(f"{argument}: atom {wrong[0]} has a mass of {masses[wrong[0]]} u")
    occupancy = atoms.info.get("occupancy")
    # ASE's databases keep what its CIF reader found; other files may use this name for anything.
    sites = occupancy.values() if isinstance(occupancy, dict) else ()
    if any(_is_partial(site) for site in sites):
        raise InputError(
            f"{argument}: has partially occupied sites; make an ordered structure of it first"
        )


def _fits(constraint: Any, count: int) -> bool:
    """Whether a constraint is possible for a structure of so many atoms."""
    find = getattr(constraint, "get_indices", None)  # some do not refer to particular atoms
    indices = list(find()) if find else []
    return not indices or bool(-count <= min(indices) and max(indices) < count)


def _is_partial(site: Any) -> bool:
    """Whether a site is anything but fully occupied by one element."""
    if not isinstance(site, dict):
        return False
    return len(site) > 1 or not all(isinstance(s, int | float) and s >= 1 for s in site.values())


def keep_writable(atoms: Atoms) -> None:
    """Drop arrays that an extxyz file could not hold."""
    for name, array in list(atoms.arrays.items()):
        if not re.fullmatch(r"\w+", name, re.ASCII) or array.dtype.kind not in "biufU":
            del atoms.arrays[name]


def _unique(sources: list[Source | InputError]) -> list[Source | InputError]:
    """Make labels unique that would name the same output: by folder, then by number."""
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


def introduction(sources: Sequence[Source], where: str = "") -> list[str]:
    """Structures in a line that a person can check, and what is suspicious about them."""
    origins = ", ".join(source.origin for source in sources)
    kinds = "; ".join(source.line for source in sources)
    lines = [f"{origins}: {kinds}" + (f" -> {where}" if where else "")]
    return lines + [f"warning: {warning}" for s in sources for warning in s.warnings]
