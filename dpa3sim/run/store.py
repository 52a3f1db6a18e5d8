"""Evaluations on disk, so that a calculation that was killed does not repeat them.

A protocol is a deterministic function of evaluations. Started again over a
:class:`StoredPotential` it asks the same questions, gets the saved answers bit for bit, and goes
on where it was: with all of its state, such as the memory of an optimizer, as if nothing had
happened.

The last bits of an evaluation depend on what else is in its batch, so that requests are divided
into the same batches whatever is saved already.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import Dpa3simError, InputError, StorageError
from dpa3sim.graph.lists import Counters
from dpa3sim.potential.evaluation import Evaluation, Uncertainty, raise_first
from dpa3sim.potential.interface import BatchPotential, dispersion_of, rigidity_of
from dpa3sim.potential.settings import Dtype
from dpa3sim.run.directory import EVALUATIONS
from dpa3sim.structures.system import AtomsLike, System, as_system

if TYPE_CHECKING:
    import torch

    from dpa3sim.checkpoints import ModelFile
    from dpa3sim.potential.dispersion import Dispersion
    from dpa3sim.uncertainty.rigidity import Rigidity

# Requests are cut into batches of about so many atoms: no more than 5 to 20 s of computing, which
# is what a kill can cost. Fixed numbers, since batches must not depend on timing.
CPU_CHUNK_ATOMS, DEVICE_CHUNK_ATOMS = 512, 2**14
# Computed evaluations wait no longer than this for the disk, s of computing.
COMMIT_SECONDS = 2.0
# Of a damaged file even the names of its tables can be no text.
_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    key BLOB PRIMARY KEY, request INTEGER NOT NULL, energy REAL NOT NULL, arrays BLOB NOT NULL,
    limits TEXT NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID
"""
_SCHEMA_HESSIANS = """
CREATE TABLE IF NOT EXISTS hessians (
    key BLOB PRIMARY KEY, rows BLOB NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID
"""
# Of an evaluation, what is neither the energy nor an array.
_LIMITS = ("n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges", "warnings")


@dataclass
class StoreStatistics:
    """The requests to a :class:`StoredPotential` so far.

    Attributes:
        asked: evaluations asked for; found: of these, those that were saved already.
        computed: evaluations by the model; batches: in so many batches.
    """

    asked: int = 0
    found: int = 0
    computed: int = 0
    batches: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain form."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.asked} evaluations: {self.computed} computed in {self.batches} batches, "
            f"{self.found} from {EVALUATIONS}"
        )


class StoredPotential:
    """A potential that remembers on disk what it has computed; otherwise like the one beneath.

    Evaluations are told apart by the exact positions, cell, elements, periodicity and extra
    inputs, and by the model, head, precision and truncation. One process at a time may have the
    file open. To be closed, or used as a context manager.

    Args:
        potential: computes what is not there.
        path: the database, an SQLite file; made if absent.
        chunk_atoms: larger requests are cut into batches that are saved one by one; None is
            what the device computes in some seconds.
        progress: called after every batch of a request of several, with the number of structures
            that are done, and of all.

    Attributes:
        statistics: what was asked so far.

    Raises:
        InputError: the file is not such a database, or another process has it open.
    """

    def __init__(
        self,
        potential: BatchPotential,
        path: Path,
        chunk_atoms: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.potential = potential
        self.path = path
        self._progress = progress
        self.statistics = StoreStatistics()
        self._identity = potential.identity.encode()
        usual = CPU_CHUNK_ATOMS if potential.device.type == "cpu" else DEVICE_CHUNK_ATOMS
        self._chunk_atoms = chunk_atoms or usual
        self._request = 0
        self._batches = 0
        self._unsaved = 0.0
        self._lock = RLock()
        self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        # Explicit transactions; the lock below makes the use from several threads safe.
        database = sqlite3.connect(
            self.path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        try:
            # A rollback journal needs no shared memory, which network file systems lack.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
            database.execute(_SCHEMA)
            database.execute(_SCHEMA_HESSIANS)
            database.execute("COMMIT")
        except _ERRORS as error:
            database.close()
            raise self._told(error) from None
        return database

    def _told(self, error: Exception) -> Dpa3simError:
        """The message for an error of the database."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return InputError(f"{self.path}: cannot be used (another process is using it)")
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            full = OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, str(error))
            return StorageError.of(full, self.path)
        return InputError(f"{self.path}: cannot be used ({error}); --force starts again")

    @property
    def model(self) -> ModelFile:
        """The model in use."""
        return self.potential.model

    @property
    def rigidity(self) -> Rigidity | None:
        """What uncertainties are made from."""
        return rigidity_of(self.potential)

    @property
    def dispersion(self) -> Dispersion | None:
        """What is added to the model."""
        return dispersion_of(self.potential)

    @property
    def counters(self) -> Counters:
        """The work of the model so far."""
        return self.potential.counters

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.potential.device

    @property
    def dtype(self) -> str:
        """Precision of the model."""
        return self.potential.dtype

    @property
    def batches(self) -> int:
        """Number of batches that an undisturbed run would have evaluated up to here."""
        return self._batches

    @property
    def identity(self) -> str:
        """A text that distinguishes results of this potential from those of others."""
        return self.potential.identity

    def __repr__(self) -> str:
        return repr(self.potential)

    def in_precision(self, dtype: Dtype) -> StoredPotential:
        """The potential itself, because the stored evaluations have one precision.

        Raises:
            InputError: another precision is asked for.
        """
        if dtype not in ("auto", self.dtype):
            raise InputError(f"{self.path} is of a model in {self.dtype}, not in {dtype}")
        return self

    def check(self, structure: AtomsLike | System) -> None:
        """Raise InputError if ``structure`` cannot be evaluated; cheap, the network is not run."""
        self.potential.check(structure)

    def evaluate(self, structures: Sequence[AtomsLike | System]) -> list[Evaluation]:
        """Like :meth:`Potential.evaluate`, with saved evaluations in the place of new ones.

        Raises:
            InputError, NonFiniteError, OutOfMemoryError: see there.
        """
        return raise_first(self.evaluate_each(structures))

    def evaluate_each(
        self, structures: Sequence[AtomsLike | System]
    ) -> list[Evaluation | Dpa3simError]:
        """Like :meth:`evaluate`, with the error of a bad structure in place of its result."""
        plain = [as_system(structure) for structure in structures]
        keys = [self._key(structure) for structure in plain]
        with self._lock:
            self._request += 1
            known: dict[bytes, Evaluation | Dpa3simError] = {}
            fresh: dict[bytes, System] = {}
            for key, structure in zip(keys, plain, strict=True):
                if key in known or key in fresh:
                    continue
                saved, request = self._load(key)
                if saved is not None:
                    known[key] = saved
                # What an undisturbed run would compute now, saved or not.
                if saved is None or request == self._request:
                    fresh[key] = structure
            self.statistics.asked += len(keys)
            self.statistics.found += sum(key in known for key in keys)
            chunks, done = self._chunks(fresh), 0
            for chunk in chunks:
                self._batches += 1
                missing = {key: fresh[key] for key in chunk if key not in known}
                if missing:
                    known |= self._compute(missing)
                done += len(chunk)
                if self._progress is not None and len(chunks) > 1:
                    self._progress(done, len(fresh))
        return [known[key] for key in keys]

    def hessian(
        self, structure: AtomsLike | System, atoms: Sequence[int] | None = None
    ) -> np.ndarray:
        """Like :meth:`Potential.hessian`, saved as a whole.

        Raises:
            InputError: see there.
        """
        plain = as_system(structure)
        rows = list(range(len(plain.numbers))) if atoms is None else list(atoms)
        key = hashlib.sha256(self._key(plain) + repr(rows).encode()).digest()
        with self._lock:
            self.statistics.asked += 1
            saved = self._row("SELECT rows, checksum FROM hessians WHERE key = ?", key)
            if saved is not None:
                self.statistics.found += 1
                matrix = np.frombuffer(saved[0], dtype="<f8").astype(np.float64)
                return matrix.reshape(3 * len(rows), 3 * len(plain.numbers))
            matrix = self.potential.hessian(plain, rows)
            self.statistics.computed += 1
            self._save()
            blob = np.ascontiguousarray(matrix, dtype="<f8").tobytes()
            self._execute("INSERT INTO hessians VALUES (?, ?, ?)", key, blob)
            return matrix

    def close(self) -> None:
        """Save what is not saved yet and release the file."""
        with self._lock:
            try:
                self._save()
            finally:
                self._database.close()

    def __enter__(self) -> StoredPotential:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chunks(self, structures: dict[bytes, System]) -> list[list[bytes]]:
        """The keys of ``structures`` in batches, by size alone."""
        chunks: list[list[bytes]] = []
        room = 0
        for key, structure in structures.items():
            size = len(structure.numbers)
            if not chunks or size > room:
                chunks.append([])
                room = self._chunk_atoms
            chunks[-1].append(key)
            room -= size
        return chunks

    def _compute(self, missing: dict[bytes, System]) -> dict[bytes, Evaluation | Dpa3simError]:
        """Evaluate as one batch, and save all of its results or none."""
        began, batches = time.monotonic(), self.counters.batches
        outcomes = self.potential.evaluate_each(list(missing.values()))
        self._unsaved += time.monotonic() - began
        self.statistics.batches += self.counters.batches - batches
        if not self._database.in_transaction:
            self._execute("BEGIN")
        for key, outcome in zip(missing, outcomes, strict=True):
            if isinstance(outcome, Evaluation):
                self.statistics.computed += 1
                self._insert(key, outcome)
        if self._unsaved >= COMMIT_SECONDS:
            self._save()
        return dict(zip(missing, outcomes, strict=True))

    def _save(self) -> None:
        if self._database.in_transaction:
            self._execute("COMMIT")
        self._unsaved = 0.0

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Run a statement; an INSERT gets the checksum of its values as the last one."""
        if values:
            values = (*values, _checksum(values))
        try:
            return self._database.execute(statement, values)
        except _ERRORS as error:
            raise self._told(error) from None

    def _row(self, query: str, key: bytes) -> tuple[Any, ...] | None:
        """The values that a key was saved with.

        Raises:
            InputError: they are other values now.
        """
        try:
            row = self._database.execute(query, (key,)).fetchone()
        except _ERRORS as error:
            raise self._told(error) from None
        if row is None:
            return None
        *values, check = row
        if check != _checksum((key, *values)):
            raise InputError(f"{self.path}: damaged; --force starts again")
        return tuple(values)

    def _key(self, structure: System) -> bytes:
        digest = hashlib.sha256(self._identity)
        for part in structure.key():
            data = part if isinstance(part, bytes) else str(part).encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.digest()

    def _insert(self, key: bytes, e: Evaluation) -> None:
        arrays = np.concatenate([e.energies, e.forces.ravel(), e.virial.ravel()])
        limits = {name: getattr(e, name) for name in _LIMITS}
        if e.uncertainty is not None:
            limits["uncertainty"] = e.uncertainty.to_dict()
        self._execute(
            "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
            *(key, self._request, e.energy, arrays.astype("<f8").tobytes(), json.dumps(limits)),
        )

    def _load(self, key: bytes) -> tuple[Evaluation | None, int]:
        """A saved evaluation, and which request it was computed for."""
        row = self._row(
            "SELECT request, energy, arrays, limits, checksum FROM evaluations WHERE key = ?", key
        )
        if row is None:
            return None, 0
        request, energy, blob, limits = row
        arrays = np.frombuffer(blob, dtype="<f8").astype(np.float64)
        n = (len(arrays) - 9) // 4
        limited = json.loads(limits)
        judged = limited.pop("uncertainty", None)
        evaluation = Evaluation(
            energy=energy,
            energies=arrays[:n],
            forces=arrays[n : 4 * n].reshape(n, 3),
            virial=arrays[4 * n :].reshape(3, 3),
            uncertainty=judged and Uncertainty.from_dict(judged),
            **(limited | {"warnings": tuple(limited["warnings"])}),
        )
        return evaluation, request


def _checksum(values: Sequence[Any]) -> bytes:
    """Of a row: a damaged disk must not change energies."""
    return hashlib.sha256(repr(tuple(values)).encode()).digest()
