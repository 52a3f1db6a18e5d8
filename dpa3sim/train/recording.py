"""Where the states, the learning curve and the models of a training go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

Row = dict[str, float | None]
Models = Mapping[str, dict[str, np.ndarray]]
"""The weights of every task."""


@dataclass(frozen=True)
class State:
    """All that a training needs to continue exactly.

    Attributes:
        step: steps done. facts: JSON-ready. tensors: by name.
    """

    step: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without the prefix."""
        found = self.tensors.items()
        return {name.removeprefix(prefix): x for name, x in found if name.startswith(prefix)}


class Recorder(Protocol):
    """Stores what a training produces."""

    def load(self) -> State | None:
        """The last state that was saved; None before the first."""

    def save(self, state: State) -> None:
        """Save a state in place of the last one."""

    def curve(self, rows: Sequence[Row]) -> None:
        """Write the learning curve so far."""

    def models(self, kind: str, weights: Models) -> None:
        """Write the models of all tasks, the ``"best"`` or the ``"last"`` ones."""

    def graphs(self, name: str) -> Path | None:
        """Where the edges of a set of frames are kept; None for nowhere."""


class MemoryRecorder:
    """Keeps everything in memory.

    Attributes:
        state: the last one. rows: the learning curve. found: weights by kind and task.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.rows: list[Row] = []
        self.found: dict[str, Models] = {}

    def load(self) -> State | None:
        """See :class:`Recorder`."""
        return self.state

    def save(self, state: State) -> None:
        """See :class:`Recorder`."""
        copied = {name: x.clone() for name, x in state.tensors.items()}
        self.state = State(state.step, json.loads(json.dumps(state.facts)), copied)

    def curve(self, rows: Sequence[Row]) -> None:
        """See :class:`Recorder`."""
        self.rows = list(rows)

    def models(self, kind: str, weights: Models) -> None:
        """See :class:`Recorder`."""
        self.found[kind] = weights

    def graphs(self, name: str) -> Path | None:
        """See :class:`Recorder`."""
        return None
