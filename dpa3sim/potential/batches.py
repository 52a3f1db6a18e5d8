"""Batches sized from the memory there is, over lists and graphs that stay from call to call."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpa3sim.common.errors import Dpa3simError, InputError, OutOfMemoryError, memory_ran_out
from dpa3sim.graph.blocks import BlockLimits, Layout, make_layout
from dpa3sim.graph.candidates import complete_cell
from dpa3sim.graph.edges import MIN_DISTANCE, EdgeRules, find_edges
from dpa3sim.graph.lists import Counters, ListCache
from dpa3sim.graph.resident import Member, ResidentGraph
from dpa3sim.kernels.api import Matmul
from dpa3sim.kernels.choice import select
from dpa3sim.kernels.evaluator import MemoryPolicy
from dpa3sim.model.network import Network
from dpa3sim.potential.memory import UNLIMITED, MemoryModel, free_bytes, memory_share
from dpa3sim.potential.session import Session

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
# Batches whose state is kept, and how many atoms they may have together.
MAX_SESSIONS, MAX_SESSION_ATOMS = 64, 2**15
# Larger batches gain nothing, and their candidates take memory too.
HOST_BATCH_ATOMS, DEVICE_BATCH_ATOMS = 2**10, 2**14
# Structures of so many atoms keep a host busy alone; in one batch they would be slower, for memory
# that is touched first (measured: four of 432 atoms took 1.14 times as long together).
HOST_FULL_ATOMS = 128
# Room beyond the present counts where shapes have to stay:
# docs/methods.md#candidates-edges-angles.
DEVICE_MARGIN = 0.08
# There, rooms and candidates of an atom come in multiples of these.
ROOM_BUCKET, CANDIDATE_BUCKET = 4, 16


@dataclass(frozen=True)
class BatchItem:
    """A structure that was checked: what of it can change, and what cannot.

    Attributes:
        positions: ``(n_atoms, 3)``, Å; cell: ``(3, 3)``, Å; pbc: ``(3,)`` bool.
        member: types and extra inputs.
    """

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    member: Member

    @property
    def list_key(self) -> bytes:
        """Equal for structures that may share a candidate list."""
        return self.pbc.tobytes() + self.member.types.tobytes()

    @property
    def key(self) -> tuple[bytes, ...]:
        """Equal for structures that differ in positions and cell only."""
        member = self.member
        charge_spin = b"" if member.charge_spin is None else member.charge_spin.tobytes()
        return self.list_key, member.fparam.tobytes(), member.aparam.tobytes(), charge_spin


@dataclass(frozen=True)
class ItemResult:
    """What the model says of one structure, on the host; see :class:`Evaluation`."""

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    n_edges: int
    n_angles: int
    n_cut_edges: int
    n_cut_angle_edges: int


class BatchEvaluator:
    """Evaluates checked structures on one device.

    Args:
        network: the model.
        rules: cutoffs and limits.
        skin: Å.
        max_memory: GiB; None is what is free.
        identity: name of the model and its precision for the memory model's cache.
        counters: where the work is counted.
        matmul: see :class:`dpa3sim.potential.potential.Potential`.

    Attributes:
        selection: what computes the layers, and why.
    """

    def __init__(
        self,
        network: Network,
        rules: EdgeRules,
        skin: float,
        max_memory: float | None,
        identity: str,
        counters: Counters,
        matmul: Matmul = "full",
    ) -> None:
        self._config = network.config
        self._rules = rules
        self._device = network.weights["out_bias"].device
        self._on_host = self._device.type == "cpu"
        self._max_memory = max_memory
        self._counters = counters
        self._itemsize = network.dtype.itemsize
        self.selection = select(network, matmul)
        self._evaluator = self.selection.evaluator(network, sparse=self._on_host)
        self._memory = MemoryModel(self._evaluator, self._config, self._device, identity)
        self._lists = ListCache(rules.e_rcut, skin, counters)
        self._sessions: OrderedDict[tuple[bool, tuple[tuple[bytes, ...], ...]], Session] = (
            OrderedDict()
        )

    def evaluate(
        self, items: Sequence[BatchItem], frugal: bool = False
    ) -> list[ItemResult | Dpa3simError]:
        """Evaluate any mix of structures; errors stand in the place of results.

        Args:
            items: the structures.
            frugal: use as little memory as possible from the start.
        """
        if not items:
            return []
        if len(items) > 1 and self._too_many(sizes := [len(x.positions) for x in items]):
            return self._in_halves(items, sizes)
        too_much = False
        try:
            outcome = self._attempt(items, frugal)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            too_much = True
        if too_much:  # outside the handler, which would keep the memory of its frames
            return self._after_out_of_memory(items, frugal)
        return outcome

    def memory_needed(self, n_edges: np.ndarray, n_angle_edges: np.ndarray) -> tuple[int, bool]:
        """What a batch with so many edges and angle-edges of each atom takes, by the memory model.

        Returns:
            Bytes at the peak, besides the weights, and whether there is so much.
        """
        for frugal in (False, True):
            layout = make_layout(n_edges, n_angle_edges, self._limits(frugal))
            policy = self._policy(layout, frugal)
            if policy is not None:
                return self._memory.estimate(layout, policy), True
        return self._memory.estimate(layout, self._frugal()), False

    def batch_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Atoms of the batches that structures of these sizes are evaluated in, memory aside."""
        if len(sizes) > 1 and self._too_many(sizes):
            order = sorted(sizes)
            half = len(order) // 2
            return [*self.batch_sizes(order[:half]), *self.batch_sizes(order[half:])]
        return [sum(sizes)]

    def forget(self) -> None:
        """Drop all lists and sessions: what follows depends on what follows alone."""
        self._sessions.clear()
        self._lists = ListCache(self._lists.cutoff, self._lists.skin, self._counters)

    def _attempt(self, items: Sequence[BatchItem], frugal: bool) -> list[ItemResult | Dpa3simError]:
        """Evaluate as one batch, or in parts if some structures are bad or all are too much."""
        session = self._session(items, frugal)
        positions = [x.positions for x in items]
        cells = [complete_cell(x.cell, x.pbc) for x in items]
        step = session.repeat(positions, cells)
        if step is None:
            statistics = self._measure(session, items, positions, cells)
            overlapping = np.flatnonzero(statistics[:, 1] < MIN_DISTANCE)
            if len(overlapping):
                return self._without(items, overlapping)
            policy = self._policy(session.layout, frugal)
            if policy is None:
                session.forget()
                if len(items) > 1:
                    return self._in_halves(items, statistics[:, 3].tolist())
                return [self._too_large(items[0])] if frugal else self.evaluate(items, frugal=True)
            step = session.evaluate(policy)
        self._counters.batches += 1
        self._counters.evaluations += len(items)
        results: list[ItemResult | Dpa3simError] = []
        for index, (start, size) in enumerate(
            zip(session.graph.starts, session.graph.sizes, strict=True)
        ):
            atoms = slice(start, start + size)
            results.append(
                ItemResult(
                    step.energies[atoms].copy(),
                    step.forces[atoms].copy(),
                    step.virials[index].copy(),
                    *step.statistics[index, 2:].astype(int).tolist(),
                )
            )
        return results

    # -- lists and sessions ----------------------------------------------------------------------

    def _session(self, items: Sequence[BatchItem], frugal: bool) -> Session:
        """The session of an alike batch, or a new one."""
        key = frugal, tuple(item.key for item in items)
        session = self._sessions.get(key)
        if session is None:
            lists = [self._lists.find(x.list_key, x.positions, x.cell, x.pbc) for x in items]
            graph = ResidentGraph(
                lists,
                [x.member for x in items],
                self._rules,
                self._config.descriptor.update_angle,
                self._device,
                bucket=1 if self._on_host else CANDIDATE_BUCKET,
            )
            session = Session(
                graph, self._evaluator, self._limits(frugal), self._on_host, self._counters
            )
            self._sessions[key] = session
            self._evict()
        self._sessions.move_to_end(key)
        return session

    def _evict(self) -> None:
        """Forget the batches not seen for longest."""
        atoms = sum(session.graph.n_atoms for session in self._sessions.values())
        while len(self._sessions) > 1 and (
            len(self._sessions) > MAX_SESSIONS or atoms > MAX_SESSION_ATOMS
        ):
            _, oldest = self._sessions.popitem(last=False)
            atoms -= oldest.graph.n_atoms

    def _measure(
        self,
        session: Session,
        items: Sequence[BatchItem],
        positions: Sequence[np.ndarray],
        cells: Sequence[np.ndarray],
    ) -> np.ndarray:
        """Statistics of the batch, after renewing the lists that have expired."""
        statistics = session.measure(positions, cells)
        expired = statistics[:, 0] > 0
        if expired.any():
            lists = list(session.graph.lists)
            for index in np.flatnonzero(expired).tolist():
                item, last = items[index], lists[index]
                lists[index] = self._lists.find(
                    item.list_key, item.positions, item.cell, item.pbc, last
                )
            session.replace_lists(lists)
            statistics = session.measure(positions, cells)
        return statistics

    def _without(
        self, items: Sequence[BatchItem], bad: np.ndarray
    ) -> list[ItemResult | Dpa3simError]:
        """Evaluate the other structures; overlapping ones get the error of a fresh search."""
        results: dict[int, ItemResult | Dpa3simError] = {}
        for index in bad.tolist():
            x = items[index]
            try:
                find_edges(x.positions, x.cell, x.pbc, x.member.types, self._rules)
                results[index] = InputError(f"atoms are closer than {MIN_DISTANCE} Å")
            except InputError as error:
                results[index] = error
        good = [index for index in range(len(items)) if index not in results]
        outputs = self.evaluate([items[index] for index in good])
        results |= dict(zip(good, outputs, strict=True))
        return [results[index] for index in range(len(items))]

    # -- memory ------------------------------------------------------------------------------------

    def _too_many(self, sizes: Sequence[int]) -> bool:
        """Whether structures of these numbers of atoms are better evaluated in parts."""
        if self._on_host:
            return sum(sizes) > HOST_BATCH_ATOMS or max(sizes) >= HOST_FULL_ATOMS
        return sum(sizes) > DEVICE_BATCH_ATOMS

    def _limits(self, frugal: bool) -> BlockLimits:
        """Blocks whose temporaries fit the caches, or a share of the memory."""
        kernels = self._evaluator.kernels
        margin, bucket = (0.0, 1) if self._on_host else (DEVICE_MARGIN, ROOM_BUCKET)
        if kernels == "compiled":  # no temporaries to bound, nothing to pad
            return BlockLimits(UNLIMITED, UNLIMITED, overhead=0.0)
        if kernels == "triton":
            return BlockLimits(UNLIMITED, UNLIMITED, TRITON_OVERHEAD, margin=margin, bucket=bucket)
        d = self._config.descriptor
        per_angle = self._itemsize * (d.e_dim + d.a_dim)
        per_edge = self._itemsize * (d.e_dim + d.n_multi_edge_message * d.n_dim)
        size = CPU_BLOCK_BYTES if self._on_host else min(DEVICE_BLOCK_BYTES, self._budget() // 32)
        if frugal:
            size //= 16
        return BlockLimits(
            angles=max(1, size // per_angle),
            edges=max(1, size // per_edge),
            overhead=CPU_OVERHEAD if self._on_host else DEVICE_OVERHEAD,
            margin=margin,
            bucket=bucket,
        )

    def _budget(self) -> int:
        """Bytes that an evaluation should not exceed."""
        if self._max_memory is not None:
            return int(self._max_memory * 2**30)
        return int(memory_share(self._device) * self._free())

    def _free(self) -> int:
        return free_bytes(self._device) + self._evaluator.workspace.nbytes

    def _policy(self, layout: Layout, frugal: bool) -> MemoryPolicy | None:
        """The fastest way that fits into the memory; None if there is none."""
        d = self._config.descriptor
        per_layer = layout.n_angles * (d.e_dim + d.a_dim) + layout.n_edges * (
            d.e_dim + d.n_multi_edge_message * d.n_dim
        )
        features = layout.n_angles * d.a_dim + layout.n_edges * d.e_dim
        kept = self._itemsize * d.nlayers * (per_layer + features)
        if kept <= SMALL_BYTES:
            return self._frugal() if frugal else self._fastest()
        if frugal:  # the last resort may use all that there is
            limit = self._budget() if self._max_memory is not None else self._free()
            fits = self._memory.estimate(layout, self._frugal()) <= limit
            return self._frugal() if fits else None
        budget = self._budget()
        policies = [MemoryPolicy(), self._frugal()]
        if kept <= KEEP_BYTES:
            policies.insert(0, self._fastest())
        return next((p for p in policies if self._memory.estimate(layout, p) <= budget), None)

    def _fastest(self) -> MemoryPolicy:
        # Others compute pre-activations faster than they could be written and read.
        torch_only = self._evaluator.kernels == "torch"
        return MemoryPolicy("preactivations" if torch_only else "inputs")

    def _frugal(self) -> MemoryPolicy:
        return MemoryPolicy(every=max(1, round(math.sqrt(self._config.descriptor.nlayers))))

    def _in_halves(
        self, items: Sequence[BatchItem], costs: Sequence[float]
    ) -> list[ItemResult | Dpa3simError]:
        """Evaluate in two batches of about the same cost, large structures apart from small."""
        order = np.argsort(np.asarray(costs), kind="stable")
        total = np.cumsum(np.asarray(costs)[order] + 1.0)
        cut = int(np.clip(np.searchsorted(total, total[-1] / 2), 1, len(items) - 1))
        results: dict[int, ItemResult | Dpa3simError] = {}
        for part in (order[:cut].tolist(), order[cut:].tolist()):
            outputs = self.evaluate([items[index] for index in part])
            results |= dict(zip(part, outputs, strict=True))
        return [results[index] for index in range(len(items))]

    def _after_out_of_memory(
        self, items: Sequence[BatchItem], frugal: bool
    ) -> list[ItemResult | Dpa3simError]:
        """Free what can be freed and try with less at a time."""
        self._counters.retries += 1
        self._sessions.clear()
        self._evaluator.workspace.release()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(items) > 1:
            return self._in_halves(items, [len(x.positions) for x in items])
        if not frugal:
            return self.evaluate(items, frugal=True)
        return [self._too_large(items[0])]

    def _too_large(self, item: BatchItem) -> OutOfMemoryError:
        where = "this machine" if self._on_host else str(self._device)
        if self._max_memory is not None:
            where = f"max_memory = {self._max_memory:g} GiB"
        return OutOfMemoryError(
            f"{len(item.positions)} atoms need more memory than {where} has; use a smaller cell, "
            "or a device with more memory"
        )
