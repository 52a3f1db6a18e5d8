"""Energies and gradients of a batch without autograd: geometry, layers and fitting net."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.kernels.algebra import Algebra, CompiledAlgebra, TensorAlgebra
from dpa3sim.kernels.api import Exchange, Features, GraphData, Kernel, LayerTape, Matmul
from dpa3sim.kernels.compiled import CompiledKernel
from dpa3sim.kernels.fitting import FittingKernel, FittingTape
from dpa3sim.kernels.geometry import GeometryKernel, GeometryTape
from dpa3sim.kernels.gradients import LayerSums, WeightSums, through
from dpa3sim.kernels.layer import Layer, LayerWeights
from dpa3sim.kernels.tensor import ParallelTensorKernel, SequentialTensorKernel
from dpa3sim.kernels.triton import TritonKernel
from dpa3sim.kernels.workspace import Workspace
from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.network import Network, charge_spin_rows, type_rows
from dpa3sim.model.weights import FITTING_LAYERS, REPFLOWS, is_trained

Keep = Literal["preactivations", "inputs"]
Kernels = Literal["compiled", "triton", "torch"]


@dataclass(frozen=True)
class MemoryPolicy:
    """What the forward pass keeps for the backward pass.

    Attributes:
        keep: the ``"inputs"`` of layers, or also the ``"preactivations"``: fewer operations,
            more memory.
        every: keep the inputs of every so many layers; the layers between are run once more.
    """

    keep: Keep = "inputs"
    every: int = 1


class _Readout(NamedTuple):
    """What the fitting net makes of the last features.

    Attributes:
        energies: ``(n_atoms,)`` eV.
        included: ``(n_atoms,)``, 0 for atoms without energy.
        tape: of the fitting net.
        vacuum: what its last layer reads without a descriptor, where that is subtracted.
    """

    energies: Tensor
    included: Tensor
    tape: FittingTape
    vacuum: Tensor | None


class _Course:
    """All layers, forward and backward, and what is kept between."""

    def __init__(
        self,
        layers: Sequence[Layer],
        data: GraphData,
        geometry: GeometryTape,
        policy: MemoryPolicy,
        exchange: Exchange | None,
    ) -> None:
        self.data, self.geometry = data, geometry
        self._layers = layers
        self._policy, self._exchange = policy, exchange
        self._tapes: list[LayerTape] = []
        self._inputs: list[Features] = []
        # Nodes from elsewhere after layers that are run once more, lest they be fetched again.
        self._fetched: dict[int, Tensor] = {}

    def forward(self, features: Features) -> Features:
        """Run all layers, keeping tapes and inputs; returns the last features."""
        every, keep = self._policy.every, self._policy.keep == "preactivations"
        for index, layer in enumerate(self._layers):
            if index % every == 0:
                self._inputs.append(features)
            # Features that are not kept alternate between two places.
            kept = (index + 1) % every == 0
            tape = LayerTape(keep, f"after {index}" if kept else f"passing {index % 2}")
            features = layer.forward(self.data, features, tape)
            if kept or layer is self._layers[-1]:  # others are run, and taped, once more
                self._tapes.append(tape)
            if layer is not self._layers[-1] and self._exchange is not None:
                features = features._replace(node=self._exchange.forward(features.node))
                if not kept:
                    self._fetched[index] = features.node[self.data.graph.n_atoms :].clone()
        return features

    def backward(self, grad: Features, weights: Sequence[LayerSums] | None = None) -> Features:
        """Run the layers backwards, segment by segment of layers whose inputs were not kept.

        Gradients of weights are added to ``weights``, of each layer, if given.
        """
        while self._inputs:
            first = (len(self._inputs) - 1) * self._policy.every
            layers = self._layers[first : first + self._policy.every]
            segment, again = [self._inputs.pop()], []
            for index, layer in enumerate(layers[:-1]):
                again.append(LayerTape(False, f"again {index}"))
                features = layer.forward(self.data, segment[-1], again[-1])
                if self._exchange is not None:
                    node = torch.cat([features.node, self._fetched.pop(first + index)])
                    features = features._replace(node=node)
                segment.append(features)
            again.append(self._tapes.pop())
            for index, layer in reversed(list(enumerate(layers, start=first))):
                sums = None if weights is None else weights[index]
                grad = layer.backward(self.data, segment.pop(), grad, again.pop(), sums)
                if self._exchange is not None and layer is not self._layers[0]:
                    grad = grad._replace(node=self._exchange.backward(grad.node))
        return grad

    def once_more(self) -> _Course:
        """The same course, to be gone back again: :meth:`backward` uses up what is kept."""
        data = GraphData(self.data.graph, self.data.weighting, self.data.weighting.zeros_like())
        copy = _Course(self._layers, data, self.geometry, self._policy, self._exchange)
        copy._tapes, copy._inputs = list(self._tapes), list(self._inputs)
        copy._fetched = dict(self._fetched)
        return copy


class Evaluator:
    """Atomic energies and dE/dd_ij of a block graph.

    Args:
        network: the readable network, whose weights and node embedding are used.
        sparse: see :class:`ActivationKernel`; right where the host is the device.
        library: compiled kernels for edges and angles, where there are some.
        matmul: how the products of the Triton programs round, where these are to be used.

    Attributes:
        kernels: what computes the layers. Only tensor operations have temporaries that the size
            of a block bounds, and keep pre-activations; the others compute them again.
        itemsize: bytes of a number in the layers.
    """

    kernels: Kernels

    def __init__(
        self,
        network: Network,
        sparse: bool,
        library: ctypes.CDLL | None = None,
        matmul: Matmul | None = None,
    ) -> None:
        config = network.config
        self._network, self._config, self._sparse = network, config, sparse
        self.itemsize = network.dtype.itemsize
        self.workspace = Workspace(network.device, network.dtype)
        self._activation = ActivationKernel(config.descriptor.activation, sparse)
        kind: Callable[..., Kernel] = ParallelTensorKernel
        self.kernels = "torch"
        if library is not None:
            kind, self.kernels = partial(CompiledKernel, library=library), "compiled"
        elif config.descriptor.sequential_update:
            kind = SequentialTensorKernel
        elif matmul is not None:
            kind, self.kernels = partial(TritonKernel, matmul=matmul), "triton"
        self._layers = [
            Layer(
                config.descriptor,
                number,
                kind(config.descriptor, number, self._activation, self.workspace),
                self.workspace,
            )
            for number in range(config.descriptor.nlayers)
        ]
        self._algebra64: Algebra = TensorAlgebra()
        if library is not None:
            self._algebra64 = CompiledAlgebra(library, torch.float64)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights of the network as they are now."""
        config, weights = self._config, self._network.weights
        self._type_rows = self._network.type_rows()
        self._geometry = GeometryKernel(config.descriptor, weights, self._activation)
        for layer in self._layers:
            layer.kernel.refresh(weights)
        self._fitting = FittingKernel(config, weights, self._sparse)
        self._bias = weights["fitting_net.bias_atom_e"][:, 0], weights["out_bias"][0, :, 0]

    @torch.no_grad()
    def evaluate(
        self, graph: BlockGraph, policy: MemoryPolicy, exchange: Exchange | None = None
    ) -> tuple[Tensor, Tensor]:
        """Energy of every centre ``(n_atoms,)``, eV, and dE/dd ``(n_edges, 3)``, eV/Å; float64.

        Args:
            graph: the batch.
            policy: what to keep for the backward pass.
            exchange: fetches features of nodes that are no centres, where there are such.
        """
        course, last, types = self._forward(graph, policy, exchange)
        readout = self._readout(graph, last.node, types)
        vectors = self._backward(graph, course, last, readout)
        self.workspace.end()
        return readout.energies, vectors

    @torch.no_grad()
    def evaluate_with_features(
        self, graph: BlockGraph, policy: MemoryPolicy, exchange: Exchange | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`evaluate` and :meth:`features` return, for the price of the first."""
        course, last, types = self._forward(graph, policy, exchange)
        readout = self._readout(graph, last.node, types)
        vectors = self._backward(graph, course, last, readout)
        self.workspace.end()
        return readout.energies, vectors, self._features(readout)

    @torch.no_grad()
    def features(self, graph: BlockGraph, policy: MemoryPolicy) -> Tensor:
        """What the last layer of the fitting net reads: ``(n_atoms, width)``, float64.

        Energies are linear in it (docs/model.md#fitting-net). It is 0 for atoms without energy.
        """
        _, last, types = self._forward(graph, policy)
        found = self._features(self._readout(graph, last.node, types))
        self.workspace.end()
        return found

    @torch.no_grad()
    def changes(
        self, graph: BlockGraph, policy: MemoryPolicy, directions: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """By what changes of the last layer change the energies ``(n_atoms,)`` and dE/dd.

        The layers run forwards once, and backwards for each of the directions.

        Args:
            graph: the batch. policy: what to keep for the backward passes.
            directions: ``(width, n_directions)`` float64.
        """
        course, last, types = self._forward(graph, policy)
        readout = self._readout(graph, last.node, types)
        energies = self._features(readout) @ directions
        for index in range(directions.shape[1]):
            direction = directions[:, index : index + 1]
            yield (
                energies[:, index],
                self._backward(graph, course.once_more(), last, readout, direction),
            )
        self.workspace.end()

    @torch.no_grad()
    def add_weight_gradients(
        self, graph: BlockGraph, seed: Tensor, policy: MemoryPolicy, sums: WeightSums
    ) -> None:
        """Add the gradient of ``sum_i seed_i E_i`` with respect to the weights to ``sums``.

        Args:
            graph: the batch.
            seed: ``(n_atoms,)`` float64, factors of the centres' energies.
            policy: what to keep for the backward pass.
            sums: from :meth:`weight_sums`.
        """
        course, last, types = self._forward(graph, policy)
        inputs, included = self._fitting_inputs(graph, last.node, types)
        seed = seed * included
        if self._config.fitting.subtract_vacuum:
            _, tape = self._fitting.forward(self._vacuum(inputs))
            self._fitting.add_weights(tape, -seed, self._algebra64, sums.named)
        _, tape = self._fitting.forward(inputs)
        d_input = self._fitting.add_weights(tape, seed, self._algebra64, sums.named)
        if sums.layers is None:
            self.workspace.end()
            return
        d_last = self._d_last(last, d_input)
        del last
        grad = course.backward(d_last, sums.layers)
        # The angles reach no energy where no layer reads them.
        d_angle = grad.angle if self._layers[0].plan.angles else None
        algebra = self._layers[0].kernel.algebra
        self._geometry.add_weights(graph, course.geometry, grad.edge, d_angle, algebra, sums.named)
        d_types = self._activation.backward_(grad.node, types).to(torch.float64)
        if self._config.descriptor.concat_output_tebd:
            n = types.shape[1]
            d_types[: graph.n_atoms] += d_input[:, n : 2 * n]
        sums.types.index_add_(0, graph.types, d_types)
        if sums.charge_spin is not None:
            sums.charge_spin.index_add_(0, graph.structure, d_types)
        self.workspace.end()

    def weight_sums(self, graph: BlockGraph, fitting_only: bool = False) -> WeightSums:
        """No gradients yet, for batches like ``graph``.

        Args:
            graph: the batch.
            fitting_only: of the fitting net alone, for which no layer runs backwards.
        """
        weights, like = self._network.weights, self._type_rows
        names = [name for name in weights if is_trained(name) and self._is_single(name)]
        if fitting_only:
            names = [name for name in names if name.startswith(FITTING_LAYERS)]
        charged = self._config.descriptor.add_chg_spin_ebd
        width = like.shape[1]
        return WeightSums(
            None
            if fitting_only
            else [LayerSums.zeros(layer.kernel.weights) for layer in self._layers],
            {name: torch.zeros_like(weights[name], dtype=torch.float64) for name in names},
            torch.zeros_like(like, dtype=torch.float64),
            like.new_zeros((graph.n_structures, width), dtype=torch.float64) if charged else None,
        )

    def _is_single(self, name: str) -> bool:
        """Whether a weight is merged with no other, and reaches the energy."""
        if name.startswith(f"{REPFLOWS}.angle_embd"):
            return self._layers[0].plan.angles
        return name.startswith((f"{REPFLOWS}.edge_embd", FITTING_LAYERS))

    def named_gradients(self, graph: BlockGraph, sums: WeightSums) -> dict[str, Tensor]:
        """Gradients with respect to the weights of the network, by name, float64.

        Weights that no energy can reach have none (docs/model.md#what-reaches-the-energy).

        Args:
            graph: the batch. sums: what :meth:`add_weight_gradients` made.
        """
        if sums.layers is None:
            return dict(sums.named)
        config, weights = self._config, self._network.weights
        leaves = {name: x.detach().to(torch.float64) for name, x in weights.items()}
        leaves = {name: x.requires_grad_() for name, x in leaves.items() if is_trained(name)}
        with torch.enable_grad():
            pairs = [(type_rows(config, leaves), sums.types)]
            if sums.charge_spin is not None:
                rows = charge_spin_rows(config.descriptor, leaves, graph.charge_spin)
                pairs.append((rows, sums.charge_spin))
            for number, (layer, found) in enumerate(zip(self._layers, sums.layers, strict=True)):
                merged = LayerWeights(config.descriptor, layer.plan, leaves, number)
                pairs += found.pairs(merged)
            return through(pairs, leaves) | dict(sums.named)

    def _forward(
        self, graph: BlockGraph, policy: MemoryPolicy, exchange: Exchange | None = None
    ) -> tuple[_Course, Features, Tensor]:
        """Run all layers: the course to go back, the last features, and the types' rows."""
        weighting, edge, angle, geometry = self._geometry.forward(graph)
        data = GraphData(graph, weighting, weighting.zeros_like())
        node, types = self._network.node_start(graph, self._type_rows)
        course = _Course(self._layers, data, geometry, policy, exchange)
        return course, course.forward(Features(node, edge, angle)), types

    def _fitting_inputs(
        self, graph: BlockGraph, node: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inputs of the fitting net ``(n_atoms, input_dim)``, and 0 for atoms without energy."""
        network = self._network
        descriptor = node.to(torch.float64)
        if self._config.descriptor.concat_output_tebd:
            descriptor = torch.cat([descriptor, rows[: graph.n_atoms].to(torch.float64)], dim=1)
        extra = [x[: graph.n_atoms] for x in network.fitting_extra_inputs(graph)]
        included = network.included.index_select(0, graph.types[: graph.n_atoms])
        return torch.cat([descriptor, *extra], dim=1), included

    def _readout(self, graph: BlockGraph, node: Tensor, rows: Tensor) -> _Readout:
        """Run the fitting net on the last features of the nodes."""
        inputs, included = self._fitting_inputs(graph, node, rows)
        output, tape = self._fitting.forward(inputs)
        vacuum = None
        if self._config.fitting.subtract_vacuum:
            subtracted, other = self._fitting.forward(self._vacuum(inputs))
            output, vacuum = output - subtracted, other.inputs[-1]
        types = graph.types[: graph.n_atoms]
        for bias in self._bias:
            output = output + bias.index_select(0, types)
        return _Readout(output * included, included, tape, vacuum)

    def _features(self, readout: _Readout) -> Tensor:
        """What energies are linear in, ``(n_atoms, width)``."""
        found = readout.tape.inputs[-1]
        if readout.vacuum is not None:
            found = found - readout.vacuum
        return found * readout.included.unsqueeze(1)

    def _backward(
        self,
        graph: BlockGraph,
        course: _Course,
        last: Features,
        readout: _Readout,
        direction: Tensor | None = None,
    ) -> Tensor:
        """dE/dd ``(n_edges, 3)``, with the last layer's own matrix or with another one."""
        d_input = self._fitting.backward(readout.tape, readout.included, direction)
        grad = course.backward(self._d_last(last, d_input))
        return self._geometry.backward(
            graph, course.geometry, course.data.d_weighting, grad.edge, grad.angle
        )

    def _vacuum(self, inputs: Tensor) -> Tensor:
        """Inputs of the fitting net without a descriptor."""
        vacuum = inputs.clone()
        vacuum[:, : self._config.descriptor.output_dim] = 0
        return vacuum

    def _d_last(self, last: Features, d_input: Tensor) -> Features:
        """Gradient of the last features from that of the inputs of the fitting net."""
        width = last.node.shape[1]
        d_node = d_input[:, :width].to(last.node.dtype).contiguous()
        return Features(d_node, self.workspace("d edge", *last.edge.shape).zero_(), None)
