"""The results of a screening as one, whether in one database or in those of its shards."""

from __future__ import annotations

import csv
import heapq
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write, usual_recursion
from dpa3sim.run.directory import PROVENANCE
from dpa3sim.screen.database import NAME, STATES, Database, Row

if TYPE_CHECKING:
    from ase import Atoms

TABLE = "table.csv"
# Of a result, what says the same for all structures, or is in a column of its own.
_LEFT_OUT = frozenset({"settings", "units", "model", "converged", "n_atoms", "formula"})
_COLUMNS = ("position", "label", "origin", "formula", "n_atoms", "state", "exit_code", "error")
_LAST_COLUMNS = ("seconds", "attempts", "finished")


@dataclass(frozen=True)
class Part:
    """The database of a screening, or of one of its shards."""

    folder: Path
    database: Database


class Results:
    """All results of a screening. To be closed, or used as a context manager.

    Args:
        folder: that of the screening, with a database, or with folders ``shard-I-of-N``.

    Attributes:
        parts: the databases.

    Raises:
        InputError: there are none, or they are of different calculations.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folders = part_folders(folder)
        if not folders:
            raise InputError(f"{folder}: holds no results of a screening")
        if len({fingerprint(f) for f in folders}) > 1:
            names = ", ".join(f.name for f in folders)
            raise InputError(f"{folder}: its parts are of different calculations ({names})")
        self.parts = [Part(f, Database(f / NAME)) for f in folders]

    def counts(self) -> dict[str, int]:
        """How many structures are in each state."""
        total: Counter[str] = Counter(dict.fromkeys(STATES, 0))
        for part in self.parts:
            total.update(part.database.counts())
        return dict(total)

    def rows(self, states: Sequence[str] = STATES) -> Iterator[tuple[Part, Row]]:
        """All structures in these states, in the order of the input."""

        def of(part: Part) -> Iterator[tuple[Part, Row]]:
            return ((part, row) for row in part.database.rows(states))

        streams = [of(part) for part in self.parts]
        return heapq.merge(*streams, key=lambda item: item[1].position)

    def table(self, states: Sequence[str] = STATES) -> Iterator[dict[str, Any]]:
        """A flat record for each structure; what is nested in a result is JSON text."""
        for _, row in self.rows(states):
            record = {name: getattr(row, name) for name in _COLUMNS}
            for name, value in (row.result or {}).items():
                if name not in _LEFT_OUT:
                    nested = isinstance(value, (dict, list))
                    record[name] = json.dumps(value, ensure_ascii=False) if nested else value
            yield record | {name: getattr(row, name) for name in _LAST_COLUMNS}

    def structures(self, states: Sequence[str] = STATES) -> Iterator[tuple[Row, Atoms]]:
        """What calculations ended with."""
        for part, row in self.rows(states):
            atoms = part.database.structure(row.id)
            if atoms is not None:
                yield row, atoms

    def close(self) -> None:
        """Release the files."""
        for part in self.parts:
            part.database.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def part_folders(folder: Path) -> list[Path]:
    """The folders that hold a database of a screening."""
    if (folder / NAME).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"shard-*-of-*/{NAME}"))


def provenance(folder: Path) -> dict[str, Any]:
    """What a part of a screening was made with.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with usual_recursion():
            found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / PROVENANCE}: cannot be read ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("calculation"), dict):
        raise InputError(f"{folder / PROVENANCE}: does not say which calculation it is of")
    return found


def fingerprint(folder: Path) -> str:
    """What tells the calculation of a part from others."""
    return str(provenance(folder).get("fingerprint"))


def columns(records: Sequence[dict[str, Any]]) -> list[str]:
    """All columns that any record has, in order, those about the computing last."""
    names = dict.fromkeys(name for record in records for name in record)
    return [n for n in names if n not in _LAST_COLUMNS] + [n for n in _LAST_COLUMNS if n in names]


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """A table with a header; numbers in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(records) or list(_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    atomic_write(path, text.getvalue())


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """The same table with types.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("pyarrow is not installed; pip install 'dpa3sim[parquet]'") from None
    names = columns(records) or list(_COLUMNS)
    table = pa.table({name: [record.get(name) for record in records] for name in names})
    part = path.with_name(f".{path.name}.part")
    try:
        pq.write_table(table, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_structures(path: Path, results: Results, states: Sequence[str]) -> int:
    """Structures with their energies, in any format that ASE appends to, or an ASE database.

    Returns:
        how many there are.
    """
    import ase.db
    from ase.io import write

    part = path.with_name(f".part-{path.name}")
    part.unlink(missing_ok=True)
    count = 0
    try:
        if path.suffix == ".db":
            with ase.db.connect(part) as database:
                for row, atoms in results.structures(states):
                    database.write(
                        atoms, label=row.label, state=row.state, data={"origin": row.origin}
                    )
                    count += 1
        else:
            for row, atoms in results.structures(states):
                atoms.info |= {"label": row.label, "origin": row.origin, "state": row.state}
                write(part, atoms, format=path.suffix[1:], append=count > 0)
                count += 1
        if count:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count
