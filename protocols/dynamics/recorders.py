"""Recorders store the frames, rows and states that a simulation produces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class State:
    """All that a run needs to continue exactly: see :class:`.replicas.Replica`.

    Attributes:
        step: number of steps done. facts: JSON-ready data. arrays: by name.
    """

    step: int
    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Recorder(Protocol):
    """Stores what a run produces."""

    @property
    def state(self) -> State | None:
        """The last state that was saved; None before the first."""

    def begin(self, columns: Sequence[str], replicas: int) -> None:
        """Start a new run."""

    def rewind(self) -> None:
        """Drop everything recorded after the state."""

    def frame(self, replica: int, atoms: Atoms) -> None:
        """Record a frame: positions, momenta, cell; ``info`` holds step and time."""

    def uncertain(self, replica: int, atoms: Atoms) -> None:
        """Record a frame of which the model is uncertain."""

    def row(self, replica: int, row: Row) -> None:
        """Record a row of the table."""

    def save(self, state: State) -> None:
        """Save the state that belongs to all frames and rows so far."""

    def frames(self, replica: int) -> Iterator[Atoms]:
        """The frames, one by one."""

    def rows(self, replica: int) -> Iterator[Row]:
        """The rows, one by one."""


@dataclass
class MemoryRecorder:
    """A :class:`Recorder` in memory, which grows with the length of the run.

    Attributes:
        state: see :class:`Recorder`. uncertain_frames: of each replica.
    """

    state: State | None = None
    uncertain_frames: list[list[Atoms]] = field(default_factory=list)
    _frames: list[list[Atoms]] = field(default_factory=list)
    _rows: list[list[dict[str, float | None]]] = field(default_factory=list)
    _kept: tuple[list[int], list[int], list[int]] = ([], [], [])

    def begin(self, columns: Sequence[str], replicas: int) -> None:
        """Start afresh."""
        self._frames = [[] for _ in range(replicas)]
        self.uncertain_frames = [[] for _ in range(replicas)]
        self._rows = [[] for _ in range(replicas)]

    def rewind(self) -> None:
        """Drop what came after the state."""
        for frames, n in zip(self._frames, self._kept[0], strict=True):
            del frames[n:]
        for rows, n in zip(self._rows, self._kept[1], strict=True):
            del rows[n:]
        for frames, n in zip(self.uncertain_frames, self._kept[2], strict=True):
            del frames[n:]

    def frame(self, replica: int, atoms: Atoms) -> None:
        """Keep a frame."""
        self._frames[replica].append(atoms)

    def uncertain(self, replica: int, atoms: Atoms) -> None:
        """Keep a frame of which the model is uncertain."""
        self.uncertain_frames[replica].append(atoms)

    def row(self, replica: int, row: Row) -> None:
        """Keep a row."""
        self._rows[replica].append(dict(row))

    def save(self, state: State) -> None:
        """Keep a state."""
        self.state = state
        frames, rows, uncertain = self._frames, self._rows, self.uncertain_frames
        self._kept = list(map(len, frames)), list(map(len, rows)), list(map(len, uncertain))

    def frames(self, replica: int) -> Iterator[Atoms]:
        """The frames."""
        return iter(self._frames[replica])

    def rows(self, replica: int) -> Iterator[Row]:
        """The rows."""
        return iter(self._rows[replica])
