"""Edges of all frames, found once and kept in a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.graph.edges import EdgeRules, Edges, find_edges
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.inputs import with_inputs
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frames

# A neighbour and its lattice shift: 10 bytes an edge.
_EDGE = np.dtype([("j", "<i4"), ("shift", "<i2", (3,))])


class GraphStore:
    """The frames of a task as systems with their edges.

    The edges are 10 bytes each. They are on the disk: in ``path``, where another run with the same
    frames and rules finds them, or in a temporary file.

    Args:
        frames: the frames. config: the model. rules: which neighbours are edges.
        path: where to keep the edges; None for a temporary file.
        progress: called with the number of frames done.

    Raises:
        InputError: a frame that the model cannot compute; the message has its origin.
    """

    def __init__(
        self,
        frames: Frames,
        config: ModelConfig,
        rules: EdgeRules,
        path: Path | None = None,
        progress: Callable[[int], object] = lambda done: None,
    ) -> None:
        self.frames, self._config = frames, config
        n_atoms = int(frames.starts[-1])
        self._n_edges = np.zeros(n_atoms, dtype=np.int32)
        self._n_angle_edges = np.zeros(n_atoms, dtype=np.int32)
        self.n_cut = 0
        """Neighbours that the selection limits cut, in all frames together."""
        if path is None or not self._load(path, rules):
            self._find(rules, path, progress)
        self._first = np.concatenate([[0], np.cumsum(self._n_edges, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def angles(self) -> np.ndarray:
        """``(n_frames,)`` int64, angles of each frame."""
        squares = self._n_angle_edges.astype(np.int64) ** 2
        total = np.concatenate([[0], np.cumsum(squares)])
        found: np.ndarray = np.diff(total[self.frames.starts])
        return found

    def system(self, index: int) -> System:
        """A frame with the inputs of the model."""
        return with_inputs(self.frames[index].system, self._config)

    def edges(self, index: int) -> Edges:
        """The edges of a frame."""
        start, end = self.frames.starts[index : index + 2]
        counts = self._n_edges[start:end]
        found = self._edges[self._first[start] : self._first[end]]
        return Edges(
            i=np.repeat(np.arange(end - start), counts),
            j=found["j"].astype(np.int64),
            shifts=found["shift"].astype(np.int64),
            n_angle_edges=self._n_angle_edges[start:end].astype(np.int64),
            n_cut_edges=0,
            n_cut_angle_edges=0,
        )

    def _find(self, rules: EdgeRules, path: Path | None, progress: Callable[[int], object]) -> None:
        file: Any = TemporaryFile() if path is None else path.open("w+b")  # noqa: SIM115
        total = 0
        for index, frame in enumerate(self.frames):
            try:
                x = with_inputs(frame.system, self._config)
                edges = find_edges(x.positions, x.cell, x.pbc, x.types, rules)
            except InputError as error:
                raise InputError(f"{frame.origin}: {error}") from None
            atoms = slice(self.frames.starts[index], self.frames.starts[index + 1])
            self._n_edges[atoms] = np.bincount(edges.i, minlength=len(x))
            self._n_angle_edges[atoms] = edges.n_angle_edges
            self.n_cut += edges.n_cut_edges + edges.n_cut_angle_edges
            packed = np.empty(len(edges.j), dtype=_EDGE)
            packed["j"], packed["shift"] = edges.j, edges.shifts
            file.write(packed.tobytes())
            total += len(packed)
            progress(index + 1)
        file.flush()
        self._edges = _mapped(file, total)
        file.close()  # the mapping keeps it alive
        if path is not None:
            facts = {"key": self._key(rules), "n_cut": self.n_cut, "n_edges": total}
            np.save(_counts(path), np.stack([self._n_edges, self._n_angle_edges]))
            atomic_write(_facts(path), json.dumps(facts))

    def _load(self, path: Path, rules: EdgeRules) -> bool:
        """Take the edges from a file, if they are those of the same frames and rules."""
        try:
            facts = json.loads(_facts(path).read_text(encoding="utf-8"))
            if facts["key"] != self._key(rules):
                return False
            counts = np.load(_counts(path), allow_pickle=False)
            with path.open("rb") as file:
                self._edges = _mapped(file, facts["n_edges"])
            self._n_edges, self._n_angle_edges = counts
            self.n_cut = facts["n_cut"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return len(self._n_edges) == self.frames.starts[-1]

    def _key(self, rules: EdgeRules) -> str:
        facts = {**asdict(rules), "excluded_pairs": sorted(rules.excluded_pairs)}
        text = json.dumps([facts, self._config.type_map, self.frames.sha256])
        return hashlib.sha256(text.encode()).hexdigest()


def _mapped(file: Any, n_edges: int) -> np.ndarray:
    if not n_edges:
        return np.empty(0, dtype=_EDGE)
    found: np.ndarray = np.memmap(file, dtype=_EDGE, mode="r", shape=(n_edges,))
    return found


def _counts(path: Path) -> Path:
    return path.with_name(f"{path.name}.counts.npy")


def _facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
