"""A batch of structures that is evaluated again and again: graph and model on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph, Layout, forces_and_virials, make_layout
from dpa3sim.graph.edges import MIN_DISTANCE, EdgeRules
from dpa3sim.graph.lists import Counters, ListCache
from dpa3sim.graph.resident import STATISTICS, Arrangement, Measured, ResidentGraph
from dpa3sim.graph.skin import SkinList
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.potential.evaluation import Evaluation, Uncertainty
from dpa3sim.potential.judge import Judge
from dpa3sim.potential.memory import MemoryPlan
from dpa3sim.structures.system import System

WARM_UPS = 3
# Candidates of an atom come in multiples of this where shapes have to stay.
CANDIDATE_BUCKET = 16


class OverlapError(Exception):
    """Atoms of some structures are too close.

    Attributes:
        indices: of the structures.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(indices)
        self.indices = indices


class TooLargeError(Exception):
    """The batch does not fit into the memory.

    Attributes:
        costs: angles of each structure.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        super().__init__(costs)
        self.costs = costs


class LaidOut:
    """A graph with its blocks and what is in their slots, which are kept as long as they fit.

    Args:
        graph: the graph. memory: decides how blocks are made. frugal: with little memory.
        exact: leave no room to spare.
        counters: where the work is counted.
    """

    def __init__(
        self,
        graph: ResidentGraph,
        memory: MemoryPlan,
        frugal: bool,
        exact: bool,
        counters: Counters,
    ) -> None:
        self.graph = graph
        self._memory, self._frugal, self._exact = memory, frugal, exact
        self._counters = counters
        self._counts: tuple[np.ndarray, np.ndarray] | None = None
        self._arranged: tuple[Measured, Layout, Arrangement] | None = None

    @property
    def layout(self) -> Layout:
        """Blocks in use; there are none before the first measurement."""
        layout = self.graph.layout
        assert layout is not None
        return layout

    def fit(self, measured: Measured) -> bool:
        """Make sure that every centre has room; returns whether there are new blocks."""
        counts = measured.n_edges.cpu().numpy(), measured.n_angle_edges.cpu().numpy()
        known = self._counts
        if known is not None:
            if self._exact and all(map(np.array_equal, known, counts)):
                return False
            if not self._exact and not int(self.graph.overflow(measured)):
                return False
            if not self._exact:
                counts = np.maximum(known[0], counts[0]), np.maximum(known[1], counts[1])
        self.graph.set_layout(make_layout(*counts, self._memory.limits(self._frugal)))
        self._counts, self._arranged = counts, None
        self._counters.layouts += 1
        return True

    def block_graph(self, measured: Measured) -> BlockGraph:
        """The input of the layers; with the last slots if the same candidates are edges."""
        return self.graph.graph(measured, self._arrange(measured))

    def forget(self) -> None:
        """Forget what was in the slots."""
        self._arranged = None

    def _arrange(self, measured: Measured) -> Arrangement:
        if self._arranged is not None:
            last, layout, arrangement = self._arranged
            same = layout is self.layout and torch.equal(last.angle_edge, measured.angle_edge)
            self._counters.reused_angles += same
            if same and torch.equal(last.edge, measured.edge):
                self._counters.reused_edges += 1
                return arrangement
        arrangement = self.graph.arrange(measured)
        self._arranged = measured, self.layout, arrangement
        return arrangement


class Session:
    """Evaluates one batch, step after step, moving only positions in and results out.

    Where the host is the device, it looks at the distances first and lays the blocks out for the
    counts of every step, so that results depend on the structures alone. Elsewhere shapes have some
    margin, come in buckets and stay: a step is one program without host synchronisation, captured
    as a CUDA graph where there is CUDA, and its results come with a status. Only if that says that
    a list has expired, atoms overlap or a centre outgrew its room, the step is done again; new
    lists go where the old ones were, so that the capture stays.

    Args:
        systems: the batch, with the inputs of the model.
        rules: cutoffs and limits of the model. with_angles: whether it has angles at all.
        evaluator: the model.
        memory: decides how to evaluate.
        lists: where lists of neighbours come from.
        device: where the model is.
        frugal: use as little memory as possible.
        counters: where the work is counted.
        judge: makes uncertainties, if there are to be any.
    """

    def __init__(
        self,
        systems: Sequence[System],
        rules: EdgeRules,
        with_angles: bool,
        evaluator: Evaluator,
        memory: MemoryPlan,
        lists: ListCache,
        device: torch.device,
        frugal: bool,
        counters: Counters,
        judge: Judge | None = None,
    ) -> None:
        found = [lists.find(system) for system in systems]
        self._exact = memory.on_host
        bucket = 1 if self._exact else CANDIDATE_BUCKET
        self.graph = ResidentGraph(found, systems, rules, with_angles, device, bucket=bucket)
        self._laid = LaidOut(self.graph, memory, frugal, self._exact, counters)
        self._evaluator = evaluator
        self._memory, self._frugal = memory, frugal
        self._lists = lists
        self._judge = judge
        self._measured: Measured | None = None
        self._policy: MemoryPolicy | None = None
        self._capture: _Capture | None = None

    def step(self, systems: Sequence[System]) -> list[Evaluation]:
        """Evaluate the batch with other positions and cells.

        Args:
            systems: like those of the batch, with completed cells.

        Raises:
            OverlapError: atoms are closer than any edge may be. TooLargeError: see there.
        """
        repeated = self._repeat(systems)
        if repeated is not None:
            return repeated
        statistics = self._measure_renewing(systems)
        overlapping = np.flatnonzero(statistics[:, 1] < MIN_DISTANCE)
        if len(overlapping):
            raise OverlapError(overlapping.tolist())
        policy = self._memory.policy(self.layout, self._frugal)
        if policy is None:
            self.forget()
            raise TooLargeError(statistics[:, 3].tolist())
        return self._evaluate(policy)

    @property
    def layout(self) -> Layout:
        """Blocks in use; there are none before the first measurement."""
        return self._laid.layout

    def _repeat(self, systems: Sequence[System]) -> list[Evaluation] | None:
        """A step with the shapes of the last one, where the host need not look; else None."""
        if self._exact or self._policy is None:
            return None
        self.graph.upload(self.graph.pack(systems))
        results, statistics, overflow = self._run(self._policy)
        expired = (statistics[:, 0] > 0).any()
        overlap = (statistics[:, 1] < MIN_DISTANCE).any()
        return None if expired or overlap or overflow else self._evaluations(results, statistics)

    def _measure_renewing(self, systems: Sequence[System]) -> np.ndarray:
        """Statistics of the batch, after renewing the lists that have expired."""
        statistics = self._measure(systems)
        expired = np.flatnonzero(statistics[:, 0] > 0).tolist()
        if expired:
            lists = list(self.graph.lists)
            for index in expired:
                lists[index] = self._lists.find(systems[index], lists[index])
            self._replace_lists(lists)
            statistics = self._measure(systems)
        return statistics

    def _measure(self, systems: Sequence[System]) -> np.ndarray:
        """Send positions and cells, decide what the edges are, and make room for them.

        Returns:
            Statistics ``(n_structures, 6)``, columns :data:`STATISTICS`. Where "moved" is above
            zero the list has expired.
        """
        self.graph.upload(self.graph.pack(systems))
        measured = self._measured = self.graph.measure()
        statistics: np.ndarray = measured.statistics.cpu().numpy()
        if (statistics[:, 0] <= 0).all() and self._laid.fit(measured):
            self._capture = self._policy = None
        return statistics

    def _replace_lists(self, lists: Sequence[SkinList]) -> None:
        """Use new candidate lists, one for each structure."""
        programs = self.graph.programs
        self.graph.set_lists(lists)
        self._laid.forget()
        if self.graph.programs != programs:
            self._capture = None

    def _evaluate(self, policy: MemoryPolicy) -> list[Evaluation]:
        """Run the model on what was measured last."""
        assert self._measured is not None
        if not self._exact:
            self._policy = policy
            results, statistics, _ = self._run(policy)
            return self._evaluations(results, statistics)
        measured = self._measured
        results = self._model(self._laid.block_graph(measured), policy).numpy()
        return self._evaluations(results, measured.statistics.numpy())

    def forget(self) -> None:
        """Free what the last step left."""
        self._measured = self._policy = self._capture = None
        self._laid.forget()

    def program(self, policy: MemoryPolicy) -> Tensor:
        """From positions on the device to status and results, without asking the device.

        Returns:
            Statistics, the number of centres without enough room, and the results of
            :meth:`_model`, as one tensor.
        """
        measured = self.graph.measure()
        overflow = self.graph.overflow(measured).unsqueeze(0)
        results = self._model(self.graph.graph(measured, self.graph.arrange(measured)), policy)
        return torch.cat([measured.statistics.flatten(), overflow, results])

    def _run(self, policy: MemoryPolicy) -> tuple[np.ndarray, np.ndarray, bool]:
        """The program: results and statistics in one transfer, and whether room was missing."""
        if self.graph.device.type != "cuda":
            output = self.program(policy)
        else:
            if self._capture is None or self._capture.policy != policy:
                self._capture = _Capture(self.program, self._evaluator, policy)
            output = self._capture()
        host = output.cpu().numpy()
        size = self.graph.n_structures * len(STATISTICS)
        statistics = host[:size].reshape(-1, len(STATISTICS))
        return host[size + 1 :], statistics, bool(host[size] > 0)

    def _evaluations(self, results: np.ndarray, statistics: np.ndarray) -> list[Evaluation]:
        """What :meth:`_model` returned, of each structure."""
        n, m = self.graph.n_atoms, self.graph.n_structures
        energies, forces, virials, judged = np.split(results, [n, 4 * n, 4 * n + 9 * m])
        uncertainties: Sequence[Uncertainty | None] = [None] * m
        if self._judge is not None:
            uncertainties = self._judge.unpack(judged, self.graph.sizes.tolist())
        found = []
        for index, (start, size) in enumerate(
            zip(self.graph.starts.tolist(), self.graph.sizes.tolist(), strict=True)
        ):
            own = energies[start : start + size].copy()
            limits = statistics[index, 2:].astype(int).tolist()
            found.append(
                Evaluation(
                    float(own.sum()),
                    own,
                    forces[3 * start : 3 * (start + size)].reshape(size, 3).copy(),
                    virials[9 * index : 9 * (index + 1)].reshape(3, 3).copy(),
                    *(*limits, (), uncertainties[index]),
                )
            )
        return found

    def _model(self, graph: BlockGraph, policy: MemoryPolicy) -> Tensor:
        judged = []
        sum_structures, to_atoms = self.graph.sum_structures, self.graph.to_atoms
        if self._judge is None:
            energies, gradient = self._evaluator.evaluate(graph, policy)
        else:
            energies, gradient, features = self._evaluator.evaluate_with_features(graph, policy)
            judged.append(self._judge(features, sum_structures, to_atoms))
        forces, virials = forces_and_virials(gradient, graph)
        totals = sum_structures(virials.flatten(1)).flatten()
        return torch.cat([to_atoms(energies), to_atoms(forces).flatten(), totals, *judged])


class _Capture:
    """A program as a CUDA graph, captured after a few ordinary runs.

    It keeps its own workspace: the memory addresses are part of the capture.
    """

    def __init__(
        self,
        program: Callable[[MemoryPolicy], Tensor],
        evaluator: Evaluator,
        policy: MemoryPolicy,
    ) -> None:
        self.policy = policy
        self._program = program
        self._evaluator = evaluator
        self._buffers: dict[str, Tensor] = {}
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._graph is not None:
            self._graph.replay()
            assert self._output is not None
            return self._output.clone()
        with self._evaluator.workspace.private(self._buffers):
            self._runs += 1
            if self._runs <= WARM_UPS:
                return self._program(self.policy)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self._program(self.policy)
        self._graph = graph
        return self()
