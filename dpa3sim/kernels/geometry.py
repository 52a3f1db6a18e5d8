"""What the layers take from docs/model.md#geometry, and its hand-written derivative."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.kernels.algebra import Algebra
from dpa3sim.kernels.api import Weighting
from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.config import DescriptorConfig
from dpa3sim.model.weights import REPFLOWS

PARALLEL_SCALE = 1 - 1e-6
DIRECTION_SHIFT = 1e-6


@dataclass(frozen=True)
class GeometryTape:
    """What the derivative needs again.

    Attributes:
        vectors: ``(n_edges, 3)``; r, switch, slope: ``(n_edges, 1)`` s^e and its derivative.
        h: ``(n_edges, 3)``; scale: ``(n_edges, 4)`` 1/std.
        embedded: ``(n_edges, 1)`` what the edges' embedding reads, r or the normalised 1/r.
        pre: ``(n_edges, e_dim)`` before the activation, if there is one.
        direction: ``(n_angle_edges, 3)``; a_switch, a_slope: ``(n_angle_edges, 1)``.
        other_slope: ``(n_angle_edges, 1)`` derivative of t, with ``smooth_cutoff``.
    """

    vectors: Tensor
    r: Tensor
    switch: Tensor
    slope: Tensor
    h: Tensor
    scale: Tensor
    embedded: Tensor
    pre: Tensor | None
    direction: Tensor
    a_switch: Tensor
    a_slope: Tensor
    other_slope: Tensor | None


class GeometryKernel:
    """Initial edge and angle features and summation weights from edge vectors, and back.

    Args:
        config: the descriptor's options.
        weights: the network's tensors by name.
        activation: the descriptor's activation.
    """

    def __init__(
        self, config: DescriptorConfig, weights: dict[str, Tensor], activation: ActivationKernel
    ) -> None:
        self._config = config
        self._activation = activation
        self._edge_matrix = weights[f"{REPFLOWS}.edge_embd.matrix"]
        self._edge_bias = weights[f"{REPFLOWS}.edge_embd.bias"]
        self._angle_matrix = weights[f"{REPFLOWS}.angle_embd.matrix"] / math.sqrt(math.pi)
        self._mean = weights[f"{REPFLOWS}.mean"]
        self._scale = 1 / weights[f"{REPFLOWS}.stddev"]

    def forward(self, graph: BlockGraph) -> tuple[Weighting, Tensor, Tensor, GeometryTape]:
        """Weights, edge features ``(n_edges, e_dim)``, angle features ``(n_angles, a_dim)``."""
        config = self._config
        v = graph.vectors.to(self._mean.dtype)
        r = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        mask = graph.edge_mask.unsqueeze(1)
        s, slope = switch_and_slope(
            r, config.e_rcut_smth, config.e_rcut, config.use_exp_switch, mask
        )
        p = r + config.env_protection
        centre_types = graph.types.index_select(0, graph.edge_i)
        mean = self._mean.index_select(0, centre_types)
        scale = self._scale.index_select(0, centre_types)
        radial = (s / p - mean[:, :1]) * scale[:, :1]
        h = (s / p**2 * v - mean[:, 1:]) * scale[:, 1:]

        pre = None
        if config.edge_init_use_dist:
            edge = torch.addmm(self._edge_bias, r, self._edge_matrix)
        else:
            pre = torch.addmm(self._edge_bias, radial, self._edge_matrix)
            edge = self._activation.forward(pre, torch.empty_like(pre))

        r_a = r.index_select(0, graph.angle_slots)
        direction = v.index_select(0, graph.angle_slots) / (r_a + DIRECTION_SHIFT)
        s_a, slope_a = switch_and_slope(
            r_a,
            config.a_rcut_smth,
            config.a_rcut,
            config.use_exp_switch,
            graph.angle_edge_mask.unsqueeze(1),
        )
        cosine = v.new_empty(graph.layout.n_angles)
        weight = v.new_empty(graph.layout.n_angles)
        for block in graph.layout.blocks:
            shape = (block.count, block.m_room)
            d = direction[block.angle_edges].view(*shape, 3)
            s_b = s_a[block.angle_edges].view(*shape, 1)
            cosine[block.angles] = (d @ d.mT).flatten()
            weight[block.angles] = (s_b * s_b.mT).flatten()
        angle = (cosine * PARALLEL_SCALE).unsqueeze(1) * self._angle_matrix
        other, other_slope = self._other(graph, r_a)
        weighting = Weighting(
            symmetrise=h * (s * config.edge_divisor**-0.5),
            message=(s / config.edge_divisor).squeeze(1),
            angle=weight.mul_(config.angle_divisor**-0.5),
            other=other,
        )
        embedded = r if pre is None else radial
        angular = direction, s_a, slope_a, other_slope
        tape = GeometryTape(v, r, s, slope, h, scale, embedded, pre, *angular)
        return weighting, edge, angle, tape

    def _other(self, graph: BlockGraph, r_a: Tensor) -> tuple[Tensor, Tensor | None]:
        """The factor ``other`` and its derivative, r_a ``(n_angle_edges, 1)`` the distances."""
        config, mask = self._config, graph.angle_edge_mask
        other = r_a.new_ones(graph.layout.n_edges)
        if config.smooth_cutoff is None:
            return other.index_copy_(0, graph.angle_slots, (~mask).to(other.dtype)), None
        start = config.a_rcut - config.smooth_cutoff
        s, slope = switch_and_slope(r_a, start, config.a_rcut, False, mask.unsqueeze(1))
        return other.index_copy_(0, graph.angle_slots, 1 - s.squeeze(1)), -slope

    def backward(
        self,
        graph: BlockGraph,
        tape: GeometryTape,
        weighting: Weighting,
        edge: Tensor,
        angle: Tensor | None,
    ) -> Tensor:
        """dE/dd ``(n_edges, 3)`` from the gradients of what :meth:`forward` returned."""
        config = self._config
        v, r, s = tape.vectors, tape.r, tape.switch
        p = r + config.env_protection
        # Psi's factors: s enters by itself and through h.
        d_sym = weighting.symmetrise * config.edge_divisor**-0.5
        d_s = weighting.message.unsqueeze(1) / config.edge_divisor
        d_s = d_s + (d_sym * tape.h).sum(dim=1, keepdim=True)
        d_env = d_sym * s * tape.scale[:, 1:]
        along = (d_env * v).sum(dim=1, keepdim=True)
        d_v = d_env * (s / p**2)
        d_s = d_s + along / p**2
        d_r = -2 * along * s / p**3
        # The initial edge features.
        if tape.pre is None:
            d_r = d_r + edge @ self._edge_matrix.t()
        else:
            d_radial = self._activation.backward_(edge, tape.pre) @ self._edge_matrix.t()
            d_radial = d_radial * tape.scale[:, :1]
            d_s = d_s + d_radial / p
            d_r = d_r - d_radial * s / p**2
        d_r = d_r + d_s * tape.slope
        d_v = d_v + d_r * v / r
        if angle is not None:
            d_v.index_add_(
                0, graph.angle_slots, self._angle_backward(graph, tape, weighting, angle)
            )
        return (d_v * graph.edge_mask.unsqueeze(1)).to(torch.float64)

    def add_weights(
        self,
        graph: BlockGraph,
        tape: GeometryTape,
        edge: Tensor,
        angle: Tensor | None,
        algebra: Algebra,
        totals: Mapping[str, Tensor],
    ) -> None:
        """Add the gradients of the embeddings' weights to ``totals``, by name.

        Args:
            graph: the batch. tape: of the forward pass.
            edge, angle: gradients of the initial features; the first may be overwritten.
            algebra: sums over edges and angles. totals: see above.
        """
        if tape.pre is not None:
            edge = self._activation.backward_(edge, tape.pre)
        algebra.outer(tape.embedded, edge, totals[f"{REPFLOWS}.edge_embd.matrix"])
        algebra.columns(edge, totals[f"{REPFLOWS}.edge_embd.bias"])
        if angle is None:
            return
        total = totals[f"{REPFLOWS}.angle_embd.matrix"]
        for block in graph.layout.blocks:
            d = tape.direction[block.angle_edges].view(block.count, block.m_room, 3)
            cosine = (d @ d.mT).view(-1, 1) * (PARALLEL_SCALE / math.sqrt(math.pi))
            algebra.outer(cosine, angle[block.angles], total)

    def _angle_backward(
        self, graph: BlockGraph, tape: GeometryTape, weighting: Weighting, angle: Tensor
    ) -> Tensor:
        """The part of dE/dd that comes through angles, ``(n_angle_edges, 3)``."""
        d_cosine = (angle @ self._angle_matrix.t()).squeeze(1) * PARALLEL_SCALE
        d_weight = weighting.angle * self._config.angle_divisor**-0.5
        d_direction = torch.empty_like(tape.direction)
        d_switch = torch.empty_like(tape.a_switch)
        for block in graph.layout.blocks:
            rows = block.angle_edges
            shape = (block.count, block.m_room)
            square = (*shape, block.m_room)
            # Cosine and weight are symmetric products, their gradients are not symmetric.
            both = d_cosine[block.angles].view(square)
            both = both + both.mT
            d_direction[rows] = (both @ tape.direction[rows].view(*shape, 3)).flatten(0, 1)
            both = d_weight[block.angles].view(square)
            both = both + both.mT
            d_switch[rows] = (both @ tape.a_switch[rows].view(*shape, 1)).flatten(0, 1)
        r = tape.r.index_select(0, graph.angle_slots)
        v = tape.vectors.index_select(0, graph.angle_slots)
        shifted = r + DIRECTION_SHIFT
        along = (d_direction * v).sum(dim=1, keepdim=True)
        d_r = d_switch * tape.a_slope - along / shifted**2
        if tape.other_slope is not None:
            d_other = weighting.other.index_select(0, graph.angle_slots).unsqueeze(1)
            d_r = d_r + d_other * tape.other_slope
        d_v = d_direction / shifted + d_r * v / r
        return d_v * graph.angle_edge_mask.unsqueeze(1)


def switch_and_slope(
    r: Tensor, start: float, end: float, exponential: bool, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Switch function (docs/model.md#switch-functions) and its derivative; 0 without ``mask``."""
    if exponential:
        rate = 20 / start
        inner = torch.exp(rate * (r.clamp(max=end) - start))
        s = torch.exp(-inner)
        slope = -rate * inner * s * (r <= end)
    else:
        u = ((r - start) / (end - start)).clamp(0.0, 1.0)
        s = u**3 * (-6 * u**2 + 15 * u - 10) + 1
        slope = -30 / (end - start) * (u * (1 - u)) ** 2
    return s * mask, slope * mask
