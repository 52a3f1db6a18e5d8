"""The arguments of the compiled kernels, as in ``src/kernels.cpp``."""

from __future__ import annotations

import ctypes

# Rows of packed matrices are padded to a multiple of this.
PAD = 16
KINDS = ("silut", "relu", "gelu", "tanh", "relu6", "softplus", "sigmoid", "linear")
_SIZES = ("n_rows", "n", "e", "a", "message", "angle_input", "axis")
_PLAN = ("edges", "angles", "angle_self", "smooth", "sequential")
LAYOUT = ("k", "m", "edge_start", "angle_edge_start", "angle_start")
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
    """The members of ``Layer`` in src/kernels.cpp, in their order."""
    integer, real, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    fields: list[tuple[str, type]] = [(name, integer) for name in (*_SIZES, *_PLAN, "activation")]
    fields += [(name, real) for name in ("threshold", "alpha", "beta", "edge_keep", "angle_keep")]
    fields += [(name, pointer) for name in (*LAYOUT, "neighbour")]
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
        ("n_parts", integer),
        ("part_sums", pointer),
        ("weight_sums", pointer),
    ]


class LayerCall(ctypes.Structure):
    """The edges and angles of a layer."""

    _fields_ = _fields()


class ProductCall(ctypes.Structure):
    """A matrix product."""

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


class NodesCall(ctypes.Structure):
    """The nodes of a layer, after their products."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_rows", "n", "chunks", "activation")),
        *((name, ctypes.c_double) for name in ("threshold", "alpha", "beta", "keep")),
        *((name, ctypes.c_void_p) for name in ("node", "self_pre", "sym_pre", "v3", "rho")),
        ("self_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("new_node", "d_node", "d_self", "d_sym", "d_v3")),
        ("d_self_stride", ctypes.c_int64),
    ]


class IncomingCall(ctypes.Structure):
    """Sums over the edges that point to each row."""

    _fields_ = [
        *((x, ctypes.c_int64) for x in ("n_rows", "n_edges", "projection_width", "node_width")),
        *((x, ctypes.c_void_p) for x in ("edges", "start", "projection", "node")),
        *((x, ctypes.c_void_p) for x in ("projection_sum", "d_node")),
    ]


class OuterCall(ctypes.Structure):
    """A sum of outer products over rows."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "left_columns", "right_columns")),
        ("left", ctypes.c_void_p),
        ("left_stride", ctypes.c_int64),
        ("right", ctypes.c_void_p),
        ("right_stride", ctypes.c_int64),
        ("total", ctypes.c_void_p),
        ("total_stride", ctypes.c_int64),
    ]


STRUCTS = (LayerCall, ProductCall, NodesCall, IncomingCall, OuterCall)
"""In the order of their numbers in ``dpa3_size``."""
