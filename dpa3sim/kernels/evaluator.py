"""Energies and gradients of a batch without autograd: geometry, layers and fitting net."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.kernels.api import Exchange, Features, GraphData, Kernel, LayerTape, Matmul
from dpa3sim.kernels.compiled import CompiledKernel
from dpa3sim.kernels.fitting import FittingKernel
from dpa3sim.kernels.geometry import GeometryKernel
from dpa3sim.kernels.layer import Layer
from dpa3sim.kernels.tensor import ParallelTensorKernel, SequentialTensorKernel
from dpa3sim.kernels.triton import TritonKernel
from dpa3sim.kernels.workspace import Workspace
from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.network import Network

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


class _Course:
    """All layers, forward and backward, and what is kept between."""

    def __init__(
        self,
        layers: Sequence[Layer],
        data: GraphData,
        policy: MemoryPolicy,
        exchange: Exchange | None,
    ) -> None:
        self._layers, self._data = layers, data
        self._policy, self._exchange = policy, exchange
        self._tapes: list[LayerTape] = []
        self._inputs: list[Features] = []

    def forward(self, features: Features) -> Features:
        """Run all layers, keeping tapes and inputs; returns the last features."""
        every, keep = self._policy.every, self._policy.keep == "preactivations"
        for index, layer in enumerate(self._layers):
            if index % every == 0:
                self._inputs.append(features)
            # Features that are not kept alternate between two places.
            kept = (index + 1) % every == 0
            tape = LayerTape(keep, f"after {index}" if kept else f"passing {index % 2}")
            features = layer.forward(self._data, features, tape)
            if kept or layer is self._layers[-1]:  # others are run, and taped, once more
                self._tapes.append(tape)
            if layer is not self._layers[-1]:
                features = self._exchanged(features)
        return features

    def backward(self, grad: Features) -> Features:
        """Run the layers backwards, segment by segment of layers whose inputs were not kept."""
        while self._inputs:
            first = (len(self._inputs) - 1) * self._policy.every
            layers = self._layers[first : first + self._policy.every]
            segment, again = [self._inputs.pop()], []
            for index, layer in enumerate(layers[:-1]):
                again.append(LayerTape(False, f"again {index}"))
                features = layer.forward(self._data, segment[-1], again[-1])
                segment.append(self._exchanged(features))
            again.append(self._tapes.pop())
            for layer in reversed(layers):
                grad = layer.backward(self._data, segment.pop(), grad, again.pop())
                if self._exchange is not None and layer is not self._layers[0]:
                    grad = grad._replace(node=self._exchange.backward(grad.node))
        return grad

    def _exchanged(self, features: Features) -> Features:
        if self._exchange is None:
            return features
        return features._replace(node=self._exchange.forward(features.node))


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
        weighting, edge, angle, geometry_tape = self._geometry.forward(graph)
        data = GraphData(graph, weighting, weighting.zeros_like())
        node, types = self._network.node_start(graph, self._type_rows)
        course = _Course(self._layers, data, policy, exchange)
        last = course.forward(Features(node, edge, angle))
        del node, edge, angle
        energies, d_node = self._energies(graph, last.node, types[: graph.n_atoms])
        d_edge = self.workspace("d edge", *last.edge.shape).zero_()
        del last
        grad = course.backward(Features(d_node, d_edge, None))
        vectors = self._geometry.backward(
            graph, geometry_tape, data.d_weighting, grad.edge, grad.angle
        )
        self.workspace.end()
        return energies, vectors

    def _energies(self, graph: BlockGraph, node: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Atomic energies and the gradient with respect to the last node features."""
        network, fitting = self._network, self._config.fitting
        descriptor = node.to(torch.float64)
        if self._config.descriptor.concat_output_tebd:
            descriptor = torch.cat([descriptor, rows.to(torch.float64)], dim=1)
        extra = [x[: graph.n_atoms] for x in network.fitting_extra_inputs(graph)]
        energies, tape = self._fitting.forward(torch.cat([descriptor, *extra], dim=1))
        if fitting.subtract_vacuum:
            vacuum = torch.cat([torch.zeros_like(descriptor), *extra], dim=1)
            energies = energies - self._fitting.forward(vacuum)[0]
        types = graph.types[: graph.n_atoms]
        included = network.included.index_select(0, types)
        for bias in self._bias:
            energies = energies + bias.index_select(0, types)
        d_node = self._fitting.backward(tape) * included.unsqueeze(1)
        d_node = d_node[:, : node.shape[1]].to(node.dtype)
        return energies * included, d_node.contiguous()
