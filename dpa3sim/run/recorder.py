"""Trajectory, table and state of a simulation on disk, such that a kill loses no consistency.

Frames and rows are appended. A state says how long the files were when it was saved, so that
going on from it begins by cutting off what came later: nothing is missing then, and nothing is
there twice. The state replaces the last one in one moment, after the files are on the disk.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write, lock_folder
from dpa3sim.protocols.dynamics.recorders import Row, State

if TYPE_CHECKING:
    from ase import Atoms

STATE = "checkpoint.npz"
TRAJECTORY, TABLE, UNCERTAIN = "trajectory", "thermo", "uncertain"
_VERSION = 1
# The header of an ASE trajectory (ase.io.ulm): where its numbers begin, where it ends, and by
# what factor its table of frames grows.
_NUMBERS, _HEADER, _GROWTH = 24, 48, 42


class FileRecorder:
    """Files of a simulation in a folder; one process at a time. To be closed.

    Args:
        folder: where the files are; may hold those of a run to continue.
        replicas: how many systems there are; each has its own files, numbered if several.
        trajectory_format: ``"extxyz"`` or ``"traj"``.
        uncertain: whether frames of which the model is uncertain are kept.

    Raises:
        InputError: a state that cannot be read, or another process writes there.
    """

    def __init__(
        self, folder: Path, replicas: int, trajectory_format: str, uncertain: bool = False
    ) -> None:
        self.folder = folder
        try:
            self._lock = lock_folder(folder)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is running this simulation") from None
        suffixes = [""] if replicas == 1 else [f"_{k}" for k in range(replicas)]
        kind: type[_Trajectory] = _Ulm if trajectory_format == "traj" else _ExtendedXYZ
        self._trajectories = [
            kind(folder / f"{TRAJECTORY}{s}.{trajectory_format}") for s in suffixes
        ]
        self._tables = [_Table(folder / f"{TABLE}{s}.csv") for s in suffixes]
        self._uncertain = [
            _ExtendedXYZ(folder / f"{UNCERTAIN}{s}.extxyz") for s in suffixes if uncertain
        ]
        self._files: list[_Output] = [*self._trajectories, *self._tables, *self._uncertain]
        self.state: State | None = None
        self._marks: list[list[int]] = []
        if (folder / STATE).exists():
            try:
                self.state, self._marks = self._load()
            except InputError:
                self.close()
                raise

    def begin(self, columns: Sequence[str], replicas: int) -> None:
        """Start all files afresh."""
        for output in self._files:
            output.begin()
        for table in self._tables:
            table.header(columns)

    def rewind(self) -> None:
        """Cut the files to what they were when the state was saved."""
        for output, mark in zip(self._files, self._marks, strict=True):
            try:
                output.rewind(mark)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{output.path}: does not fit to {STATE} ({error}); --force starts again"
                ) from None

    def frame(self, replica: int, atoms: Atoms) -> None:
        """Append a frame."""
        self._trajectories[replica].append(atoms)

    def uncertain(self, replica: int, atoms: Atoms) -> None:
        """Append a frame to those of which the model is uncertain."""
        self._uncertain[replica].append(atoms)

    def row(self, replica: int, row: Row) -> None:
        """Append a row."""
        self._tables[replica].append(row)

    def save(self, state: State) -> None:
        """Save a state, once all that belongs to it is on the disk."""
        self._marks = [output.mark() for output in self._files]
        self.state = state
        content = {"version": _VERSION, "step": state.step, "facts": state.facts}
        data = io.BytesIO()
        text = json.dumps({**content, "files": self._marks}).encode()
        arrays: dict[str, Any] = {"_": np.frombuffer(text, dtype=np.uint8), **state.arrays}
        np.savez(data, **arrays)
        atomic_write(self.folder / STATE, data.getvalue())

    def frames(self, replica: int) -> Iterator[Atoms]:
        """The frames, one at a time."""
        return self._trajectories[replica].read()

    def rows(self, replica: int) -> Iterator[Row]:
        """The rows, one at a time."""
        return self._tables[replica].read()

    def close(self) -> None:
        """Close all files."""
        for output in self._files:
            output.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> FileRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> tuple[State, list[list[int]]]:
        path = self.folder / STATE
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            content = json.loads(arrays.pop("_").tobytes())
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            marks = content["files"]
            if len(marks) != len(self._files):
                raise ValueError(f"{len(marks)} files")
            return State(content["step"], content["facts"], arrays), marks
        except Exception as error:  # numpy and zipfile raise whatever their parsing runs into
            raise InputError(f"{path}: damaged state ({error}); --force starts again") from None


class _Output:
    """A file that grows, and can be cut to what it was at a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def begin(self) -> None:
        """Start an empty file."""
        self._file = self.path.open("wb")

    def mark(self) -> list[int]:
        """Where the file ends, once all is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return [self._file.tell()]

    def rewind(self, mark: Sequence[int]) -> None:
        """Cut the file to a mark and be ready to append."""
        self._cut(mark[0])
        self._file = self.path.open("ab")

    def _cut(self, size: int) -> None:
        now = self.path.stat().st_size
        if now < size:
            raise ValueError(f"shorter than the {size} bytes it had")
        if now > size:
            os.truncate(self.path, size)

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file; what a full disk does not take now belongs to no state."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


class _Table(_Output):
    """Comma-separated values; what is unknown is empty."""

    def header(self, columns: Sequence[str]) -> None:
        self._write(",".join(columns) + "\n")

    def append(self, row: Row) -> None:
        values = ("" if value is None else f"{value:.14g}" for value in row.values())
        self._write(",".join(values) + "\n")

    def read(self) -> Iterator[Row]:
        with self.path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {name: float(value) if value else None for name, value in row.items()}


class _Trajectory(_Output):
    """Frames, one after the other."""

    def append(self, atoms: Atoms) -> None:
        raise NotImplementedError

    def read(self) -> Iterator[Atoms]:
        raise NotImplementedError


class _ExtendedXYZ(_Trajectory):
    def append(self, atoms: Atoms) -> None:
        from ase.io.extxyz import write_xyz

        columns = ["symbols", "positions", "momenta", "forces"]
        text = io.StringIO()
        write_xyz(text, atoms, columns=columns + ["masses"] * atoms.has("masses"))
        self._write(text.getvalue())

    def read(self) -> Iterator[Atoms]:
        from ase.io.extxyz import read_xyz

        with self.path.open(encoding="utf-8") as file:
            # ASE would first look for the beginnings of all frames.
            for first in file:
                frame = [first, *islice(file, int(first) + 1)]
                yield from read_xyz(io.StringIO("".join(frame)), slice(None))


class _Ulm(_Trajectory):
    """ASE's own format, whose header counts the frames and points to a table of them."""

    def begin(self) -> None:
        self._open("w")

    def _open(self, mode: str) -> None:
        from ase.io.trajectory import TrajectoryWriter

        self._file = TrajectoryWriter(self.path, mode)

    def append(self, atoms: Atoms) -> None:
        self._file.write(atoms)

    def mark(self) -> list[int]:
        file = self._file.backend.fd
        file.flush()
        os.fsync(file.fileno())
        with self.path.open("rb") as own:
            header = np.frombuffer(own.read(_HEADER)[_NUMBERS:], dtype="<i8")
        return [self.path.stat().st_size, *header.tolist()]

    def rewind(self, mark: Sequence[int]) -> None:
        size, *header = mark
        self._cut(size)
        _, n_frames, table = header
        room = 1
        while room < n_frames:
            room *= _GROWTH
        with self.path.open("r+b") as file:
            file.seek(_NUMBERS)
            file.write(np.array(header, dtype="<i8").tobytes())
            # Entries of frames that were cut off.
            file.seek(table + 8 * n_frames)
            file.write(bytes(8 * (room - n_frames)))
        self._open("a")

    def read(self) -> Iterator[Atoms]:
        from ase.io.trajectory import TrajectoryReader

        with TrajectoryReader(self.path) as reader:
            yield from reader
