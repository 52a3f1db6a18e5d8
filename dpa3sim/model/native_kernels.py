"""A layer whose edges and angles are computed by the compiled kernels; nodes stay with torch."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.model.activations import ActivationKernel, silut_constants
from dpa3sim.model.config import Activation, DescriptorConfig
from dpa3sim.model.kernels import (
    Features,
    GraphData,
    Incoming,
    LayerKernel,
    LayerTape,
    NodeSums,
    Projections,
    Workspace,
)

# As in native/kernels.cpp: rows of packed matrices are padded to a multiple of this.
PAD = 16
_KINDS = ("silut", "relu", "gelu", "tanh", "relu6", "softplus", "sigmoid", "linear")
_SIZES = ("n_rows", "n", "e", "a", "message", "angle_input")
_PLAN = ("edges", "angles", "angle_self", "smooth")
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
    *("psi", "v3", "new_edge", "new_angle", "reduced"),
    *("d_psi", "d_v3", "d_edge", "d_angle"),
    *("d_symmetrise", "d_message_weight", "d_angle_weight", "d_own_edge", "d_own_angle"),
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


class NativeLayerKernel(LayerKernel):
    """The parallel form.

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
        self._library_forward = getattr(library, f"dpa3_forward_{precision}")
        self._library_backward = getattr(library, f"dpa3_backward_{precision}")
        self._kept: list[Tensor] = []  # what the pointers point to
        self._call = self._prepare(config)

    def _prepare(self, config: DescriptorConfig) -> _Layer:
        """What does not change from call to call."""
        w, plan, call, e = self._w, self.plan, _Layer(), config.e_dim
        width = self._message_width
        call.n, call.e, call.a, call.message = config.n_dim, e, config.a_dim, width
        call.edges, call.angles = plan.edges, plan.angles
        call.angle_self, call.smooth = plan.angle_self, config.smooth_edge_update
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
        call.new_edge, call.new_angle = new.edge.data_ptr(), _pointer(new.angle)
        if self.plan.angles:
            slots = graph.layout.n_angle_edges
            tape.reduced = self._ws(f"reduced {place}", slots, self._config.e_dim)
            call.reduced = tape.reduced.data_ptr()
        self._library_forward(ctypes.byref(call))

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
        call.d_psi, call.d_v3 = d_sums.psi.data_ptr(), d_sums.v3.data_ptr()
        call.d_edge, call.d_angle = grad.edge.data_ptr(), _pointer(grad.angle)
        call.d_symmetrise = d_weighting.symmetrise.data_ptr()
        call.d_message_weight = d_weighting.message.data_ptr()
        call.d_angle_weight = d_weighting.angle.data_ptr()
        call.d_own_edge, call.d_own_angle = d_own.edge.data_ptr(), d_own.angle.data_ptr()
        call.d_own_stride = d_own.edge.stride(0)
        call.reduced = _pointer(tape.reduced)
        call.incoming_projection = _pointer(incoming and incoming.projection)
        call.incoming_node = _pointer(incoming and incoming.node)
        self._library_backward(ctypes.byref(call))

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


def _set_activation(call: _Layer, activation: Activation) -> None:
    name = {"silu": "silut", "gelu_tf": "gelu"}.get(activation.name, activation.name)
    call.activation = _KINDS.index(name)
    call.threshold, call.alpha, call.beta = math.inf, 1.0, 0.0
    if activation.name == "silut":
        call.threshold = activation.threshold
        call.alpha, call.beta = silut_constants(activation.threshold)
