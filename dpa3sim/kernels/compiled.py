"""A layer by the compiled kernels."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.kernels.algebra import Algebra, CompiledAlgebra
from dpa3sim.kernels.api import (
    Features,
    Incoming,
    LayerGradients,
    LayerInputs,
    LayerTape,
    NodeSums,
)
from dpa3sim.kernels.gradients import LayerSums
from dpa3sim.kernels.layer import LayerPlan, LayerWeights
from dpa3sim.kernels.structs import (
    KINDS,
    LAYOUT,
    PAD,
    IncomingCall,
    LayerCall,
    NodesCall,
    ProductCall,
)
from dpa3sim.kernels.tensor import TensorNodes
from dpa3sim.kernels.workspace import Workspace
from dpa3sim.model.activations import ActivationKernel, silut_constants
from dpa3sim.model.config import Activation, DescriptorConfig

# Sums of weight gradients that are made side by side; fixed, so that they are the same for any
# number of threads.
WEIGHT_PARTS = 32


@dataclass(frozen=True)
class _Map:
    """A linear map: its matrix ``(depth, columns)``, packed."""

    packed: Tensor
    columns: int

    @classmethod
    def of(cls, matrix: Tensor, panel: int) -> _Map:
        return cls(_packed(matrix, panel), matrix.shape[1])


class CompiledKernel:
    """Either form, by the library of ``src/kernels.cpp``.

    Args:
        config: the descriptor's options. layer: number of the layer.
        activation: for weight gradients of nodes; the library has its own.
        workspace: memory for what is kept between calls.
        library: the compiled kernels.
    """

    def __init__(
        self,
        config: DescriptorConfig,
        layer: int,
        activation: ActivationKernel,
        workspace: Workspace,
        library: ctypes.CDLL,
    ) -> None:
        self.plan = LayerPlan.of(config, layer)
        self._config, self._ws = config, workspace
        self._message_width = config.n_multi_edge_message * config.n_dim
        self._library = library
        self._tensor = TensorNodes(config, layer, activation)
        self.algebra: Algebra = self._tensor.algebra

    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`~dpa3sim.kernels.api.Kernel`, like the other methods."""
        self._tensor.refresh(weights)
        self._w = w = self._tensor.weights
        self.node_keep = w.node_keep
        self.algebra = self._tensor.algebra = CompiledAlgebra(self._library, w.edge.dtype)
        precision = "f64" if w.edge.dtype == torch.float64 else "f32"
        names = ("forward", "backward", "product", "nodes", "nodes_backward", "incoming")
        self._run = {name: getattr(self._library, f"dpa3_{name}_{precision}") for name in names}
        self._panel = panel = getattr(self._library, f"dpa3_panel_{precision}")()
        self._kept: list[Tensor] = []  # what the pointers point to
        self._call = self._prepare(self._config)
        self._nodes = self._prepare_nodes(self._config)
        self._node_i, self._node_i_t = _Map.of(w.node_i, panel), _Map.of(w.node_i.t(), panel)
        self._node_j, self._node_j_t = _Map.of(w.node_j, panel), _Map.of(w.node_j.t(), panel)
        self._sym, self._sym_t = _Map.of(w.sym, panel), _Map.of(w.sym.t(), panel)

    def _product(
        self, left: Tensor, matrix: _Map, start: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """``start + left @ matrix``; a start of one dimension is a bias."""
        if out is None:
            out = left.new_empty((len(left), matrix.columns))
        call = ProductCall(len(left), left.shape[1], matrix.columns)
        call.left, call.left_stride = left.data_ptr(), left.stride(0)
        call.right, call.start = matrix.packed.data_ptr(), _pointer(start)
        call.start_stride = 0 if start is None or start.dim() == 1 else start.stride(0)
        call.out, call.out_stride = out.data_ptr(), out.stride(0)
        self._run["product"](ctypes.byref(call))
        return out

    @property
    def weights(self) -> LayerWeights:
        return self._w

    def project(self, node: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
        own = self._product(node[:n_atoms], self._node_i, self._w.node_bias)
        return own, self._product(node, self._node_j)

    def project_backward(self, d_own: Tensor, d_neighbour: Tensor, d_node: Tensor) -> None:
        centres = d_node[: len(d_own)]
        self._product(d_own, self._node_i_t, centres, centres)
        self._product(d_neighbour, self._node_j_t, d_node, d_node)

    def _prepare_nodes(self, config: DescriptorConfig) -> NodesCall:
        call = NodesCall(n=config.n_dim, chunks=config.n_multi_edge_message)
        _set_activation(call, config.activation)
        call.keep, call.rho = self._w.node_keep, self._keep(torch.stack(self._w.node_rho))
        return call

    def _prepare(self, config: DescriptorConfig) -> LayerCall:
        """What does not change from call to call."""
        w, plan, call, e = self._w, self.plan, LayerCall(axis=config.axis_neuron), config.e_dim
        width = self._message_width
        call.n, call.e, call.a, call.message = config.n_dim, e, config.a_dim, width
        call.edges, call.angles = plan.edges, plan.angles
        call.angle_self, call.smooth = plan.angle_self, config.smooth_edge_update
        call.sequential = config.sequential_update
        _set_activation(call, config.activation)
        self._set_map(call, "edge_message", w.edge[:, :width])
        if plan.edges:
            call.edge_keep = w.edge_keep
            self._set_map(call, "edge_self", w.edge[:, width:])
            call.rho_self = self._keep(w.edge_rho[0])
        if plan.angles:
            call.angle_input = w.angle_edge.shape[0]
            self._set_map(call, "angle_message", w.angle[:, :e])
            other, receiver = w.angle_edge.split(w.width_angle, dim=1)
            self._set_map(call, "other_message", other[:, :e])
            self._set_map(call, "receiver_message", receiver[:, :e])
            self._set_map(call, "edge_angle", w.ea2)
            call.edge_angle_bias = self._keep(w.ea2_bias)
            call.rho_angle = self._keep(w.edge_rho[1])
        if plan.angle_self:
            self._set_map(call, "angle_update", w.angle[:, e:])
            self._set_map(call, "other_update", other[:, e:])
            self._set_map(call, "receiver_update", receiver[:, e:])
            call.angle_keep, call.rho_update = w.angle_keep, self._keep(w.angle_rho[0])
        return call

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _set_map(self, call: LayerCall, name: str, matrix: Tensor) -> None:
        setattr(call, name, self._keep(_packed(matrix, self._panel)))
        setattr(call, f"{name}_transposed", self._keep(_packed(matrix.t(), self._panel)))

    def forward(self, x: LayerInputs, new: Features, sums: NodeSums, tape: LayerTape) -> None:
        call, graph = self._call, x.data.graph
        self._set_inputs(call, x)
        call.psi, call.v3 = sums.psi.data_ptr(), sums.v3.data_ptr()
        call.symmetrised = self._symmetrised(graph.n_atoms).data_ptr()
        call.new_edge, call.new_angle = new.edge.data_ptr(), _pointer(new.angle)
        if self.plan.angles:
            slots = graph.layout.n_angle_edges
            tape.reduced = self._ws(f"reduced {tape.place}", slots, self._config.e_dim)
            call.reduced = tape.reduced.data_ptr()
        self._run["forward"](ctypes.byref(call))

    def backward(self, x: LayerInputs, grad: LayerGradients, tape: LayerTape) -> None:
        call, d_weighting, incoming = self._call, x.data.d_weighting, grad.incoming
        graph = x.data.graph
        self._set_inputs(call, x)
        # What :meth:`update_node_backward` returned: before the products that make sym of psi.
        call.d_symmetrised, call.d_v3 = grad.sums.psi.data_ptr(), grad.sums.v3.data_ptr()
        call.psi = _pointer(tape.psi)
        call.d_edge, call.d_angle = grad.features.edge.data_ptr(), _pointer(grad.features.angle)
        call.d_symmetrise = d_weighting.symmetrise.data_ptr()
        call.d_message_weight = d_weighting.message.data_ptr()
        call.d_angle_weight = d_weighting.angle.data_ptr()
        if self._config.smooth_cutoff is not None:
            call.d_other = d_weighting.other.data_ptr()
        call.d_own_edge, call.d_own_angle = grad.own.edge.data_ptr(), grad.own.angle.data_ptr()
        call.d_own_stride = grad.own.edge.stride(0)
        call.reduced = _pointer(tape.reduced)
        call.incoming_projection = _pointer(incoming and incoming.projection)
        call.incoming_node = _pointer(incoming and incoming.node)
        call.weight_sums = None
        if grad.weights is not None:
            total = grad.weights.by_edges
            call.n_parts = min(WEIGHT_PARTS, graph.n_atoms)
            parts = total.new_empty((call.n_parts, len(total)))
            call.part_sums, call.weight_sums = parts.data_ptr(), total.data_ptr()
        self._run["backward"](ctypes.byref(call))

    def _symmetrised(self, n_atoms: int) -> Tensor:
        config = self._config
        return self._ws("symmetrised", n_atoms, config.axis_neuron * (config.e_dim + config.n_dim))

    def update_node(self, node: Tensor, sums: NodeSums, tape: LayerTape) -> Tensor:
        assert tape.own is not None
        call, new = self._nodes, torch.empty_like(node)
        tape.sym_pre = self._product(self._symmetrised(len(node)), self._sym, self._w.sym_bias)
        self._set_nodes(call, tape)
        call.node, call.v3, call.new_node = node.data_ptr(), sums.v3.data_ptr(), new.data_ptr()
        self._run["nodes"](ctypes.byref(call))
        return new

    def update_node_backward(
        self, d_node: Tensor, tape: LayerTape, d_self: Tensor, weights: LayerSums | None
    ) -> NodeSums:
        # `psi` is the gradient of sym here, which the kernel goes on from.
        call = self._nodes
        d_sym = torch.empty_like(d_node)
        d_v3 = d_node.new_empty((len(d_node), self._message_width))
        self._set_nodes(call, tape)
        call.d_node, call.d_sym, call.d_v3 = d_node.data_ptr(), d_sym.data_ptr(), d_v3.data_ptr()
        call.d_self, call.d_self_stride = d_self.data_ptr(), d_self.stride(0)
        self._run["nodes_backward"](ctypes.byref(call))
        if weights is not None:
            self._tensor.add_node_weights(d_node, d_sym, tape, weights)
        return NodeSums(self._product(d_sym, self._sym_t), d_v3)

    def _set_nodes(self, call: NodesCall, tape: LayerTape) -> None:
        assert tape.own is not None
        call.n_rows = len(tape.own.own)
        call.self_pre, call.self_stride = tape.own.own.data_ptr(), tape.own.own.stride(0)
        call.sym_pre = _pointer(tape.sym_pre)

    def sum_incoming(self, graph: BlockGraph, incoming: Incoming, d_node: Tensor) -> Tensor:
        out = d_node.new_empty((graph.n_nodes, incoming.projection.shape[1]))
        call = IncomingCall(graph.n_nodes, graph.incoming.shape[0], out.shape[1], d_node.shape[1])
        call.edges, call.start = graph.incoming.data_ptr(), graph.incoming_start.data_ptr()
        call.projection, call.node = incoming.projection.data_ptr(), incoming.node.data_ptr()
        call.projection_sum, call.d_node = out.data_ptr(), d_node.data_ptr()
        self._run["incoming"](ctypes.byref(call))
        return out

    def _set_inputs(self, call: LayerCall, x: LayerInputs) -> None:
        graph, weighting, own = x.data.graph, x.data.weighting, x.own
        call.n_rows = graph.n_atoms
        for name, row in zip(LAYOUT, graph.layout.centres, strict=True):
            setattr(call, name, row.ctypes.data)
        call.neighbour = graph.edge_j.data_ptr()
        call.symmetrise = weighting.symmetrise.data_ptr()
        call.message_weight = weighting.message.data_ptr()
        call.angle_weight, call.other = weighting.angle.data_ptr(), weighting.other.data_ptr()
        node, edge, angle = x.features
        call.node, call.edge, call.angle = node.data_ptr(), edge.data_ptr(), _pointer(angle)
        call.own_edge, call.own_angle = own.edge.data_ptr(), own.angle.data_ptr()
        call.own_stride, call.projected = own.edge.stride(0), x.neighbour.data_ptr()
        call.projected_stride = x.neighbour.stride(0)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _packed(matrix: Tensor, panel: int) -> Tensor:
    """``(rows, columns)``, with zeros up to whole vectors, in panels of columns."""
    rows, columns = matrix.shape
    wide = math.ceil(columns / PAD) * PAD
    out = matrix.new_zeros((rows, wide))
    out[:, :columns] = matrix
    return torch.cat([part.flatten() for part in out.split(panel, dim=1)])


def _set_activation(call: LayerCall | NodesCall, activation: Activation) -> None:
    name = {"silu": "silut", "gelu_tf": "gelu"}.get(activation.name, activation.name)
    call.activation = KINDS.index(name)
    call.threshold, call.alpha, call.beta = math.inf, 1.0, 0.0
    if activation.name == "silut":
        call.threshold = activation.threshold
        call.alpha, call.beta = silut_constants(activation.threshold)
