"""The course of a repflow layer, forward and backward, whatever computes it.

docs/model.md#the-repflow-layer by hand, without autograd. Against ``network.py``:

- linear maps of one input are one matrix product, and those of nodes and edges are made once
  and broadcast within a centre's block, never repeated per angle;
- sums over the edges that point to an atom are segment sums over sorted rows: the order of
  additions never changes;
- nothing is computed that cannot reach the energy (:class:`LayerPlan`);
- the backward pass computes pre-activations again from the features, unless they were kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa3sim.kernels.api import (
    Features,
    GraphData,
    Incoming,
    Kernel,
    LayerGradients,
    LayerInputs,
    LayerTape,
    NodeSums,
    Projections,
)
from dpa3sim.kernels.gradients import LayerSums
from dpa3sim.kernels.workspace import Workspace
from dpa3sim.model.config import DescriptorConfig
from dpa3sim.model.weights import REPFLOWS


@dataclass(frozen=True)
class LayerPlan:
    """What of a layer can reach the energy (docs/model.md#what-reaches-the-energy).

    In the parallel form the last layer changes nodes only, and the layer before it need not
    update angles, because no later layer reads them.
    """

    edges: bool
    angles: bool
    angle_self: bool

    @classmethod
    def of(cls, config: DescriptorConfig, layer: int) -> LayerPlan:
        """The plan of layer number ``layer``."""
        left = config.nlayers - 1 - layer
        sequential = config.sequential_update
        edges = sequential or left > 0
        angles = config.update_angle and edges
        return cls(edges, angles, angles and (sequential or left > 1))


class LayerWeights:
    """The weights of one layer, merged by input and split by reader.

    Everything that any kernel needs, as views or copies of the model's weights.

    Column order: nodes ``[self | ne, es | ea1, as]``, edges ``[ne, es]``, angles ``[ea1, as]``,
    as far as the plan needs them.
    """

    def __init__(
        self, config: DescriptorConfig, plan: LayerPlan, weights: Mapping[str, Tensor], layer: int
    ) -> None:
        name = f"{REPFLOWS}.layers.{layer}"
        n, e, a = config.n_dim, config.e_dim, config.a_dim

        def linear(part: str) -> tuple[Tensor, Tensor]:
            return weights[f"{name}.{part}.matrix"], weights[f"{name}.{part}.bias"]

        w_self, b_self = linear("node_self_mlp")
        w_sym, self.sym_bias = linear("node_sym_linear")
        self.sym = w_sym / 3
        edge_maps = [linear("node_edge_linear")]
        if plan.edges:
            edge_maps.append(linear("edge_self_linear"))
        w_i, w_j, w_e = torch.cat([m for m, _ in edge_maps], dim=1).split([n, n, e])
        self.node_j, self.edge = w_j.contiguous(), w_e.contiguous()
        node_i, bias = [w_self, w_i], [b_self, *(b for _, b in edge_maps)]
        none = w_self.new_zeros((0, 0))
        self.angle = self.angle_edge = self.ea2 = none
        self.ea2_bias = none.flatten()
        self.edge_rho: list[Tensor] = []
        self.angle_rho: list[Tensor] = []
        if plan.angles:
            angle_maps = [linear("edge_angle_linear1")]
            if plan.angle_self:
                angle_maps.append(linear("angle_self_linear"))
            merged = torch.cat([m for m, _ in angle_maps], dim=1)
            w_a, w_n, w_k, w_q = merged.split(
                [a, config.node_angle_dim, config.edge_angle_dim, config.edge_angle_dim]
            )
            self.angle = w_a.contiguous()
            w_n, w_kq = self._compress(config, weights, name, w_n, torch.cat([w_k, w_q], dim=1))
            self.angle_edge = w_kq
            node_i.append(w_n)
            bias += [b for _, b in angle_maps]
            self.ea2, self.ea2_bias = linear("edge_angle_linear2")
        self.node_i, self.node_bias = torch.cat(node_i, dim=1), torch.cat(bias)
        self.width_edge, self.width_angle = self.edge.shape[1], self.angle.shape[1]
        chunks = config.n_multi_edge_message
        self.node_keep, self.node_rho = _residual(config, weights, f"{name}.n_residual", 2 + chunks)
        edge_messages = 2 if config.update_angle else 1
        if plan.edges:
            self.edge_keep, self.edge_rho = _residual(
                config, weights, f"{name}.e_residual", edge_messages
            )
        if plan.angle_self:
            self.angle_keep, self.angle_rho = _residual(config, weights, f"{name}.a_residual", 1)

    @staticmethod
    def _compress(
        config: DescriptorConfig,
        weights: Mapping[str, Tensor],
        name: str,
        w_n: Tensor,
        w_kq: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Maps from whole nodes and from the leading edge channels, compression included."""
        if config.a_compress_rate and config.a_compress_use_split:
            padding = w_n.new_zeros((config.n_dim - w_n.shape[0], w_n.shape[1]))
            return torch.cat([w_n, padding]), w_kq
        if config.a_compress_rate:
            return (
                weights[f"{name}.a_compress_n_linear.matrix"] @ w_n,
                weights[f"{name}.a_compress_e_linear.matrix"] @ w_kq,
            )
        return w_n, w_kq


def _residual(
    config: DescriptorConfig, weights: Mapping[str, Tensor], name: str, n_messages: int
) -> tuple[float, list[Tensor]]:
    """``x_new = keep x + sum rho_q m_q`` for every update style."""
    if config.update_style == "res_residual":
        return 1.0, [weights[f"{name}.{q}"] for q in range(n_messages)]
    width = {"n": config.n_dim, "e": config.e_dim, "a": config.a_dim}[name.rpartition(".")[2][0]]
    average = config.update_style == "res_avg"
    rho = (n_messages + average) ** -0.5
    like = next(iter(weights.values()))
    vector = torch.full(
        (width,), rho, dtype=weights[f"{REPFLOWS}.edge_embd.matrix"].dtype, device=like.device
    )
    return rho if average else 1.0, [vector] * n_messages


class Layer:
    """One layer: a kernel, and what is the same for all of them.

    Args:
        config: the descriptor's options.
        layer: its number.
        kernel: computes it.
        workspace: memory for features and gradients.
    """

    def __init__(
        self, config: DescriptorConfig, layer: int, kernel: Kernel, workspace: Workspace
    ) -> None:
        self.plan = LayerPlan.of(config, layer)
        self.kernel = kernel
        self._config, self._ws = config, workspace
        self._is_first = layer == 0
        self._message_width = config.n_multi_edge_message * config.n_dim

    def forward(self, data: GraphData, features: Features, tape: LayerTape) -> Features:
        """New features, those of nodes for the centres only.

        What the backward pass needs goes to ``tape``; new edges and angles are in the workspace
        under its place.
        """
        n_atoms, n = data.graph.n_atoms, self._config.n_dim
        node, edge, angle = features
        own, neighbour = self.kernel.project(node, n_atoms)
        x = LayerInputs(data, features, self._split(own, neighbour.shape[1]), neighbour)
        sums = NodeSums(
            node.new_empty((n_atoms, 3, self._config.e_dim + n)),
            node.new_empty((n_atoms, self._message_width)),
        )
        if self.plan.edges:
            edge = self._ws(f"edge {tape.place}", *edge.shape)
        if self.plan.angle_self:
            assert angle is not None
            angle = self._ws(f"angle {tape.place}", *angle.shape)
        self.kernel.forward(x, Features(node, edge, angle), sums, tape)
        tape.psi, tape.v3 = sums.psi, sums.v3
        tape.own, tape.neighbour = x.own, x.neighbour
        return Features(self.kernel.update_node(node[:n_atoms], sums, tape), edge, angle)

    def backward(
        self,
        data: GraphData,
        features: Features,
        grad: Features,
        tape: LayerTape,
        weights: LayerSums | None = None,
    ) -> Features:
        """Gradient with respect to ``features``; that of edges and angles replaces ``grad``'s.

        With ``weights``, their gradients are added to them; else that of the weighting is added to
        ``data``, and that of the nodes of the first layer, which are constants, is not computed.
        """
        assert tape.own is not None
        assert tape.neighbour is not None
        graph, node = data.graph, features.node
        x = LayerInputs(data, features, tape.own, tape.neighbour)
        d_projections = node.new_empty((graph.n_atoms, sum(p.shape[1] for p in x.own)))
        d_own = self._split(d_projections, x.neighbour.shape[1])
        d_sums = self.kernel.update_node_backward(grad.node, tape, d_own.own, weights)
        if grad.angle is None and self.plan.angles:
            assert features.angle is not None
            grad = grad._replace(angle=self._ws("d angle", *features.angle.shape).zero_())
        incoming = None
        if not self._is_first or weights is not None:
            n_edges = graph.layout.n_edges
            incoming = Incoming(
                self._ws("incoming projection", n_edges, x.neighbour.shape[1]),
                self._ws("incoming node", n_edges, node.shape[1]),
            )
        self.kernel.backward(x, LayerGradients(grad, d_sums, d_own, incoming, weights), tape)
        d_node = grad.node
        if incoming is not None:
            if self.kernel.node_keep != 1:
                d_node.mul_(self.kernel.node_keep)
            if graph.n_nodes > graph.n_atoms:
                others = d_node.new_zeros((graph.n_nodes - graph.n_atoms, d_node.shape[1]))
                d_node = torch.cat([d_node, others])
            d_neighbour = self.kernel.sum_incoming(graph, incoming, d_node)
            if weights is not None:
                algebra = self.kernel.algebra
                algebra.outer(node[: graph.n_atoms], d_projections, weights.node_i)
                algebra.columns(d_projections, weights.node_bias)
                algebra.outer(node, d_neighbour, weights.node_j)
            self.kernel.project_backward(d_projections, d_neighbour, d_node)
        return Features(d_node, grad.edge, grad.angle)

    def _split(self, projections: Tensor, width_edge: int) -> Projections:
        n = self._config.n_dim
        parts = [n, width_edge, projections.shape[1] - n - width_edge]
        return Projections(*projections.split(parts, dim=1))
