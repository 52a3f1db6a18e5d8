"""How much memory an evaluation needs: a linear model, fitted to small probes.

``bytes = c . (1, atoms, edges, angles, edges and angles of the largest block)`` in the slots of
a layout (docs/methods.md#memory-model). It is fitted once for each model, precision, device and
policy, and kept on disk, so that batches are sized without ever running out of memory on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dpa3sim
from dpa3sim.checkpoints.registry import cache_directory
from dpa3sim.common.files import atomic_write
from dpa3sim.graph.blocks import BlockGraph, BlockLimits, Layout, make_layout
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.model.config import ModelConfig

# Shares of the free memory that an evaluation may use.
CPU_SHARE, DEVICE_SHARE = 0.5, 0.85
CONTROL_GROUP = "/sys/fs/cgroup"
# Centres, edges and angle-edges of each, and whether all centres are in one block.
PROBES = (
    (4, 6, 2, False),
    (16, 6, 2, False),
    (8, 24, 2, False),
    (8, 12, 8, False),
    (8, 24, 2, True),
    (8, 12, 8, True),
    (12, 24, 10, True),
    (12, 24, 10, False),
)
UNLIMITED = 2**62


def memory_share(device: torch.device) -> float:
    """Share of the free memory that an evaluation should use."""
    return DEVICE_SHARE if device.type == "cuda" else CPU_SHARE


def free_bytes(device: torch.device) -> int:
    """Free memory of ``device``; on a host, within the limits of the process's control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    available = 8 * 2**30  # unknown system: what most machines have
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = 1024 * int(line.split()[1])
    except OSError:
        pass
    return min([available, *_control_group_free()])


def _control_group_free() -> list[int]:
    """What a container or a batch system leaves, if it sets a limit."""
    try:
        limit = int(Path(CONTROL_GROUP, "memory.max").read_text())
        return [limit - int(Path(CONTROL_GROUP, "memory.current").read_text())]
    except (OSError, ValueError):  # no such group, or "max"
        return []


class MemoryModel:
    """Predicts the memory of an evaluation.

    Args:
        evaluator: the model, which probes run on.
        config: its options.
        device: where it runs.
        identity: what tells this model and its precision from others, for the cache on disk.
    """

    def __init__(
        self, evaluator: Evaluator, config: ModelConfig, device: torch.device, identity: str
    ) -> None:
        self._evaluator = evaluator
        self._config = config
        self._device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._identity = {
            "model": identity,
            "device": name,
            "kernels": evaluator.kernels,
            "torch": torch.__version__,
            "dpa3sim": dpa3sim.__version__,
        }
        self._coefficients: dict[str, np.ndarray] = {}

    def estimate(self, layout: Layout, policy: MemoryPolicy) -> int:
        """Bytes at the peak of an evaluation, besides the weights."""
        return int(_counts(layout) @ self._fitted(policy))

    def _fitted(self, policy: MemoryPolicy) -> np.ndarray:
        key = f"{policy.keep} {policy.every}"
        if key not in self._coefficients:
            self._coefficients |= self._read()
        if key not in self._coefficients:
            self._coefficients[key] = self._fit(policy)
            self._write()
        return self._coefficients[key]

    def _fit(self, policy: MemoryPolicy) -> np.ndarray:
        rows, peaks = [], []
        for atoms, edges, angle_edges, together in PROBES:
            graph = probe(self._config, atoms, edges, angle_edges, together, self._device)

            def run(graph: BlockGraph = graph) -> None:
                with self._evaluator.workspace.private({}):
                    self._evaluator.evaluate(graph, policy)

            rows.append(_counts(graph.layout))
            peaks.append(peak_bytes(self._device, run))
        matrix = np.array(rows)
        scale = matrix.max(axis=0)
        solution = np.linalg.lstsq(matrix / scale, np.array(peaks, dtype=float), rcond=None)[0]
        fitted: np.ndarray = np.maximum(solution / scale, 0.0)
        return fitted

    @property
    def _file(self) -> Path:
        return cache_directory() / "memory.json"

    def _read(self) -> dict[str, np.ndarray]:
        """Coefficients of this model from the cache; an unreadable cache is an empty one."""
        for entry in self._entries():
            if entry.get("for") == self._identity:
                found = entry["coefficients"].items()
                return {k: np.array(v) for k, v in found if _are_six_numbers(v)}
        return {}

    def _entries(self) -> list[dict[str, Any]]:
        try:
            data = json.loads(self._file.read_text())
            return [e for e in data if isinstance(e.get("coefficients"), dict)]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            return []

    def _write(self) -> None:
        others = [e for e in self._entries() if e.get("for") != self._identity]
        own = {k: v.tolist() for k, v in self._coefficients.items()}
        text = json.dumps([*others, {"for": self._identity, "coefficients": own}], indent=1)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._file, text)
        except OSError:
            pass  # it is a cache: the next process fits again


def _are_six_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 6 and all(type(v) is float for v in values)


def _counts(layout: Layout) -> np.ndarray:
    return np.array(
        [
            1,
            len(layout.order),
            layout.n_edges,
            layout.n_angles,
            max(b.n_edges for b in layout.blocks),
            max(b.n_angles for b in layout.blocks),
        ],
        dtype=np.float64,
    )


def probe(
    config: ModelConfig,
    n_atoms: int,
    n_edges: int | np.ndarray,
    n_angle_edges: int | np.ndarray,
    together: bool,
    device: torch.device,
) -> BlockGraph:
    """A graph of random vectors with the given numbers of edges and angle-edges.

    Args:
        config: the model.
        n_atoms: number of centres.
        n_edges, n_angle_edges: of every centre, or ``(n_atoms,)`` of each.
        together: put all centres into one block, which needs equal numbers, or each in its own.
        device: where the graph is.
    """
    descriptor, fitting = config.descriptor, config.fitting
    if not descriptor.update_angle:
        n_angle_edges = 0
    size = UNLIMITED if together else 1
    limits = BlockLimits(size, size, 0.0)
    counts = np.full(n_atoms, n_edges), np.full(n_atoms, n_angle_edges)
    layout = make_layout(*counts, limits)
    rng = np.random.default_rng(0)
    k, m, edge_start, *_ = layout.centres
    edge_i = np.repeat(np.arange(n_atoms), k)
    edge_j = rng.integers(n_atoms, size=len(edge_i))
    incoming = np.argsort(edge_j, kind="stable")
    slots = np.flatnonzero(np.arange(len(edge_i)) - edge_start[edge_i] < m[edge_i])
    vectors = rng.normal(size=(len(edge_i), 3))
    length: float | np.ndarray = 3
    if descriptor.smooth_cutoff is not None:  # where every derivative counts
        shares = rng.uniform(0.1, 0.9, size=(len(edge_i), 1))
        length = descriptor.a_rcut - shares * descriptor.smooth_cutoff
    vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    charged = descriptor.add_chg_spin_ebd
    return BlockGraph(
        layout=layout,
        n_structures=1,
        types=tensor(np.zeros(n_atoms, dtype=np.int64)),
        structure=tensor(np.zeros(n_atoms, dtype=np.int64)),
        edge_i=tensor(edge_i),
        edge_j=tensor(edge_j),
        vectors=tensor(vectors),
        edge_mask=tensor(np.ones(len(edge_i), dtype=bool)),
        angle_slots=tensor(slots),
        angle_edge_mask=tensor(np.ones(len(slots), dtype=bool)),
        incoming=tensor(incoming),
        incoming_start=tensor(np.searchsorted(edge_j[incoming], np.arange(n_atoms))),
        fparam=tensor(np.zeros((1, fitting.numb_fparam))),
        aparam=tensor(np.zeros((n_atoms, fitting.numb_aparam))),
        charge_spin=tensor(np.zeros((1, 2), dtype=np.int64)) if charged else None,
    )


def peak_bytes(device: torch.device, function: Callable[[], None]) -> int:
    """Memory that ``function`` allocates on ``device`` at its peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Allocations() as allocations:
        function()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._current = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        known = self._live.get(key)
        if known is not None:
            if not known[0].expired():
                return
            self._current -= known[1]
        self._live[key] = StorageWeakRef(storage), storage.nbytes()
        self._current += storage.nbytes()
        if self._current > self.peak:
            # Only now does it matter what has been freed meanwhile.
            self._live = {k: v for k, v in self._live.items() if not v[0].expired()}
            self._current = sum(nbytes for _, nbytes in self._live.values())
            self.peak = max(self.peak, self._current)
