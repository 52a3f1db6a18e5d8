"""Energies and gradients of a batch without autograd: the layers of kernels.py put together."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.kernels.api import Matmul
from dpa3sim.kernels.compiled import NativeLayerKernel
from dpa3sim.kernels.fitting import FittingKernel
from dpa3sim.kernels.geometry import GeometryKernel
from dpa3sim.kernels.tensor import (
    Features,
    GraphData,
    LayerKernel,
    LayerTape,
    SequentialLayerKernel,
    Workspace,
)
from dpa3sim.kernels.triton import TritonLayerKernel
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
    """

    kernels: Kernels

    def __init__(
        self,
        network: Network,
        sparse: bool,
        library: ctypes.CDLL | None = None,
        matmul: Matmul | None = None,
    ) -> None:
        config, weights = network.config, network.weights
        self._network = network
        self._config = config
        device = weights["out_bias"].device
        activation = ActivationKernel(config.descriptor.activation, sparse)
        self.workspace = Workspace(device, network.dtype)
        self._geometry = GeometryKernel(config.descriptor, weights, activation)
        kind: Callable[..., LayerKernel] = LayerKernel
        self.kernels = "torch"
        if library is not None:
            kind, self.kernels = partial(NativeLayerKernel, library=library), "compiled"
        elif config.descriptor.sequential_update:
            kind = SequentialLayerKernel
        elif matmul is not None:
            kind, self.kernels = partial(TritonLayerKernel, matmul=matmul), "triton"
        self._layers = [
            kind(config.descriptor, weights, layer, activation, self.workspace)
            for layer in range(config.descriptor.nlayers)
        ]
        self._fitting = FittingKernel(config, weights, sparse)
        self._bias = weights["fitting_net.bias_atom_e"][:, 0], weights["out_bias"][0, :, 0]

    @torch.no_grad()
    def evaluate(self, graph: BlockGraph, policy: MemoryPolicy) -> tuple[Tensor, Tensor]:
        """Energy of every row ``(n_atoms,)``, eV, and dE/dd ``(n_edges, 3)``, eV/Å; float64."""
        weighting, edge, angle, geometry_tape = self._geometry.forward(graph)
        d_weighting = weighting.zeros_like()
        data = GraphData(graph, weighting, d_weighting)
        node, types = self._network.node_start(graph)
        tapes, inputs = self._forward(graph, data, Features(node, edge, angle), policy)
        del node, edge, angle
        last = inputs.pop()
        energies, d_node = self._energies(graph, last.node, types)
        d_edge = self.workspace("d edge", *last.edge.shape).zero_()
        del last
        grad = self._backward(graph, data, inputs, tapes, Features(d_node, d_edge, None), policy)
        vectors = self._geometry.backward(graph, geometry_tape, d_weighting, grad.edge, grad.angle)
        self.workspace.end()
        return energies, vectors

    def _forward(
        self,
        graph: BlockGraph,
        data: GraphData,
        features: Features,
        policy: MemoryPolicy,
    ) -> tuple[list[LayerTape], list[Features]]:
        """Run all layers. Returns the tapes and inputs that are kept, with the last features."""
        tapes, inputs = [], []
        for index, layer in enumerate(self._layers):
            tape = LayerTape(keep=policy.keep == "preactivations")
            if index % policy.every == 0:
                inputs.append(features)
            # Features that are not kept alternate between two places.
            kept = (index + 1) % policy.every == 0
            place = f"after {index}" if kept else f"passing {index % 2}"
            features = layer.forward(graph, data, features, tape, place)
            if kept or layer is self._layers[-1]:  # others are run, and taped, once more
                tapes.append(tape)
        inputs.append(features)
        return tapes, inputs

    def _backward(
        self,
        graph: BlockGraph,
        data: GraphData,
        inputs: list[Features],
        tapes: list[LayerTape],
        grad: Features,
        policy: MemoryPolicy,
    ) -> Features:
        """Run the layers backwards, segment by segment of layers whose inputs were not kept."""
        while inputs:
            first = (len(inputs) - 1) * policy.every
            layers = self._layers[first : first + policy.every]
            segment, again = [inputs.pop()], []
            for index, layer in enumerate(layers[:-1]):
                again.append(LayerTape(keep=False))
                place = f"again {index}"
                segment.append(layer.forward(graph, data, segment[-1], again[-1], place))
            again.append(tapes.pop())
            for layer in reversed(layers):
                grad = layer.backward(graph, data, segment.pop(), grad, again.pop())
        return grad

    def _energies(self, graph: BlockGraph, node: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Atomic energies and the gradient with respect to the last node features."""
        network, fitting = self._network, self._config.fitting
        descriptor = node.to(torch.float64)
        if self._config.descriptor.concat_output_tebd:
            descriptor = torch.cat([descriptor, types.to(torch.float64)], dim=1)
        extra = network.fitting_extra_inputs(graph)
        energies, tape = self._fitting.forward(torch.cat([descriptor, *extra], dim=1))
        if fitting.subtract_vacuum:
            vacuum = torch.cat([torch.zeros_like(descriptor), *extra], dim=1)
            energies = energies - self._fitting.forward(vacuum)[0]
        included = network.included.index_select(0, graph.types)
        for bias in self._bias:
            energies = energies + bias.index_select(0, graph.types)
        d_node = self._fitting.backward(tape) * included.unsqueeze(1)
        d_node = d_node[:, : node.shape[1]].to(node.dtype)
        return energies * included, d_node.contiguous()
