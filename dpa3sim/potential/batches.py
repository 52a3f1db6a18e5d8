"""Batches of any structures: divided by size and memory, and errors kept with whom they concern."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dpa3sim.common.errors import Dpa3simError, InputError, OutOfMemoryError, memory_ran_out
from dpa3sim.graph.edges import MIN_DISTANCE, EdgeRules, find_edges
from dpa3sim.graph.lists import Counters, ListCache
from dpa3sim.kernels.api import Matmul
from dpa3sim.kernels.choice import select
from dpa3sim.kernels.evaluator import Evaluator
from dpa3sim.model.network import Network
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.judge import Judge
from dpa3sim.potential.memory import MemoryPlan
from dpa3sim.potential.session import OverlapError, Session, TooLargeError
from dpa3sim.potential.threads import free_threads
from dpa3sim.structures.geometry import complete_cell
from dpa3sim.structures.system import System

# Batches whose state is kept, and how many atoms they may have together.
MAX_SESSIONS, MAX_SESSION_ATOMS = 64, 2**15
# Larger batches gain nothing, and their candidates take memory too.
HOST_BATCH_ATOMS, DEVICE_BATCH_ATOMS = 2**10, 2**14
# Structures of so many atoms keep a host busy alone; in one batch they would be slower, for memory
# that is touched first (measured: four of 432 atoms took 1.14 times as long together).
HOST_FULL_ATOMS = 128

Outcomes = list[Evaluation | Dpa3simError]


class BatchEvaluator:
    """Evaluates checked structures on one device.

    Args:
        network: the model.
        rules: cutoffs and limits.
        skin: Å.
        max_memory: GiB; None is what is free.
        identity: name of the model and its precision for the memory model's cache.
        counters: where the work is counted.
        matmul: see :class:`dpa3sim.potential.Potential`.
        judge: makes uncertainties, if there are to be any.
        sharers: how many processes share the memory of this machine.

    Attributes:
        config, device, dtype: of the network.
        rules, skin, counters, judge: as given.
        selection: what computes the layers, and why.
        evaluator: the model as it runs.
        memory: decides how batches are evaluated.
        sessions: the batches whose state is kept, those used last at the end.
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
        judge: Judge | None = None,
        sharers: int = 1,
    ) -> None:
        self.config = network.config
        self.rules = rules
        self.device, self.dtype = network.device, network.dtype
        self.counters = counters
        self.skin, self.judge = skin, judge
        self.selection = select(network, matmul)
        self._identity, self._max_memory, self._sharers = identity, max_memory, sharers
        self._lists = ListCache(rules.e_rcut, skin, counters)
        self.sessions: OrderedDict[tuple[bool, tuple[tuple[bytes, ...], ...]], Session] = (
            OrderedDict()
        )
        self.use(self.selection.evaluator(network, sparse=self.device.type == "cpu"))

    def use(self, evaluator: Evaluator) -> None:
        """Compute the layers by this evaluator from now on."""
        self.evaluator = evaluator
        self.memory = MemoryPlan(
            *(evaluator, self.config, self.device, self._identity),
            *(self._max_memory, self._sharers),
        )
        self.sessions.clear()

    def evaluate(self, systems: Sequence[System], frugal: bool = False) -> Outcomes:
        """Evaluate any mix of structures; errors stand in the place of results.

        Args:
            systems: the structures, with the inputs of the model.
            frugal: use as little memory as possible from the start.
        """
        if not systems:
            return []
        if len(systems) > 1 and self._too_many(sizes := [len(x) for x in systems]):
            return self._in_halves(systems, sizes)
        too_much = False
        try:
            outcome = self._attempt(systems, frugal)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            too_much = True
        if too_much:  # outside the handler, which would keep the memory of its frames
            return self._after_out_of_memory(systems, frugal)
        return outcome

    def batch_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Atoms of the batches that structures of these sizes are evaluated in, memory aside."""
        if len(sizes) > 1 and self._too_many(sizes):
            order = sorted(sizes)
            half = len(order) // 2
            return [*self.batch_sizes(order[:half]), *self.batch_sizes(order[half:])]
        return [sum(sizes)]

    def forget(self) -> None:
        """Drop all lists and sessions: what follows depends on what follows alone."""
        self.sessions.clear()
        self._lists = ListCache(self._lists.cutoff, self._lists.skin, self.counters)

    def _attempt(self, systems: Sequence[System], frugal: bool) -> Outcomes:
        """Evaluate as one batch, or in parts if some structures are bad or all are too much."""
        try:
            with free_threads():
                session = self._session(systems, frugal)
                completed = [replace(x, cell=complete_cell(x.cell, x.pbc)) for x in systems]
                results = session.step(completed)
        except OverlapError as error:
            return self._without(systems, error.indices)
        except TooLargeError as error:
            if len(systems) > 1:
                return self._in_halves(systems, error.costs)
            return [self._too_large(systems[0])] if frugal else self.evaluate(systems, frugal=True)
        self.counters.batches += 1
        self.counters.evaluations += len(systems)
        return list(results)

    def _session(self, systems: Sequence[System], frugal: bool) -> Session:
        """The session of an alike batch, or a new one."""
        key = frugal, tuple(system.batch_key for system in systems)
        session = self.sessions.get(key)
        if session is None:
            session = self.sessions[key] = Session(
                systems,
                self.rules,
                self.config.descriptor.update_angle,
                self.evaluator,
                self.memory,
                self._lists,
                self.device,
                frugal,
                self.counters,
                self.judge,
            )
            self._evict()
        self.sessions.move_to_end(key)
        return session

    def _evict(self) -> None:
        """Forget the batches not seen for longest."""
        atoms = sum(session.graph.n_atoms for session in self.sessions.values())
        while len(self.sessions) > 1 and (
            len(self.sessions) > MAX_SESSIONS or atoms > MAX_SESSION_ATOMS
        ):
            _, oldest = self.sessions.popitem(last=False)
            atoms -= oldest.graph.n_atoms

    def _without(self, systems: Sequence[System], bad: Sequence[int]) -> Outcomes:
        """Evaluate the other structures; overlapping ones get the error of a fresh search."""
        results: dict[int, Evaluation | Dpa3simError] = {}
        for index in bad:
            results[index] = self.overlap(systems[index])
        good = [index for index in range(len(systems)) if index not in results]
        outputs = self.evaluate([systems[index] for index in good])
        results |= dict(zip(good, outputs, strict=True))
        return [results[index] for index in range(len(systems))]

    def overlap(self, x: System) -> InputError:
        """Which atoms of a structure are too close."""
        try:
            find_edges(x.positions, x.cell, x.pbc, x.types, self.rules)
        except InputError as error:
            return error
        return InputError(f"atoms are closer than {MIN_DISTANCE} Å")

    def _too_many(self, sizes: Sequence[int]) -> bool:
        """Whether structures of these numbers of atoms are better evaluated in parts."""
        if self.memory.on_host:
            return sum(sizes) > HOST_BATCH_ATOMS or max(sizes) >= HOST_FULL_ATOMS
        return sum(sizes) > DEVICE_BATCH_ATOMS

    def _in_halves(self, systems: Sequence[System], costs: Sequence[float]) -> Outcomes:
        """Evaluate in two batches of about the same cost, large structures apart from small."""
        order = np.argsort(np.asarray(costs), kind="stable")
        total = np.cumsum(np.asarray(costs)[order] + 1.0)
        cut = int(np.clip(np.searchsorted(total, total[-1] / 2), 1, len(systems) - 1))
        results: dict[int, Evaluation | Dpa3simError] = {}
        for part in (order[:cut].tolist(), order[cut:].tolist()):
            outputs = self.evaluate([systems[index] for index in part])
            results |= dict(zip(part, outputs, strict=True))
        return [results[index] for index in range(len(systems))]

    def _after_out_of_memory(self, systems: Sequence[System], frugal: bool) -> Outcomes:
        """Free what can be freed and try with less at a time."""
        self.counters.retries += 1
        self.sessions.clear()
        self.evaluator.workspace.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(systems) > 1:
            return self._in_halves(systems, [len(x) for x in systems])
        if not frugal:
            return self.evaluate(systems, frugal=True)
        return [self._too_large(systems[0])]

    def _too_large(self, system: System) -> OutOfMemoryError:
        where = "this machine" if self.memory.on_host else str(self.device)
        if self.memory.max_memory is not None:
            where = f"max_memory = {self.memory.max_memory:g} GiB"
        return OutOfMemoryError(
            f"{len(system)} atoms need more memory than {where} has; use a smaller cell, "
            "or a device with more memory"
        )
