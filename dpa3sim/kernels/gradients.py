"""Gradients with respect to weights: where kernels add them, and how they get their names.

Kernels differentiate with respect to merged weights (:class:`~dpa3sim.kernels.layer.LayerWeights`),
in float64, because the training adds large contributions of opposite sign. The merging is linear:
autograd carries the sums back to the weights that the model has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dpa3sim.kernels.layer import LayerWeights


@dataclass(frozen=True)
class LayerSums:
    """Gradients with respect to the merged weights of a layer, to be added to; float64.

    Attributes:
        by_edges: those that edges and angles add to, one after the other, as one vector:
        edge: ``(e_dim, width_edge)``; angle: ``(a_dim, width_angle)``.
        angle_edge: ``(channels, 2 width_angle)``; ea2: ``(e_dim, e_dim)``; ea2_bias: ``(e_dim,)``.
        edge_rho: ``(2, e_dim)``; angle_rho: ``(1, a_dim)``.
        node_i: ``(n_dim, n_dim + width_edge + width_angle)``; node_bias: its columns.
        node_j: ``(n_dim, width_edge)``.
        sym: ``(axis (e_dim + n_dim), n_dim)``; sym_bias: ``(n_dim,)``.
        node_rho: ``(2 + H, n_dim)``.
    """

    by_edges: Tensor
    edge: Tensor
    angle: Tensor
    angle_edge: Tensor
    ea2: Tensor
    ea2_bias: Tensor
    edge_rho: Tensor
    angle_rho: Tensor
    node_i: Tensor
    node_bias: Tensor
    node_j: Tensor
    sym: Tensor
    sym_bias: Tensor
    node_rho: Tensor

    @classmethod
    def zeros(cls, w: LayerWeights) -> LayerSums:
        """Nothing yet, for these weights."""
        like = (w.edge, w.angle, w.angle_edge, w.ea2, w.ea2_bias)
        rho = [(2, w.edge.shape[0]), (1, w.angle.shape[0])]
        shapes = [*(tuple(x.shape) for x in like), *rho]
        ends = [0, *accumulate(prod(shape) for shape in shapes)]
        flat = w.edge.new_zeros(ends[-1], dtype=torch.float64)
        parts = [
            flat[start:end].view(shape)
            for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
        ]
        nodes = [
            torch.zeros_like(x, dtype=torch.float64)
            for x in (w.node_i, w.node_bias, w.node_j, w.sym, w.sym_bias, torch.stack(w.node_rho))
        ]
        return cls(flat, *parts, *nodes)

    def pairs(self, w: LayerWeights) -> list[tuple[Tensor, Tensor]]:
        """Merged weights with their gradients, as far as the layer has them."""
        names = ["node_i", "node_bias", "node_j", "sym", "sym_bias", "edge"]
        names += ["angle", "angle_edge", "ea2", "ea2_bias"] if w.width_angle else []
        found = [(getattr(w, name), getattr(self, name)) for name in names]
        for weights, sums in (
            (w.node_rho, self.node_rho),
            (w.edge_rho, self.edge_rho),
            (w.angle_rho, self.angle_rho),
        ):
            found += list(zip(weights, sums, strict=False))
        return found


@dataclass(frozen=True)
class WeightSums:
    """Gradients with respect to all weights of a model, to be added to; float64.

    Attributes:
        layers: of each layer; None if only the fitting net is trained.
        named: of weights that are not merged with others, by name: those of the fitting net and
            of the embeddings of edges and angles.
        types: ``(ntypes, n_dim)`` with respect to the type table.
        charge_spin: ``(n_structures, n_dim)`` with respect to the embeddings of charge and spin;
            None without them.
    """

    layers: Sequence[LayerSums] | None
    named: Mapping[str, Tensor]
    types: Tensor
    charge_spin: Tensor | None


def through(
    pairs: Sequence[tuple[Tensor, Tensor]], leaves: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of the leaves that the tensors were made of.

    Args:
        pairs: tensors that autograd followed, with the gradients with respect to them.
        leaves: by name.

    Returns:
        By name; leaves that reach none of the tensors are left out.
    """
    pairs = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad]
    found = torch.autograd.grad(
        [tensor for tensor, _ in pairs],
        list(leaves.values()),
        [gradient.to(tensor.dtype) for tensor, gradient in pairs],
        allow_unused=True,
    )
    return {
        name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None
    }


def relative_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """``|a - b| / |b|`` over all weights together; asks the device."""
    return largest_difference([(found, expected)])


def largest_difference(pairs: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> float:
    """The largest ``|a - b|`` over the largest ``|b|`` of several gradients; asks the device.

    Gradients that vanish, but for rounding, therefore do not count.
    """
    difference = size = 0.0
    for found, expected in pairs:
        squares = [0.0, 0.0]
        for name, gradient in expected.items():
            squares[0] += float((found[name] - gradient).square().sum())
            squares[1] += float(gradient.square().sum())
        difference, size = max(difference, squares[0]), max(size, squares[1])
    return (difference / size) ** 0.5 if size else 0.0
