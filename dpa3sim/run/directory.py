"""A run directory: one calculation, resumable, with everything about it in one place."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpa3sim.common.errors import INTERRUPTED, Dpa3simError, InputError
from dpa3sim.common.files import atomic_write, is_part, lock_folder, usual_recursion

RESULT = "result.json"
PROVENANCE = "provenance.json"
CHECKPOINT = "checkpoint.json"
EVALUATIONS = "evaluations.sqlite"
CONFIG = "config.resolved.yaml"
LOG = "run.log"
SCHEMA_VERSION = 1

# Endings of keys that carry a unit, longest first where one contains another.
# `_per_atom`, `_per_cell` or `_per_formula_unit` before it says of how much.
_UNITS = {
    "_meV_per_atom_per_ps": "meV/atom/ps",
    "_meV_per_atom": "meV/atom",
    "_m2_per_s": "m^2/s",
    "_W_per_m_K": "W/m/K",
    "_eV_per_A3": "eV/Å^3",
    "_eV_per_A2": "eV/Å^2",
    "_eV_per_A": "eV/Å",
    "_J_per_m2": "J/m^2",
    "_A2": "Å^2",
    "_J_per_K_mol": "J/K/mol",
    "_kJ_per_mol": "kJ/mol",
    "_km_per_s": "km/s",
    "_per_K": "1/K",
    "_GPa": "GPa",
    "_eV": "eV",
    "_A3": "Å^3",
    "_A": "Å",
    "_nm": "nm",
    "_deg": "degree",
    "_THz": "THz",
    "_g_per_cm3": "g/cm^3",
    "_K": "K",
    "_fs": "fs",
    "_ps": "ps",
    "_s": "s",
}
_SHARES = {
    "_per_atom": "/atom",
    "_per_cell": "/cell",
    "_per_formula_unit": "/formula unit",
}


@dataclass
class Session:
    """How a session ends: the exit code of the command."""

    exit_code: int = INTERRUPTED


class RunDirectory:
    """A directory that belongs to one calculation, identified by a fingerprint.

    Opening it again with the same fingerprint continues the calculation; with another one it is
    refused, so that results of different calculations never mix.

    Args:
        path: the directory; made if it does not exist.
        fingerprint: hash of everything that decides the result.
        summary: readable form of the same, stored, and compared to name what differs.
        force: empty a directory of another calculation instead of refusing it.

    No other process can open it meanwhile. To be closed.

    Raises:
        InputError: the directory holds another calculation, or something else, or cannot be made,
            or another process has it.
    """

    def __init__(
        self, path: Path, fingerprint: str, summary: Mapping[str, Any], force: bool = False
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self._lock: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = {item.name for item in path.iterdir() if not is_part(item)} - {LOG}
            if names and PROVENANCE not in names:
                raise InputError(
                    f"{path}: is not empty and is not a run directory; choose another --out"
                )
            (path / LOG).touch()
            self._lock = lock_folder(path / LOG)
        except BlockingIOError:
            raise InputError(
                f"{path}: another process is running this calculation; wait for it, or choose "
                "another --out"
            ) from None
        except OSError as error:
            raise InputError(
                f"{path}: cannot be used as run directory ({error.strerror})"
            ) from None
        try:
            if force:
                self._clear()
            known = self._provenance()
            if known is not None and known["fingerprint"] != fingerprint:
                raise InputError(
                    f"{path}: holds a different calculation ({_difference(known, summary)}); "
                    "choose another --out, or --force to replace it"
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def result(self) -> dict[str, Any] | None:
        """The stored result of a finished calculation, else None."""
        return self._read(RESULT)

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """State of an unfinished calculation, else None.

        Raises:
            InputError: it is damaged.
        """
        data = self._read(CHECKPOINT)
        if data is None:
            return None
        state = data.get("state")
        if not isinstance(state, dict) or data.get("sha256") != fingerprint(state):
            raise InputError(f"{self.path / CHECKPOINT}: damaged state; --force starts again")
        return state

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save state to continue from; the last one stays whole if this is interrupted."""
        content = {"sha256": fingerprint(state), "state": dict(state)}
        atomic_write(self.path / CHECKPOINT, json.dumps(content))

    def write_result(self, result: Mapping[str, Any], final: bool) -> None:
        """Save the result with schema version and units; a final one needs no state any more."""
        atomic_write(self.path / RESULT, to_json(with_units(result)))
        if final:
            for name in (CHECKPOINT, EVALUATIONS):
                (self.path / name).unlink(missing_ok=True)

    def write_provenance(self, provenance: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Save where the calculation came from; keeps the sessions of a resumed one."""
        known = self._provenance()
        sessions = [*(known["sessions"] if known else []), dict(provenance)]
        data = {"fingerprint": self.fingerprint, "calculation": dict(summary), "sessions": sessions}
        atomic_write(self.path / PROVENANCE, to_json(data))

    def write_config(self, options: Mapping[str, Any]) -> None:
        """Save all options, as a file that configures the same calculation again."""
        import yaml

        text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
        atomic_write(self.path / CONFIG, text)

    def note(self, **facts: Any) -> None:
        """Add facts about this session to its provenance."""
        known = self._provenance()
        if known and known["sessions"]:
            known["sessions"][-1] |= facts
            atomic_write(self.path / PROVENANCE, to_json(known))

    @contextmanager
    def session(self, say: Callable[[str], object]) -> Iterator[Session]:
        """Note when and how the block ended: with the code that it sets, or with its error's.

        Args:
            say: reports a line.
        """
        found = Session()
        try:
            yield found
        except KeyboardInterrupt:
            # Whoever reads us, and rich makes an exit of that, may be gone by the same Ctrl-C.
            with suppress(OSError, SystemExit):
                say(f"interrupted; the same command continues (state in {self.path})")
            raise
        except Dpa3simError as error:
            found.exit_code = error.exit_code
            with suppress(OSError):
                self.log(f"failed: {error}")
            raise
        finally:
            with suppress(OSError):
                self.note(ended=timestamp(), exit_code=found.exit_code)

    def log(self, message: str) -> None:
        """Append a line to the log."""
        with (self.path / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{timestamp()} {message}\n")

    def _provenance(self) -> dict[str, Any] | None:
        """What :meth:`write_provenance` wrote, None where it has not.

        Raises:
            InputError: it is damaged.
        """
        known = self._read(PROVENANCE)
        if known is None:
            return None
        kinds = {"fingerprint": str, "calculation": dict, "sessions": list}
        good = all(isinstance(known.get(name), kind) for name, kind in kinds.items())
        if not good or not all(isinstance(session, dict) for session in known["sessions"]):
            raise InputError(f"{self.path / PROVENANCE}: damaged; --force starts again")
        return known

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with usual_recursion():
                data = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{self.path / name}: cannot be read ({error}); --force starts again"
            ) from None
        if not isinstance(data, dict):
            raise InputError(f"{self.path / name}: damaged; --force starts again")
        return data

    def _clear(self) -> None:
        """Remove the files of the run; anything that is a folder is not ours and stays.

        The log, which is the lock, only loses its content. What tells that all this is a run goes
        last, so that an interruption leaves no folder that cannot be emptied.
        """
        for item in sorted(self.path.iterdir(), key=lambda item: item.name == PROVENANCE):
            if item.name == LOG:
                os.truncate(item, 0)
            elif item.is_file():
                item.unlink()


def fingerprint(summary: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON form."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def with_units(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with ``schema_version`` first and the unit of every dimensional key last."""
    units = {key: unit for key in _keys(result) if (unit := unit_of(key)) is not None}
    return {"schema_version": SCHEMA_VERSION, **result, "units": units}


def _keys(data: Any) -> Iterator[str]:
    """The keys of a result and of the tables in it; how it was asked for is not a result."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield key
            if key != "settings":
                yield from _keys(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _keys(value)


def unit_of(key: str) -> str | None:
    """Unit that a key's ending names, None for dimensionless ones."""
    return name_and_unit(key)[1]


def name_and_unit(key: str) -> tuple[str, str | None]:
    """A key without the ending that names its unit, and that unit; None for dimensionless ones."""
    found = next((e for e in _UNITS if key.endswith(e)), None)
    if found is None:
        return key, None
    name = key.removesuffix(found)
    share = next((text for ending, text in _SHARES.items() if name.endswith(ending)), "")
    return name, _UNITS[found] + share


def to_json(data: Mapping[str, Any]) -> str:
    """Indented JSON with a final newline; NaN is refused, because JSON has no NaN."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def timestamp() -> str:
    """Local time with offset, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _difference(known: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Name the first few entries that differ between two calculations."""
    old = known["calculation"]
    # Through JSON, as the stored one was.
    new = json.loads(json.dumps(summary))
    changes = []
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            a, b = str(old.get(key)), str(new.get(key))
            changes.append(f"{key}: {a} -> {b}" if len(a) + len(b) < 60 else f"other {key}")
    return ", ".join(changes[:4]) or "other input"
