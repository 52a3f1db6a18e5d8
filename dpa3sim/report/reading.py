"""The content of a run directory, complete or not; any file may be missing or unreadable."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import usual_recursion
from dpa3sim.common.option_files import read_options
from dpa3sim.run import directory as rundir

# How much of the end of a log is read.
LOG_BYTES, LOG_LINES = 2**16, 40
# Plots are included as svg up to this size, otherwise as png; larger files are only listed.
SVG_BYTES, PICTURE_BYTES = 4 * 10**5, 4 * 10**6
OWN = (rundir.PROVENANCE, rundir.CONFIG, rundir.RESULT, rundir.LOG)
REPORT = "report.html"


@dataclass(frozen=True)
class Picture:
    """A plot of the run.

    Attributes:
        name: name of its file. source: its content as a ``data:`` URL.
    """

    name: str
    source: str


@dataclass(frozen=True)
class Run:
    """The content of a run directory.

    Attributes:
        path: the folder.
        result: content of ``result.json``; None if it is missing.
        calculation: everything that affects the result, from ``provenance.json``.
        sessions: all runs of the command, from the first to the last.
        config: all options; None without ``config.resolved.yaml``.
        log: last lines of the log.
        pictures: the plots, by name.
        files: names and sizes, bytes.
        damage: files that could not be read, with the reasons.
    """

    path: Path
    result: Mapping[str, Any] | None
    calculation: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] | None
    log: Sequence[str]
    pictures: Sequence[Picture]
    files: Sequence[tuple[str, int]]
    damage: Sequence[str]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def protocol(self) -> str | None:
        """The command of the run, if it is known."""
        for source in (self.result or {}, self.calculation):
            if isinstance(source.get("protocol"), str):
                return str(source["protocol"])
        return None


def read_run(path: Path) -> Run:
    """Read a run directory as far as possible; damaged files are recorded, not raised.

    Raises:
        InputError: the folder does not exist, cannot be read, or is not a run directory.
    """
    names = _names(path)
    if not names & set(OWN):
        runs = sorted(n for n in names if any((path / n / own).is_file() for own in OWN))
        inside = f"; it contains some: {' '.join(runs[:3])} ..." if runs else ""
        raise InputError(f"{path}: is not a run directory (it has no {rundir.PROVENANCE}){inside}")
    damage: list[str] = []
    provenance = mapping(_json(path / rundir.PROVENANCE, damage))
    result = _json(path / rundir.RESULT, damage)
    return Run(
        path=path,
        result=None if result is None else mapping(result),
        calculation=mapping(provenance.get("calculation")),
        sessions=[s for s in listing(provenance.get("sessions")) if isinstance(s, Mapping)],
        config=_config(path / rundir.CONFIG, damage) if rundir.CONFIG in names else None,
        log=log_tail(path / rundir.LOG, damage),
        pictures=pictures(path, names, damage),
        files=[(name, _size(path / name)) for name in sorted(names - {REPORT})],
        damage=damage,
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a table, else an empty table."""
    return value if isinstance(value, Mapping) else {}


def listing(value: Any) -> Sequence[Any]:
    """The value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def log_tail(path: Path, damage: list[str]) -> list[str]:
    """The last lines of a log, which may be long."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        damage.append(f"{path.name}: cannot be read ({error.strerror})")
        return []
    return text.splitlines()[-LOG_LINES:]


def pictures(folder: Path, names: set[str], damage: list[str]) -> list[Picture]:
    """The plots of a folder: the svg of each, or its png if the svg is too large."""
    found = []
    for stem in sorted({Path(n).stem for n in names if n.endswith((".svg", ".png"))}):
        for ending, kind, most in (
            (".svg", "image/svg+xml", SVG_BYTES),
            (".png", "image/png", PICTURE_BYTES),
        ):
            file = folder / (stem + ending)
            if file.name not in names or not 0 < _size(file) <= most:
                continue
            try:
                content = base64.b64encode(file.read_bytes()).decode()
            except OSError as error:
                damage.append(f"{file.name}: cannot be read ({error.strerror})")
                continue
            found.append(Picture(file.name, f"data:{kind};base64,{content}"))
            break
    return found


def _names(path: Path) -> set[str]:
    try:
        return {item.name for item in path.iterdir() if not item.name.startswith(".")}
    except FileNotFoundError:
        raise InputError(f"{path}: no such run directory") from None
    except NotADirectoryError:
        raise InputError(f"{path}: is a file; name the run directory it is in") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _json(path: Path, damage: list[str]) -> Any:
    """The content of a JSON file; None if it is missing or not valid."""
    try:
        with usual_recursion():
            data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        damage.append(f"{path.name}: cannot be read ({error.strerror})")
        return None
    except (ValueError, RecursionError) as error:
        damage.append(f"{path.name}: is not valid JSON ({error})")
        return None
    if not isinstance(data, Mapping):
        damage.append(f"{path.name}: does not contain a table of names and values")
    return data


def _config(path: Path, damage: list[str]) -> Mapping[str, Any] | None:
    try:
        return read_options(path)
    except InputError as error:
        damage.append(str(error).replace(str(path), path.name, 1))
        return None
