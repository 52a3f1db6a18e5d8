"""How much memory an evaluation needs, and the way of evaluating that fits into what there is.

The need is a linear model, fitted to small probes:

``bytes = c . (1, atoms, edges, angles, edges and angles of the largest block)`` in the slots of
a layout (docs/methods.md#memory-model). It is fitted once for each model, precision, device and
policy, and kept on disk, so that batches are sized without ever running out of memory on purpose.
"""

from __future__ import annotations

import json
import math
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
from dpa3sim.common.errors import OutOfMemoryError
from dpa3sim.common.files import atomic_write
from dpa3sim.graph.blocks import UNLIMITED, BlockGraph, BlockLimits, Layout, make_layout
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.probes import probe
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
# Pre-activations of the angles of a block: what fits the caches of a core or two, and what
# keeps an accelerator busy.
CPU_BLOCK_BYTES, DEVICE_BLOCK_BYTES = 4 * 2**20, 2**28
# Work in angles that takes as long as starting the operations of another block (on the CPU
# measured: 1600 with the 9-layer, 4100 with the 24-layer model; a GPU is far faster at angles).
CPU_OVERHEAD, DEVICE_OVERHEAD = 2500.0, 2.0e5
# The Triton programs start once for all blocks: what is left for a block are some 16 operations
# of the geometry and the results, not 116 for each layer (counted; the ratio is for 9 layers).
TRITON_OVERHEAD = DEVICE_OVERHEAD / 60
# Pre-activations are kept up to here: beyond, writing and reading them gains little.
KEEP_BYTES = 2**29
# Below this no memory model is needed.
SMALL_BYTES = 2**27
# Room beyond the present counts where shapes have to stay:
# docs/methods.md#candidates-edges-angles.
DEVICE_MARGIN = 0.08
# There, rooms come in multiples of this.
ROOM_BUCKET = 4


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

    def estimate(self, layout: Layout, policy: MemoryPolicy, others: int = 0) -> int:
        """Bytes at the peak of an evaluation, besides the weights.

        Args:
            layout: of the centres. policy: what is kept.
            others: nodes that are no centres; each is counted as an isolated atom.
        """
        return int(_counts(layout, others) @ self._fitted(policy))

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


class MemoryPlan:
    """Chooses how to evaluate a batch so that it fits into the memory.

    Args:
        evaluator: the model. config: its options.
        device: where it runs.
        identity: what tells this model and its precision from others.
        max_memory: GiB; None is a share of what is free.
        sharers: how many processes share the memory of a host.

    Attributes:
        on_host: whether the device is the host.
        max_memory: as given.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        config: ModelConfig,
        device: torch.device,
        identity: str,
        max_memory: float | None,
        sharers: int = 1,
    ) -> None:
        self._sharers = sharers if device.type == "cpu" else 1
        self.max_memory, self.on_host = max_memory, device.type == "cpu"
        self._evaluator, self._config, self._device = evaluator, config, device
        self._model = MemoryModel(evaluator, config, device, identity)

    def needed(self, n_edges: np.ndarray, n_angle_edges: np.ndarray) -> tuple[int, bool]:
        """Bytes that a batch takes at the peak besides the weights, and whether there are so many.

        Args:
            n_edges, n_angle_edges: ``(n_atoms,)``, of every atom.
        """
        for frugal in (False, True):
            layout = make_layout(n_edges, n_angle_edges, self.limits(frugal))
            policy = self.policy(layout, frugal)
            if policy is not None:
                return self._model.estimate(layout, policy), True
        return self._model.estimate(layout, self._frugal()), False

    def limits(self, frugal: bool) -> BlockLimits:
        """Blocks whose temporaries fit the caches, or a share of the memory."""
        kernels = self._evaluator.kernels
        margin, bucket = (0.0, 1) if self.on_host else (DEVICE_MARGIN, ROOM_BUCKET)
        if kernels == "compiled":  # no temporaries to bound, nothing to pad
            return BlockLimits(UNLIMITED, UNLIMITED, overhead=0.0)
        if kernels == "triton":
            return BlockLimits(UNLIMITED, UNLIMITED, TRITON_OVERHEAD, margin=margin, bucket=bucket)
        per_angle, per_edge = self._preactivations()
        size = CPU_BLOCK_BYTES if self.on_host else min(DEVICE_BLOCK_BYTES, self._budget() // 32)
        if frugal:
            size //= 16
        return BlockLimits(
            angles=max(1, size // per_angle),
            edges=max(1, size // per_edge),
            overhead=CPU_OVERHEAD if self.on_host else DEVICE_OVERHEAD,
            margin=margin,
            bucket=bucket,
        )

    def policy(self, layout: Layout, frugal: bool, others: int = 0) -> MemoryPolicy | None:
        """The fastest way that fits into the memory; None if there is none.

        Args:
            layout: of the centres. frugal: use as little as possible.
            others: nodes that are no centres.
        """
        d, (per_angle, per_edge) = self._config.descriptor, self._preactivations()
        features = layout.n_angles * d.a_dim + layout.n_edges * d.e_dim
        per_layer = layout.n_angles * per_angle + layout.n_edges * per_edge
        kept = d.nlayers * (per_layer + self._evaluator.itemsize * features)
        if kept <= SMALL_BYTES:
            return self._frugal() if frugal else self._fastest()
        if frugal:  # the last resort may use all that there is
            limit = self._budget() if self.max_memory is not None else self._free()
            fits = self._model.estimate(layout, self._frugal(), others) <= limit
            return self._frugal() if fits else None
        budget = self._budget()
        policies = [MemoryPolicy(), self._frugal()]
        if kept <= KEEP_BYTES:
            policies.insert(0, self._fastest())
        return next(
            (p for p in policies if self._model.estimate(layout, p, others) <= budget), None
        )

    def possible_policy(self, layout: Layout, advice: str) -> MemoryPolicy:
        """The fastest policy that fits, or the most frugal one.

        Args:
            layout: of the batch. advice: what to do if there is too little memory for any.

        Raises:
            OutOfMemoryError: there is.
        """
        found = self.policy(layout, False) or self.policy(layout, True)
        if found is None:
            raise OutOfMemoryError(
                f"{len(layout.order)} atoms need more memory than there is; {advice}"
            )
        return found

    def _preactivations(self) -> tuple[int, int]:
        """Bytes of an angle and of an edge in a layer."""
        d, size = self._config.descriptor, self._evaluator.itemsize
        return size * (d.e_dim + d.a_dim), size * (d.e_dim + d.n_multi_edge_message * d.n_dim)

    def _budget(self) -> int:
        """Bytes that an evaluation should not exceed."""
        if self.max_memory is not None:
            return int(self.max_memory * 2**30 / self._sharers)
        return int(memory_share(self._device) * self._free())

    def _free(self) -> int:
        free = free_bytes(self._device) // self._sharers
        return free + self._evaluator.workspace.nbytes

    def _fastest(self) -> MemoryPolicy:
        # Others compute pre-activations faster than they could be written and read.
        torch_only = self._evaluator.kernels == "torch"
        return MemoryPolicy("preactivations" if torch_only else "inputs")

    def _frugal(self) -> MemoryPolicy:
        return MemoryPolicy(every=max(1, round(math.sqrt(self._config.descriptor.nlayers))))


def _are_six_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 6 and all(type(v) is float for v in values)


def _counts(layout: Layout, others: int = 0) -> np.ndarray:
    return np.array(
        [
            1,
            len(layout.order) + others,
            layout.n_edges,
            layout.n_angles,
            max(b.n_edges for b in layout.blocks),
            max(b.n_angles for b in layout.blocks),
        ],
        dtype=np.float64,
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
