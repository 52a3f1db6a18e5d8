"""A batch of structures that is evaluated again and again: graph and model on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph, BlockLimits, Layout, make_layout, sum_incoming
from dpa3sim.graph.edges import MIN_DISTANCE
from dpa3sim.graph.lists import Counters
from dpa3sim.graph.resident import STATISTICS, Arrangement, Measured, ResidentGraph
from dpa3sim.graph.skin import SkinList
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy

WARM_UPS = 3


@dataclass(frozen=True)
class Step:
    """Results of one step on the host, atoms in the order of the structures.

    Attributes:
        energies: ``(n_atoms,)`` eV; forces: ``(n_atoms, 3)`` eV/Å.
        virials: ``(n_structures, 3, 3)`` eV, -dE/dstrain.
        statistics: ``(n_structures, 6)``, columns :data:`STATISTICS`.
    """

    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray
    statistics: np.ndarray


class Session:
    """Evaluates one batch, step after step, moving only positions in and results out.

    Where the host is the device (``exact``), it looks at the distances first and lays the blocks
    out for the counts of every step, so that results depend on the structures alone. Elsewhere
    shapes have some margin, come in buckets and stay: a step is one program without host
    synchronisation, captured as a CUDA graph where there is CUDA, and its results come with a
    status. Only if that says that a list has expired, atoms overlap or a centre outgrew its room,
    the step is done again; new lists go where the old ones were, so that the capture stays.

    Args:
        graph: the batch.
        evaluator: the model.
        limits: how centres are put into blocks.
        exact: see above.
        counters: where the work is counted.
    """

    def __init__(
        self,
        graph: ResidentGraph,
        evaluator: Evaluator,
        limits: BlockLimits,
        exact: bool,
        counters: Counters,
    ) -> None:
        self.graph = graph
        self._evaluator = evaluator
        self._limits = limits
        self._exact = exact
        self._counters = counters
        self._measured: Measured | None = None
        self._arranged: tuple[Measured, Layout, Arrangement] | None = None
        self._policy: MemoryPolicy | None = None
        self._capture: _Capture | None = None
        self._layout_counts: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def layout(self) -> Layout:
        """Blocks in use; there are none before the first measurement."""
        layout = self.graph.layout
        assert layout is not None
        return layout

    def repeat(self, positions: Sequence[np.ndarray], cells: Sequence[np.ndarray]) -> Step | None:
        """A step with the shapes of the last one; for the arguments, see :meth:`measure`.

        Returns:
            None if that is not possible: :meth:`measure` and :meth:`evaluate` are needed.
        """
        if self._exact or self._policy is None:
            return None
        self.graph.upload(self.graph.pack(positions, cells))
        step, overflow = self._run(self._policy)
        expired = (step.statistics[:, 0] > 0).any()
        overlap = (step.statistics[:, 1] < MIN_DISTANCE).any()
        return None if expired or overlap or overflow else step

    def measure(self, positions: Sequence[np.ndarray], cells: Sequence[np.ndarray]) -> np.ndarray:
        """Send positions and cells, decide what the edges are, and make room for them.

        Args:
            positions: ``(n_atoms, 3)`` of each structure, wrapped or not, Å.
            cells: completed ``(3, 3)`` of each, Å.

        Returns:
            Statistics ``(n_structures, 6)``, columns :data:`STATISTICS`. Where "moved" is above
            zero the list has expired: give the structure a new one and measure again.
        """
        self.graph.upload(self.graph.pack(positions, cells))
        measured = self._measured = self.graph.measure()
        statistics: np.ndarray = measured.statistics.cpu().numpy()
        if (statistics[:, 0] <= 0).all():
            self._fit_layout(measured)
        return statistics

    def replace_lists(self, lists: Sequence[SkinList]) -> None:
        """New candidate lists, one for each structure."""
        programs = self.graph.programs
        self.graph.set_lists(lists)
        self._arranged = None
        if self.graph.programs != programs:
            self._capture = None

    def evaluate(self, policy: MemoryPolicy) -> Step:
        """Run the model on what was measured last."""
        assert self._measured is not None
        if not self._exact:
            self._policy = policy
            return self._run(policy)[0]
        measured = self._measured
        results = self._model(self.graph.graph(measured, self._arrange(measured)), policy)
        return self._step(results.numpy(), measured.statistics.numpy())

    def forget(self) -> None:
        """Free what the last step left."""
        self._measured = self._arranged = self._policy = self._capture = None

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

    def _run(self, policy: MemoryPolicy) -> tuple[Step, bool]:
        """The program, its results in one transfer, and whether there was room for all."""
        if self.graph.device.type != "cuda":
            output = self.program(policy)
        else:
            if self._capture is None or self._capture.policy != policy:
                self._capture = _Capture(self.program, self._evaluator, policy)
            output = self._capture()
        host = output.cpu().numpy()
        size = self.graph.n_structures * len(STATISTICS)
        statistics = host[:size].reshape(-1, len(STATISTICS))
        return self._step(host[size + 1 :], statistics), bool(host[size] > 0)

    def _step(self, results: np.ndarray, statistics: np.ndarray) -> Step:
        n, b = self.graph.n_atoms, self.graph.n_structures
        energies, forces, virials = np.split(results, [n, 4 * n])
        return Step(energies, forces.reshape(n, 3), virials.reshape(b, 3, 3), statistics)

    def _fit_layout(self, measured: Measured) -> None:
        """Make sure that every centre has room, with none to spare if ``exact``."""
        counts = measured.n_edges.cpu().numpy(), measured.n_angle_edges.cpu().numpy()
        known = self._layout_counts
        if known is not None:
            if self._exact and all(map(np.array_equal, known, counts)):
                return
            if not self._exact and not int(self.graph.overflow(measured)):
                return
            if not self._exact:
                counts = np.maximum(known[0], counts[0]), np.maximum(known[1], counts[1])
        self.graph.set_layout(make_layout(*counts, self._limits))
        self._layout_counts = counts
        self._arranged = self._capture = self._policy = None
        self._counters.layouts += 1

    def _arrange(self, measured: Measured) -> Arrangement:
        """Candidates in slots; those of the last step if the same candidates are edges."""
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

    def _model(self, graph: BlockGraph, policy: MemoryPolicy) -> Tensor:
        energies, gradient = self._evaluator.evaluate(graph, policy)
        forces = sum_incoming(gradient, graph).neg_()
        virials = gradient.new_empty((graph.n_atoms, 3, 3))
        for block in graph.layout.blocks:
            slots = (block.count, block.k_room, 3)
            g, d = gradient[block.edges].view(slots), graph.vectors[block.edges].view(slots)
            forces[block.rows] += g.sum(dim=1)
            virials[block.rows] = g.mT @ d
        totals = self.graph.sum_structures(virials.flatten(1)).neg_()
        to_atoms = self.graph.to_atoms
        return torch.cat([to_atoms(energies), to_atoms(forces).flatten(), totals.flatten()])


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
