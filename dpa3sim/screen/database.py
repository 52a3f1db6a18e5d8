"""The results of a screening: one SQLite file, a row for each structure.

The table ``structures`` has the columns of :class:`Row`; ``input`` and ``structure``, before and
after, are ASE's JSON of :class:`ase.Atoms`, ``result`` is the JSON of ``result.json``, and
``progress`` is how far an unfinished calculation has come.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import InputError
from dpa3sim.run.directory import timestamp

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.structures.sources import Entry

NAME = "results.sqlite"
WAITING, DONE, NOT_CONVERGED, FAILED = STATES = ("waiting", "done", "not_converged", "failed")
WORDS = {DONE: "done", NOT_CONVERGED: "not converged", FAILED: "failed", WAITING: "waiting"}
"""The states as people call them."""
# Under this name in `info`, the warnings of reading.
WARNINGS = "reading_warnings"
SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS structures (
    id INTEGER PRIMARY KEY, position INTEGER NOT NULL, key TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL UNIQUE, label TEXT NOT NULL, formula TEXT, n_atoms INTEGER,
    cost REAL NOT NULL, state TEXT NOT NULL, exit_code INTEGER, error TEXT,
    attempts INTEGER NOT NULL, seconds REAL, finished TEXT, input TEXT, result TEXT, structure TEXT,
    progress TEXT
);
CREATE INDEX IF NOT EXISTS structures_state ON structures (state, cost);
"""
# Registered structures wait no longer than so many for the disk.
CHUNK = 500


@dataclass(frozen=True)
class Row:
    """What is known of one structure.

    Attributes:
        id: number in this file. position: place in the order of the input, from 1.
        label, origin: see :class:`~dpa3sim.structures.sources.Entry`.
        formula, n_atoms: None for what could not be read.
        state: ``"waiting"``, ``"done"``, ``"not_converged"`` or ``"failed"``.
        exit_code: that of the single calculation; None while waiting.
        error: why it failed.
        attempts: how often it was computed to an end, good or bad.
        seconds: from entering to leaving, with others beside it.
        finished: when.
        result: the protocol's result, with units in its keys.
    """

    id: int
    position: int
    label: str
    origin: str
    formula: str | None
    n_atoms: int | None
    state: str
    exit_code: int | None
    error: str | None
    attempts: int
    seconds: float | None
    finished: str | None
    result: dict[str, Any] | None


_COLUMNS = ", ".join(Row.__dataclass_fields__)


@dataclass(frozen=True)
class Outcome:
    """What came of one structure.

    Attributes:
        state, exit_code, seconds, error: see :class:`Row`.
        result: JSON of the protocol's result. structure: what it ended with, ASE's JSON.
        progress: from where more steps can continue; None where nothing is left to do.
    """

    state: str
    exit_code: int
    seconds: float
    error: str | None = None
    result: str | None = None
    structure: str | None = None
    progress: str | None = None


class Database:
    """The file; several threads may use one, and other processes may read while one writes.

    Args:
        path: made if ``create``.

    Raises:
        InputError: it is absent, or no such file.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path
        self._lock = RLock()
        if not create and not path.is_file():
            raise InputError(f"{path}: no such file")
        with self._errors():
            self._connection = sqlite3.connect(
                path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if create and version == 0:
                self._connection.executescript(_SCHEMA)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise InputError(
                    f"{path}: does not hold results of a screening, or those of another version"
                )

    # -- structures in ----------------------------------------------------------------------------

    def register(
        self, found: Iterable[tuple[int, Entry]], new: Callable[[Entry], None] | None = None
    ) -> int:
        """Add structures, given with their positions, unless they are there; returns how many came.

        Args:
            found: the structures. new: called for each that is added.

        Raises:
            InputError: the structure of a known origin has changed.
        """
        count = 0
        with self._lock, self._errors(), self._transaction():
            for position, entry in found:
                count += 1
                if self._register(position, entry) and new is not None:
                    new(entry)
                if count % CHUNK == 0:
                    self._connection.execute("COMMIT")
                    self._connection.execute("BEGIN")
        return count

    def _register(self, position: int, entry: Entry) -> bool:
        """Add a structure; False if it is there."""
        key = _key(entry)
        known = self._connection.execute(
            "SELECT key, input IS NULL FROM structures WHERE origin = ?", (entry.origin,)
        ).fetchone()
        if known is not None and known[0] == key:
            self._connection.execute(
                "UPDATE structures SET position = ? WHERE key = ? AND position != ?",
                (position, key, position),
            )
            return False
        if known is not None:
            if not known[1]:
                raise InputError(
                    f"{entry.origin}: is another structure than when this screening began; choose "
                    "another folder for it"
                )
            # It could not be read then, and perhaps can be now.
            self._connection.execute("DELETE FROM structures WHERE origin = ?", (entry.origin,))
        columns: dict[str, Any] = {"position": position, "key": key}
        columns |= {"origin": entry.origin, "label": entry.label}
        if isinstance(entry.atoms, InputError):
            columns |= {"cost": 0.0, "state": FAILED, "attempts": 1, "error": str(entry.atoms)}
            columns |= {"exit_code": entry.atoms.exit_code, "finished": timestamp()}
        else:
            columns |= {
                "formula": entry.atoms.get_chemical_formula(),
                "n_atoms": len(entry.atoms),
                "cost": cost(entry.atoms),
                "state": WAITING,
                "attempts": 0,
                "input": to_json(entry.atoms, entry.source.warnings),
            }
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        self._connection.execute(
            f"INSERT INTO structures ({names}) VALUES ({places})", list(columns.values())
        )
        return True

    def waiting(self) -> list[int]:
        """Ids of what is still to do, the costliest first: no long one is left at the end."""
        with self._lock, self._errors():
            found = self._connection.execute(
                "SELECT id FROM structures WHERE state = ? ORDER BY cost DESC, position", (WAITING,)
            )
            return [row[0] for row in found]

    def input(self, number: int) -> Atoms:
        """The structure as it was given."""
        return from_json(self.input_text(number))

    def input_text(self, number: int) -> str:
        """The same as :func:`to_json` has it."""
        return str(self._value("input", number))

    def progress(self, number: int) -> str | None:
        """What :meth:`save_progress` saved last, None where there is nothing to continue from."""
        found = self._value("progress", number)
        return None if found is None else str(found)

    def save_progress(self, number: int, progress: str) -> None:
        """Save how far the calculation of a waiting structure has come."""
        with self._lock, self._errors():
            self._connection.execute(
                "UPDATE structures SET progress = ? WHERE id = ? AND state = ?",
                (progress, number, WAITING),
            )

    # -- results ----------------------------------------------------------------------------------

    def finish(self, number: int, outcome: Outcome) -> None:
        """Save what came of a waiting structure; it is on the disk when this returns."""
        with self._lock, self._errors():
            self._connection.execute(
                "UPDATE structures SET state = ?, exit_code = ?, seconds = ?, error = ?, "
                "result = ?, structure = ?, progress = ?, attempts = attempts + 1, finished = ? "
                "WHERE id = ? AND state = ?",
                (
                    outcome.state,
                    outcome.exit_code,
                    outcome.seconds,
                    outcome.error,
                    outcome.result,
                    outcome.structure,
                    outcome.progress,
                    timestamp(),
                    number,
                    WAITING,
                ),
            )

    def requeue(self, states: Sequence[str], steps_below: int | None = None) -> int:
        """Let structures in these states wait again; what could not be read stays as it is.

        Args:
            states: such as ``["failed"]``.
            steps_below: only those whose result took fewer steps.
        """
        places = ", ".join("?" * len(states))
        condition, values = f"state IN ({places}) AND input IS NOT NULL", list[Any](states)
        if steps_below is not None:
            condition += " AND json_extract(result, '$.n_steps') < ?"
            values.append(steps_below)
        with self._lock, self._errors():
            return self._connection.execute(
                f"UPDATE structures SET state = '{WAITING}' WHERE {condition}", values
            ).rowcount

    def counts(self) -> dict[str, int]:
        """How many structures are in each state."""
        with self._lock, self._errors():
            found = dict(
                self._connection.execute("SELECT state, COUNT(*) FROM structures GROUP BY state")
            )
        return {state: found.get(state, 0) for state in STATES}

    def exit_codes(self) -> set[int]:
        """Those of all that are finished."""
        with self._lock, self._errors():
            found = self._connection.execute(
                "SELECT DISTINCT exit_code FROM structures WHERE state != ?", (WAITING,)
            )
            return {row[0] for row in found}

    def rows(self, states: Sequence[str] = STATES) -> Iterator[Row]:
        """All structures in these states, in the order of the input."""
        places = ", ".join("?" * len(states))
        query = f"SELECT {_COLUMNS} FROM structures WHERE state IN ({places}) ORDER BY position"
        with self._errors():
            for columns in self._connection.execute(query, list(states)):
                values = dict(zip(Row.__dataclass_fields__, columns, strict=True))
                if values["result"] is not None:
                    values["result"] = json.loads(values["result"])
                yield Row(**values)

    def structure(self, number: int) -> Atoms | None:
        """The structure that a calculation ended with, with its energy and forces if known."""
        found = self._value("structure", number)
        return None if found is None else from_json(found)

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _value(self, column: str, number: int) -> Any:
        with self._lock, self._errors():
            found = self._connection.execute(
                f"SELECT {column} FROM structures WHERE id = ?", (number,)
            ).fetchone()
        return None if found is None else found[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise InputError(f"{self.path}: cannot be used ({error})") from None


def cost(atoms: Atoms) -> float:
    """What an evaluation costs, relative to others: the number of angles, which density decides."""
    volume = abs(atoms.cell.volume) if atoms.cell.rank == 3 else 0.0
    dense = len(atoms) / max(volume, 5.0 * len(atoms)) if atoms.pbc.all() else 0.02
    return float(len(atoms) * dense**2)


def taken_warnings(atoms: Atoms) -> list[str]:
    """What :func:`to_json` kept of how a structure was read; removed from it."""
    found = atoms.info.pop(WARNINGS, None)
    return list(map(str, found)) if isinstance(found, (list, tuple)) else []


def bare_error(error: object, origin: object) -> str:
    """An error without the name of its structure, to be compared with those of others."""
    return str(error).replace(str(origin), "").lstrip(": ")


def to_json(atoms: Atoms, warnings: Sequence[str] = ()) -> str:
    """A structure with its constraints, and what of its ``info`` and results JSON can hold.

    Args:
        warnings: of how it was read, which :func:`from_json` puts under :data:`WARNINGS`.
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.jsonio import encode

    data = atoms.todict()
    info = data.pop("info", {})
    data["info"] = {key: value for key, value in info.items() if _is_plain(value)}
    if warnings:
        data["info"][WARNINGS] = list(warnings)
    results = {} if atoms.calc is None else atoms.calc.results
    kept = ("energy", "forces", "stress")
    if isinstance(atoms.calc, SinglePointCalculator):
        data["results"] = {key: results[key] for key in kept if key in results}
    text: str = encode(data)
    return text


def from_json(text: str) -> Atoms:
    """Inverse of :func:`to_json`.

    Raises:
        InputError: the text is not a structure.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.jsonio import decode

    try:
        data = decode(text)
        results = data.pop("results", None)
        atoms = Atoms.fromdict(data)
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
    except Exception as error:  # whatever ASE makes of a damaged text
        raise InputError(f"a stored structure cannot be read ({error})") from None
    return atoms


def _is_plain(value: Any) -> bool:
    from ase.io.jsonio import encode

    try:
        json.loads(encode(value))
    except (TypeError, ValueError):
        return False
    return True


def _key(entry: Entry) -> str:
    """What tells structures apart: where they come from, and what they are."""
    if isinstance(entry.atoms, InputError):
        content = f"{entry.origin} unreadable"
    else:
        content = f"{entry.origin} {entry.source.sha256}"
    return hashlib.sha256(content.encode()).hexdigest()
