"""The GPU programs of a repflow layer in Triton; triton_kernels.py launches them.

Importing this module needs Triton: do so only where the programs run.

Names and formulas are those of kernels.py, ``d_x`` is dE/dx. A program handles one centre, one
receiver q of a centre's angles, or a tile of edges, and holds everything between the features of
the layer's start and of its end in registers: pre-activations are the accumulators of a small
product, and the backward programs compute them again. Nothing is added atomically: what several
programs contribute to a sum is stored by each and added by :func:`sum_segments`, or by torch where
it is the gradient of weights, always in the same order.

Conventions: names in capitals are compile-time constants. ``P_X`` is X rounded up to a power of
two, ``B_X`` the size of a tile; channels beyond X are loaded as zero and never stored. Array
offsets that may exceed 32 bits start from an int64 row. ``KIND`` and the constants of SiLUT are
the activation; ``PRECISION``: see :func:`_product`. With ``WEIGHTS`` a backward program makes its
part of the gradients of the weights, and not that of the weighting.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

# -- products and activations ---------------------------------------------------------------------


@triton.jit
def _product(a, b, sum, PRECISION: tl.constexpr):
    """``sum + a @ b``; of the inputs, tf32 keeps 10 bits of the mantissa and bf16 keeps 7.

    "emulated bf16" gives the same without the type, which Triton's interpreter can neither round
    to nor multiply.
    """
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sum, out_dtype=sum.dtype)
    if PRECISION == "emulated bf16":
        a = _round(a, 16)
        b = _round(b, 16)
    if PRECISION == "tf32":
        # Tensor cores would cut the other bits off, which biases every sum.
        return tl.dot(
            _round(a, 13), _round(b, 13), sum, input_precision="tf32", out_dtype=sum.dtype
        )
    return tl.dot(a, b, sum, input_precision="ieee", out_dtype=sum.dtype)


@triton.jit
def _round(x, BITS: tl.constexpr):
    """Round float32 to the nearest number whose last bits are zero, ties to even."""
    HALF: tl.constexpr = (1 << (BITS - 1)) - 1
    MASK: tl.constexpr = -(1 << BITS)
    bits = x.to(tl.int32, bitcast=True)
    bits += HALF + ((bits >> BITS) & 1)
    return (bits & MASK).to(tl.float32, bitcast=True)


INTERPRETED = isinstance(_round, InterpretedFunction)
"""Whether Triton's interpreter runs the programs, on the CPU: ``TRITON_INTERPRET=1``."""


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _activate(
    x,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
):
    """The activation of ``x`` and its derivative (docs/model.md#activation-functions)."""
    if KIND == "silut":
        s = _sigmoid(x)
        y = x * s
        slope = s * (1 + x * (1 - s))
        # tanh(z) = 1 - 2 / (exp(2 z) + 1)
        t = 1 - 2 / (tl.exp(2 * tl.maximum((x - THRESHOLD) * ALPHA, 0)) + 1)
        below = x < THRESHOLD
        y = tl.where(below, y, t + BETA)
        slope = tl.where(below, slope, (1 - t * t) * ALPHA)
    elif KIND == "silu":
        s = _sigmoid(x)
        y = x * s
        slope = s * (1 + x * (1 - s))
    elif KIND == "gelu":
        c: tl.constexpr = 0.79788456080286535588  # sqrt(2 / pi)
        t = 2 * _sigmoid(2 * c * (x + 0.044715 * x * x * x)) - 1
        y = 0.5 * x * (1 + t)
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    elif KIND == "tanh":
        y = 2 * _sigmoid(2 * x) - 1
        slope = 1 - y * y
    elif KIND == "sigmoid":
        y = _sigmoid(x)
        slope = y * (1 - y)
    elif KIND == "softplus":
        y = tl.maximum(x, 0) + tl.log(1 + tl.exp(-tl.abs(x)))
        slope = _sigmoid(x)
    elif KIND == "relu":
        y = tl.maximum(x, 0)
        slope = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif KIND == "relu6":
        y = tl.minimum(tl.maximum(x, 0), 6)
        slope = tl.where((x > 0) & (x < 6), 1.0, 0.0).to(x.dtype)
    else:
        tl.static_assert(KIND == "linear")
        y = x
        slope = tl.full(x.shape, 1, x.dtype)
    return y, slope


# -- loads ----------------------------------------------------------------------------------------


@triton.jit
def _load(base, rows, in_rows, columns, in_columns, STRIDE):
    """Rows of an array, ``(rows, columns)``; zero outside."""
    return tl.load(
        base + rows[:, None] * STRIDE + columns[None, :],
        mask=in_rows[:, None] & in_columns[None, :],
        other=0,
    )


@triton.jit
def _store(base, rows, in_rows, columns, in_columns, STRIDE, x):
    tl.store(
        base + rows[:, None] * STRIDE + columns[None, :],
        x,
        mask=in_rows[:, None] & in_columns[None, :],
    )


@triton.jit
def _load_vector(base, columns, in_columns):
    return tl.load(base + columns, mask=in_columns, other=0)


@triton.jit
def _add(base, at, mask, x):
    """Add to memory that no other program touches."""
    tl.store(base + at, tl.load(base + at, mask=mask, other=0) + x, mask=mask)


@triton.jit
def _add_rows(base, rows, in_rows, columns, in_columns, STRIDE, x):
    """The same for rows of an array."""
    x += _load(base, rows, in_rows, columns, in_columns, STRIDE)
    _store(base, rows, in_rows, columns, in_columns, STRIDE, x)


# -- edges ----------------------------------------------------------------------------------------


@triton.jit
def _edge_pre(
    edge,
    own,
    own_stride,
    projected,
    weight,
    i,
    j,
    r,
    in_r,
    columns,
    in_columns,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    B_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pre-activations of some columns: the centre's, the neighbour's and the edge's own part."""
    pre = _load(own, i, in_r, columns, in_columns, own_stride)
    pre += _load(projected, j, in_r, columns, in_columns, WIDTH)
    for start in range(0, E, B_DEPTH):
        depth = start + tl.arange(0, B_DEPTH)
        in_depth = depth < E
        x = _load(edge, r, in_r, depth, in_depth, E)
        w = _load(weight, depth, in_depth, columns, in_columns, WIDTH)
        pre = _product(x, w, pre, PRECISION)
    return pre


@triton.jit
def messages(
    edge_start,
    k_room,
    neighbour,
    edge,
    own,
    own_stride,
    projected,
    weight,
    message_weight,
    v3,
    E: tl.constexpr,
    MESSAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    B_DEPTH: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some columns of v3 of a centre. Grid: rows, columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * B_COLUMNS + tl.arange(0, B_COLUMNS)
    in_columns = columns < MESSAGE
    first = tl.load(edge_start + row)
    end = first + tl.load(k_room + row)
    total = tl.zeros([B_COLUMNS], v3.dtype.element_ty)
    for start in range(first, end, B_ROWS):
        r = start + tl.arange(0, B_ROWS)
        in_r = r < end
        j = tl.load(neighbour + r, mask=in_r, other=0)
        pre = _edge_pre(
            edge=edge,
            own=own,
            own_stride=own_stride,
            projected=projected,
            weight=weight,
            i=row + tl.zeros_like(r),
            j=j,
            r=r,
            in_r=in_r,
            columns=columns,
            in_columns=in_columns,
            E=E,
            WIDTH=WIDTH,
            B_DEPTH=B_DEPTH,
            PRECISION=PRECISION,
        )
        message, _ = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
        factor = tl.load(message_weight + r, mask=in_r, other=0)
        total += tl.sum(factor[:, None] * message, axis=0)
    tl.store(v3 + row * MESSAGE + columns, total, mask=in_columns)


@triton.jit
def symmetrise_sums(
    edge_start,
    k_room,
    neighbour,
    edge,
    node,
    symmetrise,
    psi,
    E: tl.constexpr,
    N: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
):
    """Some columns of Psi of a centre. Grid: rows, columns of edges and then of nodes."""
    row = tl.program_id(0).to(tl.int64)
    EDGE_TILES: tl.constexpr = (E + B_COLUMNS - 1) // B_COLUMNS
    of_edge = tl.program_id(1) < EDGE_TILES
    tile = tl.program_id(1) - tl.where(of_edge, 0, EDGE_TILES)
    columns = tile * B_COLUMNS + tl.arange(0, B_COLUMNS)
    in_columns = columns < tl.where(of_edge, E, N)
    first = tl.load(edge_start + row)
    end = first + tl.load(k_room + row)
    x0 = tl.zeros([B_COLUMNS], psi.dtype.element_ty)
    x1 = tl.zeros([B_COLUMNS], psi.dtype.element_ty)
    x2 = tl.zeros([B_COLUMNS], psi.dtype.element_ty)
    for start in range(first, end, B_ROWS):
        r = start + tl.arange(0, B_ROWS)
        in_r = r < end
        if of_edge:
            x = _load(edge, r, in_r, columns, in_columns, E)
        else:
            j = tl.load(neighbour + r, mask=in_r, other=0)
            x = _load(node, j, in_r, columns, in_columns, N)
        x0 += tl.sum(tl.load(symmetrise + 3 * r, mask=in_r, other=0)[:, None] * x, axis=0)
        x1 += tl.sum(tl.load(symmetrise + 3 * r + 1, mask=in_r, other=0)[:, None] * x, axis=0)
        x2 += tl.sum(tl.load(symmetrise + 3 * r + 2, mask=in_r, other=0)[:, None] * x, axis=0)
    out = psi + row * 3 * (E + N) + tl.where(of_edge, 0, E) + columns
    tl.store(out, x0, mask=in_columns)
    tl.store(out + (E + N), x1, mask=in_columns)
    tl.store(out + 2 * (E + N), x2, mask=in_columns)


@triton.jit
def _edge_angle_pre(
    edge,
    other,
    reduced,
    matrix,
    bias,
    r,
    in_r,
    slot,
    columns,
    in_columns,
    E: tl.constexpr,
    SMOOTH: tl.constexpr,
    B_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The argument of u2: a map of R, what the edge itself adds to it included."""
    has_angles = in_r & (slot >= 0)
    share = tl.load(other + r, mask=in_r, other=0)
    pre = tl.zeros([r.shape[0], columns.shape[0]], edge.dtype.element_ty)
    pre += _load_vector(bias, columns, in_columns)[None, :]
    for start in range(0, E, B_DEPTH):
        depth = start + tl.arange(0, B_DEPTH)
        in_depth = depth < E
        x = _load(reduced, slot, has_angles, depth, in_depth, E)
        if not SMOOTH:
            x += share[:, None] * _load(edge, r, in_r, depth, in_depth, E)
        w = _load(matrix, depth, in_depth, columns, in_columns, E)
        pre = _product(x, w, pre, PRECISION)
    return pre


@triton.jit
def update_edges(
    n_edges,
    centre,
    neighbour,
    angle_edge,
    edge,
    own,
    own_stride,
    projected,
    weight,
    rho_self,
    other,
    reduced,
    ea2,
    ea2_bias,
    rho_angle,
    new_edge,
    E: tl.constexpr,
    MESSAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    KEEP: tl.constexpr,
    ANGLES: tl.constexpr,
    SMOOTH: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    B_DEPTH: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """New edges from u1 and u2. Grid: tiles of edges, columns."""
    r = tl.program_id(0).to(tl.int64) * B_ROWS + tl.arange(0, B_ROWS)
    in_r = r < n_edges
    columns = tl.program_id(1) * B_COLUMNS + tl.arange(0, B_COLUMNS)
    in_columns = columns < E
    pre = _edge_pre(
        edge=edge,
        own=own + MESSAGE,
        own_stride=own_stride,
        projected=projected + MESSAGE,
        weight=weight + MESSAGE,
        i=tl.load(centre + r, mask=in_r, other=0),
        j=tl.load(neighbour + r, mask=in_r, other=0),
        r=r,
        in_r=in_r,
        columns=columns,
        in_columns=in_columns,
        E=E,
        WIDTH=WIDTH,
        B_DEPTH=B_DEPTH,
        PRECISION=PRECISION,
    )
    u1, _ = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
    x = KEEP * _load(edge, r, in_r, columns, in_columns, E)
    x += _load_vector(rho_self, columns, in_columns)[None, :] * u1
    if ANGLES:
        pre = _edge_angle_pre(
            edge=edge,
            other=other,
            reduced=reduced,
            matrix=ea2,
            bias=ea2_bias,
            r=r,
            in_r=in_r,
            slot=tl.load(angle_edge + r, mask=in_r, other=-1),
            columns=columns,
            in_columns=in_columns,
            E=E,
            SMOOTH=SMOOTH,
            B_DEPTH=B_DEPTH,
            PRECISION=PRECISION,
        )
        u2, _ = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
        x += _load_vector(rho_angle, columns, in_columns)[None, :] * u2
    _store(new_edge, r, in_r, columns, in_columns, E, x)


@triton.jit
def edge_angle_backward(
    n_rows,
    angle_slots,
    angle_edge,
    edge,
    other,
    reduced,
    ea2,
    ea2_bias,
    rho_angle,
    d_edge,
    d_input,
    d_other,
    d_pre,
    d_rho,
    E: tl.constexpr,
    P_E: tl.constexpr,
    SMOOTH: tl.constexpr,
    SMOOTHED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    B_DEPTH: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the new edges through u2 to its input, ``(n_edges, E)``. Grid: tiles of edges.

    In smooth models only edges with angles have a gradient there; other rows are not written.
    Where the cutoff is smoothed, the factor of the edge itself has a gradient too. For the weights,
    ``d_pre`` ``(n_rows, E)`` gets the gradient of the pre-activations and ``d_rho`` ``(tiles, E)``
    the tile's part of that of rho.
    """
    t = tl.program_id(0).to(tl.int64) * B_ROWS + tl.arange(0, B_ROWS)
    in_r = t < n_rows
    r = t
    if SMOOTH:
        r = tl.load(angle_slots + t, mask=in_r, other=0)
    slot = tl.load(angle_edge + r, mask=in_r, other=-1)
    whole = tl.arange(0, P_E)
    in_whole = whole < E
    total = tl.zeros([B_ROWS, P_E], d_input.dtype.element_ty)
    for start in range(0, E, B_COLUMNS):
        columns = start + tl.arange(0, B_COLUMNS)
        in_columns = columns < E
        pre = _edge_angle_pre(
            edge=edge,
            other=other,
            reduced=reduced,
            matrix=ea2,
            bias=ea2_bias,
            r=r,
            in_r=in_r,
            slot=slot,
            columns=columns,
            in_columns=in_columns,
            E=E,
            SMOOTH=SMOOTH,
            B_DEPTH=B_DEPTH,
            PRECISION=PRECISION,
        )
        u2, slope = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
        rho = _load_vector(rho_angle, columns, in_columns)
        d_new = _load(d_edge, r, in_r, columns, in_columns, E)
        d = rho[None, :] * d_new * slope
        if WEIGHTS:
            _store(d_pre, t, in_r, columns, in_columns, E, d)
            at = d_rho + tl.program_id(0).to(tl.int64) * E + columns
            tl.store(at, tl.sum(u2 * d_new, axis=0), mask=in_columns)
        transposed = tl.trans(_load(ea2, whole, in_whole, columns, in_columns, E))
        total = _product(d, transposed, total, PRECISION)
    if SMOOTHED and not WEIGHTS:
        _add(d_other, r, in_r, tl.sum(total * _load(edge, r, in_r, whole, in_whole, E), axis=1))
    _store(d_input, r, in_r, whole, in_whole, E, total)


@triton.jit
def edges_backward(
    job_row,
    job_start,
    edge_start,
    k_room,
    neighbour,
    angle_edge,
    edge,
    own,
    own_stride,
    projected,
    weight,
    rho_self,
    message_weight,
    symmetrise,
    other,
    d_v3,
    d_psi,
    d_input,
    d_angle_input,
    d_edge,
    d_message_weight,
    d_pre,
    d_own,
    d_rho,
    N: tl.constexpr,
    E: tl.constexpr,
    P_E: tl.constexpr,
    MESSAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEEP: tl.constexpr,
    EDGES: tl.constexpr,
    ANGLES: tl.constexpr,
    SMOOTH: tl.constexpr,
    WEIGHTS: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    B_DEPTH: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Through v3, u1 and Psi[e] to the edges of the layer's start. Grid: edge jobs.

    ``d_pre`` ``(n_edges, WIDTH)`` gets the gradient of the pre-activations and ``d_own``
    ``(jobs, WIDTH)`` its sum over the job's edges. What came through the angles is added. For the
    weights, ``d_rho`` ``(jobs, E)`` gets the job's part of the gradient of rho.
    """
    job = tl.program_id(0).to(tl.int64)
    row = tl.load(job_row + job)
    r = tl.load(job_start + job) + tl.arange(0, B_ROWS)
    in_r = r < tl.load(edge_start + row) + tl.load(k_room + row)
    i = row + tl.zeros_like(r)
    j = tl.load(neighbour + r, mask=in_r, other=0)
    whole = tl.arange(0, P_E)
    in_whole = whole < E
    total = KEEP * _load(d_edge, r, in_r, whole, in_whole, E)
    factor = tl.load(message_weight + r, mask=in_r, other=0)
    d_factor = tl.zeros([B_ROWS], d_edge.dtype.element_ty)
    for start in range(0, MESSAGE, B_COLUMNS):
        columns = start + tl.arange(0, B_COLUMNS)
        in_columns = columns < MESSAGE
        pre = _edge_pre(
            edge=edge,
            own=own,
            own_stride=own_stride,
            projected=projected,
            weight=weight,
            i=i,
            j=j,
            r=r,
            in_r=in_r,
            columns=columns,
            in_columns=in_columns,
            E=E,
            WIDTH=WIDTH,
            B_DEPTH=B_DEPTH,
            PRECISION=PRECISION,
        )
        message, slope = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
        d_message = _load_vector(d_v3 + row * MESSAGE, columns, in_columns)
        if not WEIGHTS:
            d_factor += tl.sum(message * d_message[None, :], axis=1)
        d = factor[:, None] * d_message[None, :] * slope
        _store(d_pre, r, in_r, columns, in_columns, WIDTH, d)
        tl.store(d_own + job * WIDTH + columns, tl.sum(d, axis=0), mask=in_columns)
        transposed = tl.trans(_load(weight, whole, in_whole, columns, in_columns, WIDTH))
        total = _product(d, transposed, total, PRECISION)
    if not WEIGHTS:
        _add(d_message_weight, r, in_r, d_factor)
    if EDGES:
        for start in range(0, E, B_COLUMNS):
            columns = start + tl.arange(0, B_COLUMNS)
            in_columns = columns < E
            pre = _edge_pre(
                edge=edge,
                own=own + MESSAGE,
                own_stride=own_stride,
                projected=projected + MESSAGE,
                weight=weight + MESSAGE,
                i=i,
                j=j,
                r=r,
                in_r=in_r,
                columns=columns,
                in_columns=in_columns,
                E=E,
                WIDTH=WIDTH,
                B_DEPTH=B_DEPTH,
                PRECISION=PRECISION,
            )
            u1, slope = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
            rho = _load_vector(rho_self, columns, in_columns)
            d_new = _load(d_edge, r, in_r, columns, in_columns, E)
            if WEIGHTS:
                at = d_rho + job * E + columns
                tl.store(at, tl.sum(u1 * d_new, axis=0), mask=in_columns)
            d = rho[None, :] * d_new * slope
            _store(d_pre + MESSAGE, r, in_r, columns, in_columns, WIDTH, d)
            at = d_own + job * WIDTH + MESSAGE + columns
            tl.store(at, tl.sum(d, axis=0), mask=in_columns)
            transposed = tl.trans(
                _load(weight + MESSAGE, whole, in_whole, columns, in_columns, WIDTH)
            )
            total = _product(d, transposed, total, PRECISION)
    for axis in tl.static_range(3):
        h = tl.load(symmetrise + 3 * r + axis, mask=in_r, other=0)
        d = _load_vector(d_psi + (row * 3 + axis) * (E + N), whole, in_whole)
        total += h[:, None] * d[None, :]
    if ANGLES:
        if not SMOOTH:
            share = tl.load(other + r, mask=in_r, other=0)
            total += share[:, None] * _load(d_input, r, in_r, whole, in_whole, E)
        slot = tl.load(angle_edge + r, mask=in_r, other=-1)
        has_angles = in_r & (slot >= 0)
        total += _load(d_angle_input, slot, has_angles, whole, whole < CHANNELS, CHANNELS)
    # Other threads may still have to read the gradient of the new edges.
    tl.debug_barrier()
    _store(d_edge, r, in_r, whole, in_whole, E, total)


@triton.jit
def symmetrise_sums_backward(
    job_row,
    job_start,
    edge_start,
    k_room,
    neighbour,
    edge,
    node,
    symmetrise,
    d_psi,
    d_symmetrise,
    incoming_node,
    E: tl.constexpr,
    N: tl.constexpr,
    INCOMING: tl.constexpr,
    WEIGHTS: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
):
    """From Psi to its factors and to the neighbours' nodes. Grid: edge jobs."""
    job = tl.program_id(0).to(tl.int64)
    row = tl.load(job_row + job)
    r = tl.load(job_start + job) + tl.arange(0, B_ROWS)
    in_r = r < tl.load(edge_start + row) + tl.load(k_room + row)
    j = tl.load(neighbour + r, mask=in_r, other=0)
    h0 = tl.load(symmetrise + 3 * r, mask=in_r, other=0)
    h1 = tl.load(symmetrise + 3 * r + 1, mask=in_r, other=0)
    h2 = tl.load(symmetrise + 3 * r + 2, mask=in_r, other=0)
    d_h0 = tl.zeros([B_ROWS], d_symmetrise.dtype.element_ty)
    d_h1 = tl.zeros([B_ROWS], d_symmetrise.dtype.element_ty)
    d_h2 = tl.zeros([B_ROWS], d_symmetrise.dtype.element_ty)
    of_row = d_psi + row * 3 * (E + N)
    if not WEIGHTS:
        for start in range(0, E, B_COLUMNS):
            columns = start + tl.arange(0, B_COLUMNS)
            in_columns = columns < E
            x = _load(edge, r, in_r, columns, in_columns, E)
            d0 = _load_vector(of_row, columns, in_columns)[None, :]
            d1 = _load_vector(of_row + (E + N), columns, in_columns)[None, :]
            d2 = _load_vector(of_row + 2 * (E + N), columns, in_columns)[None, :]
            d_h0 += tl.sum(x * d0, axis=1)
            d_h1 += tl.sum(x * d1, axis=1)
            d_h2 += tl.sum(x * d2, axis=1)
    for start in range(0, N, B_COLUMNS):
        columns = start + tl.arange(0, B_COLUMNS)
        in_columns = columns < N
        d0 = _load_vector(of_row + E, columns, in_columns)[None, :]
        d1 = _load_vector(of_row + E + (E + N), columns, in_columns)[None, :]
        d2 = _load_vector(of_row + E + 2 * (E + N), columns, in_columns)[None, :]
        if not WEIGHTS:
            x = _load(node, j, in_r, columns, in_columns, N)
            d_h0 += tl.sum(x * d0, axis=1)
            d_h1 += tl.sum(x * d1, axis=1)
            d_h2 += tl.sum(x * d2, axis=1)
        if INCOMING:
            d = h0[:, None] * d0 + h1[:, None] * d1 + h2[:, None] * d2
            _store(incoming_node, r, in_r, columns, in_columns, N, d)
    if not WEIGHTS:
        _add(d_symmetrise, 3 * r, in_r, d_h0)
        _add(d_symmetrise, 3 * r + 1, in_r, d_h1)
        _add(d_symmetrise, 3 * r + 2, in_r, d_h2)


# -- angles ---------------------------------------------------------------------------------------


@triton.jit
def _angle_pre(
    angle,
    own,
    both,
    weight,
    slot,
    at,
    k,
    in_k,
    columns,
    in_columns,
    A: tl.constexpr,
    P_A: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pre-activations of a receiver's angles, and the angles.

    The former are the sum of the parts of centre, receiver, edge k and angle.
    ``both`` ``(n_angle_edges, 2 WIDTH)`` are the projections of angle-edges as k and as q.
    """
    depth = tl.arange(0, P_A)
    in_depth = depth < A
    mine = _load_vector(own, columns, in_columns)
    mine += _load_vector(both + (2 * slot + 1) * WIDTH, columns, in_columns)
    pre = mine[None, :] + _load(both, k, in_k, columns, in_columns, 2 * WIDTH)
    x = _load(angle, at, in_k, depth, in_depth, A)
    w = _load(weight, depth, in_depth, columns, in_columns, WIDTH)
    return _product(x, w, pre, PRECISION), x


@triton.jit
def angle_messages(
    slot_row,
    m_room,
    angle_edge_start,
    angle_start,
    angle,
    own,
    own_stride,
    both,
    weight,
    angle_weight,
    reduced,
    E: tl.constexpr,
    A: tl.constexpr,
    P_A: tl.constexpr,
    WIDTH: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some columns of R of an angle-edge. Grid: angle-edge slots, columns."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(slot_row + slot)
    m = tl.load(m_room + row)
    first = tl.load(angle_edge_start + row)
    start = tl.load(angle_start + row) + (slot - first) * m
    columns = tl.program_id(1) * B_COLUMNS + tl.arange(0, B_COLUMNS)
    in_columns = columns < E
    total = tl.zeros([B_COLUMNS], reduced.dtype.element_ty)
    for begin in range(0, m, B_ROWS):
        k = begin + tl.arange(0, B_ROWS)
        in_k = k < m
        pre, _ = _angle_pre(
            angle=angle,
            own=own + row * own_stride,
            both=both,
            weight=weight,
            slot=slot,
            at=start + k,
            k=first + k,
            in_k=in_k,
            columns=columns,
            in_columns=in_columns,
            A=A,
            P_A=P_A,
            WIDTH=WIDTH,
            PRECISION=PRECISION,
        )
        message, _ = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
        factor = tl.load(angle_weight + start + k, mask=in_k, other=0)
        total += tl.sum(factor[:, None] * message, axis=0)
    tl.store(reduced + slot * E + columns, total, mask=in_columns)


@triton.jit
def update_angles(
    slot_row,
    m_room,
    angle_edge_start,
    angle_start,
    angle,
    own,
    own_stride,
    both,
    weight,
    rho_update,
    new_angle,
    E: tl.constexpr,
    A: tl.constexpr,
    P_A: tl.constexpr,
    WIDTH: tl.constexpr,
    KEEP: tl.constexpr,
    B_ROWS: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The new angles that an angle-edge receives. Grid: angle-edge slots."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(slot_row + slot)
    m = tl.load(m_room + row)
    first = tl.load(angle_edge_start + row)
    start = tl.load(angle_start + row) + (slot - first) * m
    columns = tl.arange(0, P_A)
    in_columns = columns < A
    rho = _load_vector(rho_update, columns, in_columns)
    for begin in range(0, m, B_ROWS):
        k = begin + tl.arange(0, B_ROWS)
        in_k = k < m
        pre, _ = _angle_pre(
            angle=angle,
            own=own + row * own_stride + E,
            both=both + E,
            weight=weight + E,
            slot=slot,
            at=start + k,
            k=first + k,
            in_k=in_k,
            columns=columns,
            in_columns=in_columns,
            A=A,
            P_A=P_A,
            WIDTH=WIDTH,
            PRECISION=PRECISION,
        )
        t, _ = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
        x = KEEP * _load(angle, start + k, in_k, columns, in_columns, A) + rho[None, :] * t
        _store(new_angle, start + k, in_k, columns, in_columns, A, x)


@triton.jit
def angles_backward(
    n_jobs,
    job_row,
    job_q,
    job_k,
    m_room,
    angle_edge_start,
    angle_start,
    angle_slots,
    angle,
    own,
    own_stride,
    both,
    weight,
    angle_weight,
    rho_update,
    d_input,
    d_angle,
    d_angle_weight,
    d_k,
    d_q,
    d_weight,
    d_rho,
    E: tl.constexpr,
    A: tl.constexpr,
    P_A: tl.constexpr,
    WIDTH: tl.constexpr,
    KEEP: tl.constexpr,
    UPDATE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    RECEIVERS: tl.constexpr,
    B_ROWS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Through R and the new angles to the angles of the layer's start.

    Grid: angle jobs; or, with ``WEIGHTS``, any number of programs, each of which does every so
    many-th job and adds to its own part of the gradients of the weights, float64: ``d_weight``
    ``(programs, A, WIDTH)`` and ``d_rho`` ``(programs, A)``.

    A job has some receivers q and a tile of other edges k of a centre. ``d_k``
    ``(jobs, B_ROWS, WIDTH)`` and ``d_q`` ``(jobs, RECEIVERS, WIDTH)`` get its part of the
    gradient of the projections.
    """
    program = tl.program_id(0).to(tl.int64)
    updated = tl.arange(0, P_A)
    in_updated = updated < A
    end = program + 1
    if WEIGHTS:
        end = n_jobs
        d_weight += program * A * WIDTH
        d_rho += program * A
    for job in range(program, end, tl.num_programs(0)):
        row = tl.load(job_row + job)
        m = tl.load(m_room + row)
        first = tl.load(angle_edge_start + row)
        start = tl.load(angle_start + row)
        q_first = tl.load(job_q + job)
        q_end = tl.minimum(q_first + RECEIVERS, m)
        tile = tl.arange(0, B_ROWS)
        k = tl.load(job_k + job) + tile
        in_k = k < m
        of_row = own + row * own_stride
        of_k = d_k + job * B_ROWS * WIDTH
        of_q = d_q + (job * RECEIVERS - q_first) * WIDTH
        if UPDATE:  # first: it needs the gradient that the messages then add to
            rho = _load_vector(rho_update, updated, in_updated)
            w = _load(weight + E, updated, in_updated, updated, in_updated, WIDTH)
            total = tl.zeros([B_ROWS, P_A], d_k.dtype.element_ty)
            d_w = tl.zeros([P_A, P_A], d_k.dtype.element_ty)
            d_r = tl.zeros([P_A], d_k.dtype.element_ty)
            for q in range(q_first, q_end):
                at = start + q * m + k
                pre, x = _angle_pre(
                    angle=angle,
                    own=of_row + E,
                    both=both + E,
                    weight=weight + E,
                    slot=first + q,
                    at=at,
                    k=first + k,
                    in_k=in_k,
                    columns=updated,
                    in_columns=in_updated,
                    A=A,
                    P_A=P_A,
                    WIDTH=WIDTH,
                    PRECISION=PRECISION,
                )
                t, slope = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
                d_target = _load(d_angle, at, in_k, updated, in_updated, A)
                d = rho[None, :] * d_target * slope
                total += d
                if WEIGHTS:
                    d_w = _product(tl.trans(x), d, d_w, PRECISION)
                    d_r += tl.sum(t * d_target, axis=0)
                tl.store(of_q + q * WIDTH + E + updated, tl.sum(d, axis=0), mask=in_updated)
                x = _product(d, tl.trans(w), KEEP * d_target, PRECISION)
                tl.debug_barrier()
                _store(d_angle, at, in_k, updated, in_updated, A, x)
            _store(of_k + E, tile, in_k, updated, in_updated, WIDTH, total)
            if WEIGHTS:
                _add_rows(d_weight + E, updated, in_updated, updated, in_updated, WIDTH, d_w)
                _add(d_rho, updated, in_updated, d_r)
        for begin in range(0, E, B_COLUMNS):
            columns = begin + tl.arange(0, B_COLUMNS)
            in_columns = columns < E
            w = _load(weight, updated, in_updated, columns, in_columns, WIDTH)
            total = tl.zeros([B_ROWS, B_COLUMNS], d_k.dtype.element_ty)
            d_w = tl.zeros([P_A, B_COLUMNS], d_k.dtype.element_ty)
            # What other threads stored for the columns and the job before must have arrived; within
            # the loop every q has memory of its own.
            tl.debug_barrier()
            for q in range(q_first, q_end):
                at = start + q * m + k
                pre, x = _angle_pre(
                    angle=angle,
                    own=of_row,
                    both=both,
                    weight=weight,
                    slot=first + q,
                    at=at,
                    k=first + k,
                    in_k=in_k,
                    columns=columns,
                    in_columns=in_columns,
                    A=A,
                    P_A=P_A,
                    WIDTH=WIDTH,
                    PRECISION=PRECISION,
                )
                message, slope = _activate(pre, KIND, THRESHOLD, ALPHA, BETA)
                edge = tl.load(angle_slots + first + q)
                d_reduced = _load_vector(d_input + edge * E, columns, in_columns)
                factor = tl.load(angle_weight + at, mask=in_k, other=0)
                d = factor[:, None] * d_reduced[None, :] * slope
                total += d
                tl.store(of_q + q * WIDTH + columns, tl.sum(d, axis=0), mask=in_columns)
                if WEIGHTS:
                    d_w = _product(tl.trans(x), d, d_w, PRECISION)
                else:
                    d_factor = tl.sum(message * d_reduced[None, :], axis=1)
                    _add(d_angle_weight, at, in_k, d_factor)
                x = _load(d_angle, at, in_k, updated, in_updated, A)
                x = _product(d, tl.trans(w), x, PRECISION)
                tl.debug_barrier()
                _store(d_angle, at, in_k, updated, in_updated, A, x)
            _store(of_k, tile, in_k, columns, in_columns, WIDTH, total)
            if WEIGHTS:
                _add_rows(d_weight, updated, in_updated, columns, in_columns, WIDTH, d_w)


# -- sums and nodes -------------------------------------------------------------------------------


@triton.jit
def sum_segments(
    segment_first,
    segment_count,
    segment_stride,
    x,
    out,
    out_stride,
    WIDTH: tl.constexpr,
    B_COLUMNS: tl.constexpr,
):
    """``out[s] = x[first] + x[first + stride] + ...``, ``count`` rows. Grid: segments, columns."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * B_COLUMNS + tl.arange(0, B_COLUMNS)
    in_columns = columns < WIDTH
    row = tl.load(segment_first + segment)
    stride = tl.load(segment_stride + segment)
    total = tl.zeros([B_COLUMNS], out.dtype.element_ty)
    for _ in range(tl.load(segment_count + segment)):
        total += _load_vector(x + row * WIDTH, columns, in_columns)
        row += stride
    tl.store(out + segment * out_stride + columns, total, mask=in_columns)


@triton.jit
def symmetrise(
    psi,
    out,
    E: tl.constexpr,
    N: tl.constexpr,
    AXIS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
):
    """3 sym of a centre: products of Psi with its leading columns. Grid: rows, edge or node."""
    row = tl.program_id(0).to(tl.int64)
    of_node = tl.program_id(1)
    columns = tl.arange(0, B_COLUMNS)
    width = tl.where(of_node == 1, N, E)
    in_columns = columns < width
    psi += row * 3 * (E + N) + of_node * E
    out += row * AXIS * (E + N) + of_node * AXIS * E
    x0 = _load_vector(psi, columns, in_columns)
    x1 = _load_vector(psi + (E + N), columns, in_columns)
    x2 = _load_vector(psi + 2 * (E + N), columns, in_columns)
    for axis in tl.static_range(AXIS):
        total = tl.load(psi + axis) * x0
        total += tl.load(psi + (E + N) + axis) * x1
        total += tl.load(psi + 2 * (E + N) + axis) * x2
        tl.store(out + axis * width + columns, total, mask=in_columns)


@triton.jit
def symmetrise_backward(
    psi,
    d_out,
    d_psi,
    E: tl.constexpr,
    N: tl.constexpr,
    AXIS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
):
    """From 3 sym to Psi. Grid: rows, edge or node."""
    row = tl.program_id(0).to(tl.int64)
    of_node = tl.program_id(1)
    columns = tl.arange(0, B_COLUMNS)
    width = tl.where(of_node == 1, N, E)
    in_columns = columns < width
    psi += row * 3 * (E + N) + of_node * E
    d_psi += row * 3 * (E + N) + of_node * E
    d_out += row * AXIS * (E + N) + of_node * AXIS * E
    for direction in tl.static_range(3):
        x = _load_vector(psi + direction * (E + N), columns, in_columns)
        total = tl.zeros([B_COLUMNS], d_psi.dtype.element_ty)
        for axis in tl.static_range(AXIS):
            d = _load_vector(d_out + axis * width, columns, in_columns)
            total += tl.load(psi + direction * (E + N) + axis) * d
            total += tl.where(columns == axis, tl.sum(x * d, axis=0), 0)
        tl.store(d_psi + direction * (E + N) + columns, total, mask=in_columns)


@triton.jit
def update_nodes(
    node,
    self_pre,
    self_stride,
    sym_pre,
    v3,
    rho,
    new_node,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    KEEP: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
):
    """New nodes from v1, v2 and v3; ``rho`` is ``(2 + CHUNKS, N)``. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, B_COLUMNS)
    in_columns = columns < N
    v1, _ = _activate(
        _load_vector(self_pre + row * self_stride, columns, in_columns),
        KIND,
        THRESHOLD,
        ALPHA,
        BETA,
    )
    v2, _ = _activate(
        _load_vector(sym_pre + row * N, columns, in_columns), KIND, THRESHOLD, ALPHA, BETA
    )
    x = KEEP * _load_vector(node + row * N, columns, in_columns)
    x += _load_vector(rho, columns, in_columns) * v1
    x += _load_vector(rho + N, columns, in_columns) * v2
    for chunk in tl.static_range(CHUNKS):
        v = _load_vector(v3 + (row * CHUNKS + chunk) * N, columns, in_columns)
        x += _load_vector(rho + (2 + chunk) * N, columns, in_columns) * v
    tl.store(new_node + row * N + columns, x, mask=in_columns)


@triton.jit
def update_nodes_backward(
    d_node,
    self_pre,
    self_stride,
    sym_pre,
    rho,
    d_self,
    d_self_stride,
    d_sym,
    d_v3,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    B_COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
):
    """From the new nodes to the arguments of v1 and v2 and to v3. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, B_COLUMNS)
    in_columns = columns < N
    d = _load_vector(d_node + row * N, columns, in_columns)
    _, slope = _activate(
        _load_vector(self_pre + row * self_stride, columns, in_columns),
        KIND,
        THRESHOLD,
        ALPHA,
        BETA,
    )
    x = _load_vector(rho, columns, in_columns) * d * slope
    tl.store(d_self + row * d_self_stride + columns, x, mask=in_columns)
    _, slope = _activate(
        _load_vector(sym_pre + row * N, columns, in_columns), KIND, THRESHOLD, ALPHA, BETA
    )
    x = _load_vector(rho + N, columns, in_columns) * d * slope
    tl.store(d_sym + row * N + columns, x, mask=in_columns)
    for chunk in tl.static_range(CHUNKS):
        x = _load_vector(rho + (2 + chunk) * N, columns, in_columns) * d
        tl.store(d_v3 + (row * CHUNKS + chunk) * N + columns, x, mask=in_columns)
