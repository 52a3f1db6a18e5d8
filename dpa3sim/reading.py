"""Reading structure files of any kind that ASE knows."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

# Tried on content that neither its name nor its first bytes identify.
_GUESSES = ("vasp", "cif", "extxyz", "xyz")


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
    if "@" in argument and not Path(argument).exists():
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


def check_readable(path: Path) -> None:
    """Raise InputError for a file that is absent, closed to us, or blank."""
    try:
        with path.open("rb") as file:
            blank = not any(line.strip() for line in file)  # stops at the first that is not
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a structure file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if blank:
        raise InputError(f"{path}: the file is empty")


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
                source = path if text is None else io.StringIO(text)
                frames = read(source, index=slice(-1, None) if last_only else ":", format=kind)
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
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


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
    occupancy = atoms.info.get("occupancy")
    # ASE's CIF reader puts a dictionary there; other files may have anything of that name.
    sites = occupancy.values() if isinstance(occupancy, dict) else ()
    if any(sum(site.values()) < 1 or len(site) > 1 for site in sites):
        raise InputError(
            f"{argument}: has partially occupied sites; make an ordered structure of it first"
        )


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
