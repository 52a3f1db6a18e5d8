"""The gradient of a loss of energies, forces and virials with respect to the weights.

Forces and virials are linear in g = dE/dd, the gradient with respect to the edge vectors. With the
seeds alpha, r and R of the loss L (:class:`~dpa3sim.train.loss.Seeds`),

    dL/dtheta = alpha dE/dtheta - d/deps [dE/dtheta at d + eps u] (eps = 0),
    u_ij = r_j - r_i + R d_ij,

so that no second derivative is needed: :class:`DifferenceGradient` takes the difference of two
first-order gradients at displaced edge vectors (docs/methods.md#gradients-for-training).
:class:`ExactGradient` differentiates the readable network twice, which takes many times as long
and as much memory; it is the measure of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph, BlockLimits, forces_and_virials
from dpa3sim.graph.edges import Edges
from dpa3sim.graph.reference import GraphBatch, make_batch
from dpa3sim.graph.static import block_graph
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.gradients import relative_difference
from dpa3sim.model.network import Network, sum_rows
from dpa3sim.model.weights import is_trained
from dpa3sim.structures.system import System
from dpa3sim.train.loss import Labels, Measures, Predictions, Seeds

# Displacements of the edge vectors, Å: root mean square and largest (docs/methods.md).
RMS_STEP = {torch.float32: 0.004, torch.float64: 0.0001}
LARGEST_STEP = 5.0  # in units of the former
_LARGEST_SCALE = 16.0

LossFunction = Callable[[Predictions, Labels], tuple[Tensor, Seeds, Measures]]


@dataclass(frozen=True)
class Batch:
    """Frames that are evaluated together.

    Attributes:
        systems: the structures, with the inputs of the model; edges: of each.
        labels: in the order of the systems and their atoms.
        limits: how centres are divided into blocks. with_angles: whether the model has angles.
        device: where to compute.
    """

    systems: Sequence[System]
    edges: Sequence[Edges]
    labels: Labels
    limits: BlockLimits
    with_angles: bool
    device: torch.device

    @cached_property
    def blocks(self) -> BlockGraph:
        """The graph in blocks, whose rows are atoms in the order of its layout."""
        return block_graph(self.systems, self.edges, self.limits, self.with_angles, self.device)

    @cached_property
    def reference(self) -> GraphBatch:
        """The graph of the readable network."""
        return make_batch(self.systems, self.edges, self.device)

    @cached_property
    def row_labels(self) -> Labels:
        """The labels in the order of the rows of :attr:`blocks`."""
        order = torch.from_numpy(self.blocks.layout.order).to(self.device)
        atomic, x = self.labels.atomic_energies, self.labels
        return replace(
            x,
            structure=x.structure.index_select(0, order),
            forces=x.forces.index_select(0, order),
            atomic_energies=None if atomic is None else atomic.index_select(0, order),
        )


class Gradient(NamedTuple):
    """What a batch says about the weights.

    Attributes:
        loss: scalar, float64.
        measures: errors of energies, forces and virials.
        weights: gradients of the loss by name, float64; weights that no energy can reach, and all
            weights if no label is there, have none.
    """

    loss: Tensor
    measures: Measures
    weights: dict[str, Tensor]


class GradientMethod(Protocol):
    """Makes the gradient of a batch, with the weights that were last refreshed."""

    def __call__(self, batch: Batch, loss: LossFunction) -> Gradient:
        """Evaluate the batch, and differentiate its loss."""


class DifferenceGradient:
    """Gradients by central differences of first-order gradients of displaced edge vectors.

    Args:
        network: the model.
        evaluator: computes it.
        policy: what evaluations keep for their backward pass.
        fitting_only: whether only the fitting net is trained, which takes less time.

    Attributes:
        scale: factor of the displacements, 1 unless :func:`suitable_scale` found a better one.
    """

    def __init__(
        self,
        network: Network,
        evaluator: Evaluator,
        policy: Callable[[BlockGraph], MemoryPolicy] = lambda _: MemoryPolicy(),
        fitting_only: bool = False,
    ) -> None:
        self._evaluator, self._policy = evaluator, policy
        self._fitting_only = fitting_only
        self._step = RMS_STEP[network.dtype]
        self.scale = 1.0

    def predict(self, batch: Batch) -> Predictions:
        """Energies, forces and virials, in the order of the rows."""
        return self._predict(batch.blocks, self._policy(batch.blocks))

    def __call__(self, batch: Batch, loss: LossFunction) -> Gradient:
        """See :class:`GradientMethod`."""
        graph = batch.blocks
        policy = self._policy(graph)
        value, seeds, measures = loss(self._predict(graph, policy), batch.row_labels)
        return Gradient(value, measures, self._weights(graph, seeds, policy))

    def _predict(self, graph: BlockGraph, policy: MemoryPolicy) -> Predictions:
        energies, gradient = self._evaluator.evaluate(graph, policy)
        forces, virials = forces_and_virials(gradient, graph)
        size, structure = graph.n_structures, graph.structure
        return Predictions(
            energy=sum_rows(energies, structure, size),
            forces=forces,
            virial=sum_rows(virials, structure, size),
            atomic_energies=energies,
        )

    def _weights(self, graph: BlockGraph, seeds: Seeds, policy: MemoryPolicy) -> dict[str, Tensor]:
        u, step = self._displacement(graph, seeds)
        frame = graph.structure.index_select(0, graph.edge_i)
        shift = u * step.index_select(0, frame).unsqueeze(1)
        half = seeds.energy / 2
        # Frames without displacement have no difference either.
        slope = torch.where(step > 0, 0.5 / step, 0.0).index_select(0, graph.structure)
        sums = self._evaluator.weight_sums(graph, self._fitting_only)
        for sign in (1, -1):
            displaced = replace(graph, vectors=graph.vectors + sign * shift)
            self._evaluator.add_weight_gradients(displaced, half - sign * slope, policy, sums)
        return self._evaluator.named_gradients(graph, sums)

    def _displacement(self, graph: BlockGraph, seeds: Seeds) -> tuple[Tensor, Tensor]:
        """The direction u ``(n_edges, 3)``, and the step of each frame ``(n_structures,)``.

        The step is 0 where u is: there is nothing to displace.
        """
        r = seeds.forces
        frame = graph.structure.index_select(0, graph.edge_i)
        strain = seeds.virial.index_select(0, frame)
        u = r.index_select(0, graph.edge_j) - r.index_select(0, graph.edge_i)
        u = u + (strain @ graph.vectors.unsqueeze(2)).squeeze(2)
        u = u * graph.edge_mask.unsqueeze(1)
        squares = (u * u).sum(dim=1)
        zero = squares.new_zeros(graph.n_structures)
        count = zero.index_add(0, frame, graph.edge_mask.to(squares.dtype))
        rms = (zero.index_add(0, frame, squares) / count.clamp(min=1)).sqrt()
        largest = zero.scatter_reduce(0, frame, squares, "amax", include_self=True).sqrt()
        limit = self._step * self.scale
        step = torch.minimum(limit / rms, LARGEST_STEP * limit / largest)
        return u, torch.where(rms > 0, step, 0.0)


class ExactGradient:
    """Gradients by differentiating the readable network twice.

    Args:
        network: the model; its weights are used as they are at every call.
    """

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, batch: Batch, loss: LossFunction) -> Gradient:
        """See :class:`GradientMethod`."""
        network, graph = self._network, batch.reference
        leaves = {name: x for name, x in network.weights.items() if is_trained(name)}
        network.requires_grad_(True)
        try:
            with torch.enable_grad():
                vectors = graph.vectors.clone().requires_grad_()
                energies = network.atomic_energies(graph, vectors)
                predicted = self._predict(graph, vectors, energies)
                with torch.no_grad():
                    value, seeds, measures = loss(predicted, batch.labels)
                total = (
                    (seeds.energy * energies).sum()
                    + (seeds.forces * predicted.forces).sum()
                    + (seeds.virial * predicted.virial).sum()
                )
                found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        finally:
            network.requires_grad_(False)
        weights = {
            name: gradient.to(torch.float64)
            for name, gradient in zip(leaves, found, strict=True)
            if gradient is not None
        }
        return Gradient(value, measures, weights)

    @staticmethod
    def _predict(graph: GraphBatch, vectors: Tensor, energies: Tensor) -> Predictions:
        n, size = graph.n_atoms, graph.n_structures
        forces, virial = vectors.new_zeros((n, 3)), vectors.new_zeros((size, 3, 3))
        if len(vectors):
            (g,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
            forces = sum_rows(g, graph.edge_i, n) - sum_rows(g, graph.edge_j, n)
            frame = graph.structure.index_select(0, graph.edge_i)
            outer = g.unsqueeze(2) * graph.vectors.unsqueeze(1)
            virial = -sum_rows(outer, frame, size)
        energy = sum_rows(energies, graph.structure, size)
        return Predictions(energy=energy, forces=forces, virial=virial, atomic_energies=energies)


def suitable_scale(method: DifferenceGradient, batch: Batch, loss: LossFunction) -> float:
    """A better scale of the displacements, from differences between gradients of several.

    The truncation error grows with the square of the step, rounding falls with it. Where the
    gradients of a step and of twice the step differ by more than 3 %, truncation dominates: the
    step is halved. Where half the step differs more than twice the step does, rounding dominates:
    the step is doubled. It stays within a factor of 16, because gradients of frames without errors
    are nothing but rounding.
    """
    before, found = method.scale, {}
    try:
        for factor in (0.5, 1.0, 2.0):
            method.scale = before * factor
            found[factor] = method(batch, loss).weights
    finally:
        method.scale = before
    below = relative_difference(found[0.5], found[1.0])
    above = relative_difference(found[2.0], found[1.0])
    if above > 0.03:
        return max(before / 2, 1 / _LARGEST_SCALE)
    return min(before * 2, _LARGEST_SCALE) if below > above else before
