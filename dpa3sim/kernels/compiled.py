"""A layer by the compiled kernels."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.kernels.tensor import (
    Features,
    GraphData,
    Incoming,
    LayerKernel,
    LayerTape,
    NodeSums,
    Projections,
    Workspace,
)
from dpa3sim.model.activations import ActivationKernel, silut_constants
from dpa3sim.model.config import Activation, DescriptorConfig

# As in native/kernels.cpp: rows of packed matrices are padded to a multiple of this.
PAD = 16
_KINDS = ("silut", "relu", "gelu", "tanh", "relu6", "softplus", "sigmoid", "linear")
_SIZES = ("n_rows", "n", "e", "a", "message", "angle_input", "axis")
_PLAN = ("edges", "angles", "angle_self", "smooth", "sequential")
_LAYOUT = ("k", "m", "edge_start", "angle_edge_start", "angle_start")
_MAPS = (
    "edge_message",
    "edge_self",
    "angle_message",
    "angle_update",
    "other_message",
    "other_update",
    "receiver_message",
    "receiver_update",
    "edge_angle",
)
_INPUTS = (
    *("edge_angle_bias", "rho_self", "rho_angle", "rho_update"),
    *("symmetrise", "message_weight", "angle_weight", "other"),
    *("node", "edge", "angle", "own_edge", "own_angle", "projected"),
)
_OUTPUTS = (
    *("psi", "v3", "new_edge", "new_angle", "symmetrised", "reduced"),
    *("d_symmetrised", "d_v3", "d_edge", "d_angle"),
    *("d_symmetrise", "d_message_weight", "d_angle_weight", "d_other"),
    *("d_own_edge", "d_own_angle"),
)


def _fields() -> list[tuple[str, type]]:
    """The members of ``Layer`` in native/kernels.cpp, in their order."""
    integer, real, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    fields: list[tuple[str, type]] = [(name, integer) for name in (*_SIZES, *_PLAN, "activation")]
    fields += [(name, real) for name in ("threshold", "alpha", "beta", "edge_keep", "angle_keep")]
    fields += [(name, pointer) for name in (*_LAYOUT, "neighbour")]
    for name in _MAPS:
        fields += [(name, pointer), (f"{name}_transposed", pointer)]
    fields += [(name, pointer) for name in _INPUTS]
    fields += [("own_stride", integer), ("projected_stride", integer)]
    fields += [(name, pointer) for name in _OUTPUTS]
    return [
        *fields,
        ("d_own_stride", integer),
        ("incoming_projection", pointer),
        ("incoming_node", pointer),
    ]


class _Layer(ctypes.Structure):
    _fields_ = _fields()


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "depth", "columns")),
        ("left", ctypes.c_void_p),
        ("left_stride", ctypes.c_int64),
        ("right", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("start_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
    ]


class _Nodes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_rows", "n", "chunks", "activation")),
        *((name, ctypes.c_double) for name in ("threshold", "alpha", "beta", "keep")),
        *((name, ctypes.c_void_p) for name in ("node", "self_pre", "sym_pre", "v3", "rho")),
        ("self_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("new_node", "d_node", "d_self", "d_sym", "d_v3")),
        ("d_self_stride", ctypes.c_int64),
    ]


class _Incoming(ctypes.Structure):
    _fields_ = [
        *((x, ctypes.c_int64) for x in ("n_rows", "n_edges", "projection_width", "node_width")),
        *((x, ctypes.c_void_p) for x in ("edges", "start", "projection", "node")),
        *((x, ctypes.c_void_p) for x in ("projection_sum", "d_node")),
    ]


@dataclass(frozen=True)
class _Map:
    """A linear map: its matrix ``(depth, columns)`` as packed rows."""

    packed: Tensor
    columns: int

    @classmethod
    def of(cls, matrix: Tensor) -> _Map:
        return cls(_packed(matrix), matrix.shape[1])


class NativeLayerKernel(LayerKernel):
    """Either form.

    Args:
        config, weights, layer, activation, workspace: see :class:`LayerKernel`.
        library: the compiled kernels.
    """

    def __init__(
        self,
        config: DescriptorConfig,
        weights: dict[str, Tensor],
        layer: int,
        activation: ActivationKernel,
        workspace: Workspace,
        library: ctypes.CDLL,
    ) -> None:
        super().__init__(config, weights, layer, activation, workspace)
        precision = "f64" if self._w.edge.dtype == torch.float64 else "f32"
        names = ("forward", "backward", "product", "nodes", "nodes_backward", "incoming")
        self._run = {name: getattr(library, f"dpa3_{name}_{precision}") for name in names}
        self._kept: list[Tensor] = []  # what the pointers point to
        self._call = self._prepare(config)
        self._nodes = self._prepare_nodes(config)
        w = self._w
        self._node_i, self._node_i_t = _Map.of(w.node_i), _Map.of(w.node_i.t())
        self._node_j, self._node_j_t = _Map.of(w.node_j), _Map.of(w.node_j.t())
        self._sym, self._sym_t = _Map.of(w.sym), _Map.of(w.sym.t())

    def _product(
        self, left: Tensor, matrix: _Map, start: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """``start + left @ matrix``; a start of one dimension is a bias."""
        if out is None:
            out = left.new_empty((len(left), matrix.columns))
        call = _Product(len(left), left.shape[1], matrix.columns)
        call.left, call.left_stride = left.data_ptr(), left.stride(0)
        call.right, call.start = matrix.packed.data_ptr(), _pointer(start)
        call.start_stride = 0 if start is None or start.dim() == 1 else start.stride(0)
        call.out, call.out_stride = out.data_ptr(), out.stride(0)
        self._run["product"](ctypes.byref(call))
        return out

    def _project(self, node: Tensor) -> tuple[Projections, Tensor]:
        own = self._product(node, self._node_i, self._w.node_bias)
        return self._split(own), self._product(node, self._node_j)

    def _project_backward(self, d_projections: Tensor, d_p_j: Tensor, d_node: Tensor) -> None:
        self._product(d_projections, self._node_i_t, d_node, d_node)
        self._product(d_p_j, self._node_j_t, d_node, d_node)

    def _prepare_nodes(self, config: DescriptorConfig) -> _Nodes:
        call = _Nodes(n=config.n_dim, chunks=config.n_multi_edge_message)
        _set_activation(call, config.activation)
        call.keep, call.rho = self._w.node_keep, self._keep(torch.stack(self._w.node_rho))
        return call

    def _prepare(self, config: DescriptorConfig) -> _Layer:
        """What does not change from call to call."""
        w, plan, call, e = self._w, self.plan, _Layer(axis=config.axis_neuron), config.e_dim
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

    def _set_map(self, call: _Layer, name: str, matrix: Tensor) -> None:
        setattr(call, name, self._keep(_packed(matrix)))
        setattr(call, f"{name}_transposed", self._keep(_packed(matrix.t())))

    def _forward_blocks(
        self,
        graph: BlockGraph,
        data: GraphData,
        old: Features,
        new: Features,
        own: Projections,
        p_j: Tensor,
        sums: NodeSums,
        tape: LayerTape,
        place: str,
    ) -> None:
        call = self._call
        self._set_inputs(call, graph, data, old, own, p_j)
        call.psi, call.v3 = sums.psi.data_ptr(), sums.v3.data_ptr()
        call.symmetrised = self._symmetrised(graph.n_atoms).data_ptr()
        call.new_edge, call.new_angle = new.edge.data_ptr(), _pointer(new.angle)
        if self.plan.angles:
            slots = graph.layout.n_angle_edges
            tape.reduced = self._ws(f"reduced {place}", slots, self._config.e_dim)
            call.reduced = tape.reduced.data_ptr()
        self._run["forward"](ctypes.byref(call))

    def _backward_blocks(
        self,
        graph: BlockGraph,
        data: GraphData,
        old: Features,
        grad: Features,
        own: Projections,
        p_j: Tensor,
        d_sums: NodeSums,
        d_own: Projections,
        incoming: Incoming | None,
        tape: LayerTape,
    ) -> None:
        call, d_weighting = self._call, data.d_weighting
        self._set_inputs(call, graph, data, old, own, p_j)
        # What :meth:`_update_node_backward` returned: before the products that make sym of psi.
        call.d_symmetrised, call.d_v3 = d_sums.psi.data_ptr(), d_sums.v3.data_ptr()
        call.psi = _pointer(tape.psi)
        call.d_edge, call.d_angle = grad.edge.data_ptr(), _pointer(grad.angle)
        call.d_symmetrise = d_weighting.symmetrise.data_ptr()
        call.d_message_weight = d_weighting.message.data_ptr()
        call.d_angle_weight = d_weighting.angle.data_ptr()
        if self._config.smooth_cutoff is not None:
            call.d_other = d_weighting.other.data_ptr()
        call.d_own_edge, call.d_own_angle = d_own.edge.data_ptr(), d_own.angle.data_ptr()
        call.d_own_stride = d_own.edge.stride(0)
        call.reduced = _pointer(tape.reduced)
        call.incoming_projection = _pointer(incoming and incoming.projection)
        call.incoming_node = _pointer(incoming and incoming.node)
        self._run["backward"](ctypes.byref(call))

    def _symmetrised(self, n_atoms: int) -> Tensor:
        config = self._config
        return self._ws("symmetrised", n_atoms, config.axis_neuron * (config.e_dim + config.n_dim))

    def _update_node(self, node: Tensor, sums: NodeSums, tape: LayerTape) -> Tensor:
        assert tape.own is not None
        call, new = self._nodes, torch.empty_like(node)
        tape.sym_pre = self._product(self._symmetrised(len(node)), self._sym, self._w.sym_bias)
        self._set_nodes(call, tape)
        call.node, call.v3, call.new_node = node.data_ptr(), sums.v3.data_ptr(), new.data_ptr()
        self._run["nodes"](ctypes.byref(call))
        return new

    def _update_node_backward(self, d_node: Tensor, tape: LayerTape, d_self: Tensor) -> NodeSums:
        """As in the base class, but ``psi`` is the gradient of sym, made of it in the kernel."""
        call = self._nodes
        d_sym = torch.empty_like(d_node)
        d_v3 = d_node.new_empty((len(d_node), self._message_width))
        self._set_nodes(call, tape)
        call.d_node, call.d_sym, call.d_v3 = d_node.data_ptr(), d_sym.data_ptr(), d_v3.data_ptr()
        call.d_self, call.d_self_stride = d_self.data_ptr(), d_self.stride(0)
        self._run["nodes_backward"](ctypes.byref(call))
        return NodeSums(self._product(d_sym, self._sym_t), d_v3)

    def _set_nodes(self, call: _Nodes, tape: LayerTape) -> None:
        assert tape.own is not None
        call.n_rows = len(tape.own.own)
        call.self_pre, call.self_stride = tape.own.own.data_ptr(), tape.own.own.stride(0)
        call.sym_pre = _pointer(tape.sym_pre)

    def _sum_incoming(self, graph: BlockGraph, incoming: Incoming, d_node: Tensor) -> Tensor:
        out = d_node.new_empty((graph.n_atoms, incoming.projection.shape[1]))
        call = _Incoming(graph.n_atoms, graph.incoming.shape[0], out.shape[1], d_node.shape[1])
        call.edges, call.start = graph.incoming.data_ptr(), graph.incoming_start.data_ptr()
        call.projection, call.node = incoming.projection.data_ptr(), incoming.node.data_ptr()
        call.projection_sum, call.d_node = out.data_ptr(), d_node.data_ptr()
        self._run["incoming"](ctypes.byref(call))
        return out

    def _set_inputs(
        self,
        call: _Layer,
        graph: BlockGraph,
        data: GraphData,
        old: Features,
        own: Projections,
        p_j: Tensor,
    ) -> None:
        call.n_rows = graph.n_atoms
        for name, row in zip(_LAYOUT, graph.layout.centres, strict=True):
            setattr(call, name, row.ctypes.data)
        call.neighbour = graph.edge_j.data_ptr()
        weighting = data.weighting
        call.symmetrise = weighting.symmetrise.data_ptr()
        call.message_weight = weighting.message.data_ptr()
        call.angle_weight, call.other = weighting.angle.data_ptr(), weighting.other.data_ptr()
        call.node, call.edge, call.angle = (
            old.node.data_ptr(),
            old.edge.data_ptr(),
            _pointer(old.angle),
        )
        call.own_edge, call.own_angle = own.edge.data_ptr(), own.angle.data_ptr()
        call.own_stride, call.projected = own.edge.stride(0), p_j.data_ptr()
        call.projected_stride = p_j.stride(0)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _packed(matrix: Tensor) -> Tensor:
    """The matrix with its rows padded by zeros."""
    rows, columns = matrix.shape
    out = matrix.new_zeros((rows, math.ceil(columns / PAD) * PAD))
    out[:, :columns] = matrix
    return out


def _set_activation(call: _Layer | _Nodes, activation: Activation) -> None:
    name = {"silu": "silut", "gelu_tf": "gelu"}.get(activation.name, activation.name)
    call.activation = _KINDS.index(name)
    call.threshold, call.alpha, call.beta = math.inf, 1.0, 0.0
    if activation.name == "silut":
        call.threshold = activation.threshold
        call.alpha, call.beta = silut_constants(activation.threshold)
