"""A repflow layer by plain tensor operations, without autograd, on the blocks of the graph.

Sums over neighbours are products with the block's weights. Temporaries live in a workspace that is
reused by all blocks, layers and evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa3sim.graph.blocks import Block, BlockGraph, sum_incoming
from dpa3sim.kernels.algebra import Algebra, TensorAlgebra
from dpa3sim.kernels.api import (
    Features,
    GraphData,
    Incoming,
    LayerGradients,
    LayerInputs,
    LayerTape,
    NodeSums,
)
from dpa3sim.kernels.gradients import LayerSums
from dpa3sim.kernels.layer import LayerPlan, LayerWeights
from dpa3sim.kernels.workspace import Workspace
from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.config import DescriptorConfig


@dataclass(frozen=True)
class BlockData:
    """What all layers need of a block: its parts of the weighting, in the shapes of their use.

    Attributes:
        block: the block.
        edge_j: ``(n_edges,)`` rows of the neighbours.
        symmetrise, d_symmetrise: ``(count, k_room, 3)``.
        message: ``(count, 1, k_room)``; d_message: ``(count, k_room)``.
        angle: ``(n_angle_edges, 1, m_room)``; d_angle: ``(n_angle_edges, m_room)``.
        other: ``(n_edges, 1)``; d_other: ``(n_edges,)``.
    """

    block: Block
    edge_j: Tensor
    symmetrise: Tensor
    d_symmetrise: Tensor
    message: Tensor
    d_message: Tensor
    angle: Tensor
    d_angle: Tensor
    other: Tensor
    d_other: Tensor


def blocks_of(data: GraphData) -> tuple[BlockData, ...]:
    """The weighting, and the gradient to be added to, split into blocks; made once."""
    if "blocks" not in data.derived:
        data.derived["blocks"] = tuple(
            _block_data(data, block) for block in data.graph.layout.blocks
        )
    blocks: tuple[BlockData, ...] = data.derived["blocks"]
    return blocks


def _block_data(data: GraphData, block: Block) -> BlockData:
    weighting, d_weighting = data.weighting, data.d_weighting
    slots, square = (block.count, block.k_room), (block.n_angle_edges, block.m_room)
    return BlockData(
        block=block,
        edge_j=data.graph.edge_j[block.edges],
        symmetrise=weighting.symmetrise[block.edges].view(*slots, 3),
        d_symmetrise=d_weighting.symmetrise[block.edges].view(*slots, 3),
        message=weighting.message[block.edges].view(block.count, 1, block.k_room),
        d_message=d_weighting.message[block.edges].view(slots),
        angle=weighting.angle[block.angles].view(block.n_angle_edges, 1, block.m_room),
        d_angle=d_weighting.angle[block.angles].view(square),
        other=weighting.other[block.edges].unsqueeze(1),
        d_other=d_weighting.other[block.edges],
    )


class TensorNodes:
    """The nodes of a layer by tensor operations.

    Args:
        config: the descriptor's options. layer: number of the layer.
        activation: the descriptor's activation.
    """

    def __init__(self, config: DescriptorConfig, layer: int, activation: ActivationKernel) -> None:
        self.plan = LayerPlan.of(config, layer)
        self._config, self._layer, self._act = config, layer, activation
        self._message_width = config.n_multi_edge_message * config.n_dim
        self.algebra: Algebra = TensorAlgebra()

    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`~dpa3sim.kernels.api.Kernel`, like the other methods."""
        self._w = LayerWeights(self._config, self.plan, weights, self._layer)
        self.node_keep = self._w.node_keep

    @property
    def weights(self) -> LayerWeights:
        return self._w

    def project(self, node: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
        w = self._w
        return torch.addmm(w.node_bias, node[:n_atoms], w.node_i), node @ w.node_j

    def project_backward(self, d_own: Tensor, d_neighbour: Tensor, d_node: Tensor) -> None:
        d_node[: len(d_own)].addmm_(d_own, self._w.node_i.t())
        d_node.addmm_(d_neighbour, self._w.node_j.t())

    def update_node(self, node: Tensor, sums: NodeSums, tape: LayerTape) -> Tensor:
        w, n = self._w, self._config.n_dim
        assert tape.own is not None
        tape.sym_pre = torch.addmm(w.sym_bias, self._symmetrise(sums.psi), w.sym)
        node = node if w.node_keep == 1 else node * w.node_keep
        for rho, pre in zip(w.node_rho, (tape.own.own, tape.sym_pre), strict=False):
            message = self._act.forward(pre, node.new_empty(pre.shape), self._act.rows(pre))
            node = torch.addcmul(node, rho, message)
        for rho, chunk in zip(w.node_rho[2:], sums.v3.split(n, dim=1), strict=True):
            node = torch.addcmul(node, rho, chunk)
        return node

    def update_node_backward(
        self, d_node: Tensor, tape: LayerTape, d_self: Tensor, weights: LayerSums | None
    ) -> NodeSums:
        w = self._w
        assert tape.own is not None
        assert tape.sym_pre is not None
        assert tape.psi is not None
        self_pre = tape.own.own
        d_v1, d_v2 = d_node * w.node_rho[0], d_node * w.node_rho[1]
        d_self.copy_(self._act.backward_(d_v1, self_pre, self._act.rows(self_pre)))
        self._act.backward_(d_v2, tape.sym_pre, self._act.rows(tape.sym_pre))
        if weights is not None:
            self.add_node_weights(d_node, d_v2, tape, weights)
        return NodeSums(
            self._symmetrise_backward(tape.psi, d_v2 @ w.sym.t()),
            torch.cat([d_node * rho for rho in w.node_rho[2:]], dim=1),
        )

    def add_node_weights(
        self, d_node: Tensor, d_sym: Tensor, tape: LayerTape, weights: LayerSums
    ) -> None:
        """Add the gradients of the weights of the update to ``weights``.

        Args:
            d_node, d_sym: ``(n_atoms, n_dim)`` gradients of the new nodes and of v2's argument.
            tape: of the layer. weights: see above.
        """
        assert tape.own is not None
        assert tape.psi is not None
        assert tape.sym_pre is not None
        assert tape.v3 is not None
        self.algebra.outer(self._symmetrise(tape.psi), d_sym, weights.sym)
        self.algebra.columns(d_sym, weights.sym_bias)
        pre = (tape.own.own, tape.sym_pre)
        messages = [self._act.forward(x, d_node.new_empty(x.shape), self._act.rows(x)) for x in pre]
        messages += tape.v3.split(self._config.n_dim, dim=1)
        for message, total in zip(messages, weights.node_rho, strict=True):
            self.algebra.columns(message * d_node, total)

    def sum_incoming(self, graph: BlockGraph, incoming: Incoming, d_node: Tensor) -> Tensor:
        d_node.add_(sum_incoming(incoming.node, graph))
        return sum_incoming(incoming.projection, graph)

    def _symmetrise(self, psi: Tensor) -> Tensor:
        """sym_i[e] and sym_i[n_j] side by side, ``(n_atoms, axis (e_dim + n_dim))``, times 3."""
        ax, e = self._config.axis_neuron, self._config.e_dim
        parts = [x[:, :, :ax].mT @ x for x in (psi[:, :, :e], psi[:, :, e:])]
        return torch.cat([x.flatten(1) for x in parts], dim=1)

    def _symmetrise_backward(self, psi: Tensor, d_sym: Tensor) -> Tensor:
        ax, e = self._config.axis_neuron, self._config.e_dim
        parts = []
        d_parts = d_sym.split([ax * e, d_sym.shape[1] - ax * e], dim=1)
        for x, d_part in zip((psi[:, :, :e], psi[:, :, e:]), d_parts, strict=True):
            d = d_part.unflatten(1, (ax, x.shape[2]))
            d_x = x[:, :, :ax] @ d
            d_x[:, :, :ax].add_(x @ d.mT)
            parts.append(d_x)
        return torch.cat(parts, dim=2)


class TensorPieces(TensorNodes):
    """The pieces of edges and angles that both forms are made of, each with its derivative.

    Args:
        config, layer, activation: see :class:`TensorNodes`.
        workspace: memory for temporaries.
    """

    def __init__(
        self,
        config: DescriptorConfig,
        layer: int,
        activation: ActivationKernel,
        workspace: Workspace,
    ) -> None:
        super().__init__(config, layer, activation)
        self._ws = workspace

    def _place(self, tape: LayerTape, data: BlockData, name: str) -> str:
        """Name of the memory for a pre-activation: its own if it is to be kept."""
        return f"{name} {self._layer} {data.block.start}" if tape.keep else name

    def _activate(self, tape: LayerTape, data: BlockData, name: str, pre: Tensor) -> Tensor:
        """Activation of ``pre``, in place unless that is to be kept."""
        rows = self._act.rows(pre)
        tape.rows[data.block.start, name] = rows
        if not tape.keep:
            return self._act.forward(pre, pre, rows)
        tape.pre[data.block.start, name] = pre
        return self._act.forward(pre, self._ws(f"{name} message", *pre.shape), rows)

    def _edge_pre(
        self,
        data: BlockData,
        edge: Tensor,
        p_i: Tensor,
        p_j: Tensor,
        weight: Tensor,
        place: str,
    ) -> Tensor:
        """``[n_i, n_j, e_ij] @ W + b``, ``(n_edges, width)``."""
        pre = self._ws(place, data.block.n_edges, weight.shape[1])
        torch.index_select(p_j, 0, data.edge_j, out=pre)
        _slots(data, pre).add_(p_i[data.block.rows].unsqueeze(1))
        return pre.addmm_(edge, weight)

    def _neighbours(self, data: BlockData, node: Tensor) -> Tensor:
        """n_j of every slot, ``(count, k_room, n_dim)``."""
        out = self._ws("neighbours", data.block.n_edges, node.shape[1])
        return _slots(data, torch.index_select(node, 0, data.edge_j, out=out))

    def _sum_edges(
        self, data: BlockData, edge: Tensor, node: Tensor, message: Tensor, sums: NodeSums
    ) -> None:
        """Psi[e], Psi[n_j] and v3 of the block's centres."""
        e, psi, factors = self._config.e_dim, sums.psi[data.block.rows], data.symmetrise.mT
        psi[:, :, :e] = factors @ _slots(data, edge)
        psi[:, :, e:] = factors @ self._neighbours(data, node)
        v3 = sums.v3[data.block.rows].unsqueeze(1)
        torch.bmm(data.message, _slots(data, message), out=v3)

    def _sum_edges_backward(
        self,
        data: BlockData,
        edge: Tensor,
        node: Tensor,
        grads: LayerGradients,
        d_edge: Tensor,
    ) -> None:
        """Through Psi."""
        d_psi, incoming = grads.sums.psi[data.block.rows], grads.incoming
        d_psi_e, d_psi_n = d_psi.split([edge.shape[1], node.shape[1]], dim=2)
        if grads.weights is None:
            data.d_symmetrise.baddbmm_(_slots(data, edge), d_psi_e.mT)
            data.d_symmetrise.baddbmm_(self._neighbours(data, node), d_psi_n.mT)
        _slots(data, d_edge).baddbmm_(data.symmetrise, d_psi_e)
        if incoming is not None:
            out = _slots(data, incoming.node[data.block.edges])
            torch.bmm(data.symmetrise, d_psi_n, out=out)

    def _message_backward(
        self,
        data: BlockData,
        pre: Tensor,
        rows: Tensor | None,
        grads: LayerGradients,
        d_pre: Tensor,
    ) -> None:
        """Through v3 to the messages; their activation is still to be differentiated."""
        d_v3 = grads.sums.v3[data.block.rows].unsqueeze(1)
        if grads.weights is None:
            out = self._ws("edge message", *pre.shape)
            message = _slots(data, self._act.forward(pre, out, rows))
            data.d_message.add_(message.mul_(d_v3).sum(dim=2))
        torch.mul(data.message.mT, d_v3, out=_slots(data, d_pre))

    def _d_edge_pre(self, data: BlockData, incoming: Incoming | None) -> Tensor:
        """Where the gradient of the edge pre-activations goes, ``(n_edges, width_edge)``."""
        if incoming is None:
            return self._ws("d edge pre", data.block.n_edges, self._w.width_edge)
        return incoming.projection[data.block.edges]

    def _add_rho(
        self, pre: Tensor, rows: Tensor | None, d_out: Tensor, weights: LayerSums, name: str
    ) -> None:
        """Add the gradient of rho, which message ``name`` is multiplied by.

        Args:
            pre: ``(rows, width)`` the message's pre-activation. rows: see ActivationKernel.
            d_out: ``(rows, width)`` gradient of what the message is added to.
            weights: of the layer.
            name: ``"u1"``, ``"u2"`` or ``"t"``.
        """
        total = {"u1": weights.edge_rho[0], "u2": weights.edge_rho[1], "t": weights.angle_rho[0]}
        message = self._act.forward(pre, self._ws(f"{name} again", *pre.shape), rows)
        self.algebra.columns(message.mul_(d_out), total[name])

    def _angle_edge_inputs(self, data: BlockData, edge: Tensor) -> Tensor:
        """What of the angle-edges enters the angle maps, ``(n_angle_edges, channels)``."""
        block, channels = data.block, self._w.angle_edge.shape[0]
        inputs = self._ws("angle edges", block.n_angle_edges, channels)
        inputs.view(block.count, block.m_room, channels).copy_(
            _slots(data, edge)[:, : block.m_room, :channels]
        )
        return inputs

    def _angle_projections(
        self, data: BlockData, edge: Tensor, p_i: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the receiver q, with the centre and the bias, and the other edge k contribute.

        Both ``(count, m_room, width_angle)``.
        """
        w, block = self._w, data.block
        inputs = self._angle_edge_inputs(data, edge)
        both = self._ws("angle projections", block.n_angle_edges, 2 * w.width_angle)
        torch.mm(inputs, w.angle_edge, out=both)
        pk, pq = both.view(block.count, block.m_room, 2, w.width_angle).unbind(2)
        return pq.add_(p_i[block.rows].unsqueeze(1)), pk

    def _angle_pre(
        self, data: BlockData, pq: Tensor, pk: Tensor, angle: Tensor, weight: Tensor, place: str
    ) -> Tensor:
        """``[a_qk, n'_i, e'_ik, e'_iq] @ W + b``, ``(n_angles, width)``, q before k."""
        pre = self._ws(place, data.block.n_angles, weight.shape[1])
        torch.add(pq.unsqueeze(2), pk.unsqueeze(1), out=_square(data, pre))
        return pre.addmm_(angle, weight)

    def _angle_projections_backward(
        self, data: BlockData, d_pre: Tensor, d_both: Tensor, d_p_i: Tensor, columns: slice
    ) -> None:
        """Gradient of some columns of both projections, and of the centre's part in them."""
        block, w = data.block, self._w
        d_k, d_q = d_both.view(block.count, block.m_room, 2, w.width_angle).unbind(2)
        torch.sum(_square(data, d_pre), dim=1, out=d_k[:, :, columns])
        torch.sum(_square(data, d_pre), dim=2, out=d_q[:, :, columns])
        torch.sum(d_q[:, :, columns], dim=1, out=d_p_i[block.rows, columns])

    def _reduce(self, data: BlockData, message: Tensor) -> Tensor:
        """R of the angle-edge slots, ``(count, m_room, e_dim)``."""
        reduced = data.angle @ message.unflatten(0, (data.block.n_angle_edges, data.block.m_room))
        return reduced.view(data.block.count, data.block.m_room, message.shape[1])

    def _edge_angle_input(self, data: BlockData, edge: Tensor, reduced: Tensor) -> Tensor:
        """R of the slots that need it, with what the edge itself adds to it.

        See docs/model.md#edge-messages and docs/model.md#smooth-cutoff. In smooth models the
        edges without angles all have the same u2, so that the input is that of the angle-edge
        slots.
        """
        if self._config.smooth_edge_update:
            return reduced.flatten(0, 1)
        out = torch.mul(edge, data.other, out=self._ws("edge angle input", *edge.shape))
        _slots(data, out)[:, : data.block.m_room].add_(reduced)
        return out

    def _add_edge_angle_message(
        self, data: BlockData, edge: Tensor, reduced: Tensor, new_edge: Tensor
    ) -> None:
        """Add rho u2 to the new edge features."""
        w, m = self._w, data.block.m_room
        inputs = self._edge_angle_input(data, edge, reduced)
        u2 = torch.addmm(w.ea2_bias, inputs, w.ea2, out=self._ws("u2", *inputs.shape))
        self._act.forward(u2, u2, self._act.rows(u2))
        if not self._config.smooth_edge_update:
            new_edge.addcmul_(w.edge_rho[1], u2)
            return
        with_angles, without = _slots(data, new_edge).split([m, data.block.k_room - m], dim=1)
        with_angles.addcmul_(w.edge_rho[1], u2.view_as(with_angles))
        constant = w.ea2_bias.unsqueeze(0).clone()
        without.addcmul_(w.edge_rho[1], self._act.forward(constant, constant))

    def _reduce_backward(
        self,
        data: BlockData,
        pre: Tensor,
        rows: Tensor | None,
        edge: Tensor,
        d_edge: Tensor,
        d_pre: Tensor,
        weights: LayerSums | None,
    ) -> Tensor | None:
        """From the new edges through u2 and R to the messages of angles.

        Fills ``d_pre``; the activation of the messages is still to be differentiated.

        Returns:
            Gradient with respect to the edge as its own R; None in smooth models.
        """
        w, block, m, e = self._w, data.block, data.block.m_room, self._config.e_dim
        message = self._act.forward(pre, self._ws("angle message", block.n_angles, e), rows)
        inputs = self._edge_angle_input(data, edge, self._reduce(data, message))
        u2_pre = torch.addmm(w.ea2_bias, inputs, w.ea2, out=self._ws("u2", *inputs.shape))
        d_u2 = self._ws("d u2", *inputs.shape)
        reach = m if self._config.smooth_edge_update else block.k_room
        target = d_u2.view(block.count, reach, e)
        torch.mul(_slots(data, d_edge)[:, :reach], w.edge_rho[1], out=target)
        self._act.backward_(d_u2, u2_pre, self._act.rows(u2_pre))
        if weights is not None:
            self._add_u2_weights(data, inputs, u2_pre, d_u2, d_edge, weights)
        d_inputs = torch.mm(d_u2, w.ea2.t(), out=self._ws("d edge angle input", *d_u2.shape))
        d_reduced = d_inputs.view(block.count, reach, e)[:, :m].reshape(block.n_angle_edges, 1, e)
        square = (block.n_angle_edges, m)
        torch.mul(data.angle.mT, d_reduced, out=d_pre.unflatten(0, square))
        if weights is None:
            data.d_angle.add_(message.unflatten(0, square).mul_(d_reduced).sum(dim=2))
        if self._config.smooth_edge_update:
            return None
        if self._config.smooth_cutoff is not None and weights is None:
            data.d_other.add_(torch.mul(edge, d_inputs, out=inputs).sum(dim=1))
        return d_inputs.mul_(data.other)

    def _add_u2_weights(
        self,
        data: BlockData,
        inputs: Tensor,
        u2_pre: Tensor,
        d_u2: Tensor,
        d_edge: Tensor,
        weights: LayerSums,
    ) -> None:
        """Add the gradients of the map to u2 and of its rho.

        Args:
            inputs, u2_pre, d_u2: argument and pre-activation of u2, and the latter's gradient,
                of the slots that :meth:`_edge_angle_input` gives.
            d_edge: ``(n_edges, e_dim)`` gradient of the new edges.
        """
        reach = inputs.shape[0] // data.block.count
        d_out, d_others = _slots(data, d_edge).split([reach, data.block.k_room - reach], dim=1)
        self.algebra.outer(inputs, d_u2, weights.ea2)
        self.algebra.columns(d_u2, weights.ea2_bias)
        self._add_rho(u2_pre, self._act.rows(u2_pre), d_out.flatten(0, 1), weights, "u2")
        # The other edges of smooth models have the u2 of the bias alone.
        constant = self._w.ea2_bias.unsqueeze(0)
        total = d_others.sum(dim=(0, 1), dtype=torch.float64)
        message = self._act.forward(constant, torch.empty_like(constant)).squeeze(0)
        slope = self._act.backward_(torch.ones_like(constant), constant).squeeze(0)
        weights.edge_rho[1].add_(message * total)
        weights.ea2_bias.add_(self._w.edge_rho[1] * slope * total)

    def _add_angle_gradients(
        self, data: BlockData, d_edge: Tensor, d_both: Tensor, d_other: Tensor | None
    ) -> None:
        """Add what reached the edges through the angle maps and as their own R."""
        block, weight = data.block, self._w.angle_edge
        if d_other is not None:
            d_edge.add_(d_other)
        d_inputs = self._ws("angle edges", block.n_angle_edges, weight.shape[0])
        torch.mm(d_both, weight.t(), out=d_inputs)
        target = _slots(data, d_edge)[:, : block.m_room, : weight.shape[0]]
        target.add_(d_inputs.view(block.count, block.m_room, weight.shape[0]))


class ParallelTensorKernel(TensorPieces):
    """The parallel form: all messages read the features of the layer's start."""

    def forward(self, x: LayerInputs, new: Features, sums: NodeSums, tape: LayerTape) -> None:
        for data in blocks_of(x.data):
            self._forward_block(data, x, new, sums, tape)

    def backward(self, x: LayerInputs, grad: LayerGradients, tape: LayerTape) -> None:
        for data in blocks_of(x.data):
            self._backward_block(data, x, grad, tape)

    def _forward_block(
        self,
        data: BlockData,
        x: LayerInputs,
        new: Features,
        sums: NodeSums,
        tape: LayerTape,
    ) -> None:
        w, block, width, e = self._w, data.block, self._message_width, self._config.e_dim
        old, own = x.features, x.own
        edge = old.edge[block.edges]
        pre = self._edge_pre(
            data, edge, own.edge, x.neighbour, w.edge, self._place(tape, data, "edge pre")
        )
        message = self._activate(tape, data, "edge", pre)
        self._sum_edges(data, edge, old.node, message[:, :width], sums)
        if not self.plan.edges:
            return
        new_edge = new.edge[block.edges]
        _combine(w.edge_keep, edge, w.edge_rho[0], message[:, width:], new_edge)
        if not self.plan.angles:
            return
        assert old.angle is not None
        assert new.angle is not None
        angle = old.angle[block.angles]
        pq, pk = self._angle_projections(data, edge, own.angle)
        pre = self._angle_pre(data, pq, pk, angle, w.angle, self._place(tape, data, "angle pre"))
        message = self._activate(tape, data, "angle", pre)
        reduced = self._reduce(data, message[:, :e])
        self._add_edge_angle_message(data, edge, reduced, new_edge)
        if self.plan.angle_self:
            new_angle = new.angle[block.angles]
            _combine(w.angle_keep, angle, w.angle_rho[0], message[:, e:], new_angle)

    def _backward_block(
        self,
        data: BlockData,
        x: LayerInputs,
        grads: LayerGradients,
        tape: LayerTape,
    ) -> None:
        w, block, width = self._w, data.block, self._message_width
        old, grad, incoming = x.features, grads.features, grads.incoming
        edge, d_edge = old.edge[block.edges], grad.edge[block.edges]
        pre = tape.pre.get((block.start, "edge"))
        if pre is None:
            pre = self._edge_pre(data, edge, x.own.edge, x.neighbour, w.edge, "edge pre")
        rows = tape.rows[block.start, "edge"]
        d_pre = self._d_edge_pre(data, incoming)
        self._message_backward(data, pre[:, :width], rows, grads, d_pre[:, :width])
        if self.plan.edges:
            torch.mul(d_edge, w.edge_rho[0], out=d_pre[:, width:])
        self._act.backward_(d_pre, pre, rows)
        if grads.weights is not None:
            self.algebra.outer(edge, d_pre, grads.weights.edge)
            if self.plan.edges:
                self._add_rho(pre[:, width:], rows, d_edge, grads.weights, "u1")
        torch.sum(_slots(data, d_pre), dim=1, out=grads.own.edge[block.rows])
        d_angle_edges = d_other = None
        if self.plan.angles:
            d_angle_edges, d_other = self._angle_backward(data, x, grads, edge, d_edge, tape)
        if self.plan.edges and w.edge_keep != 1:
            d_edge.mul_(w.edge_keep)
        d_edge.addmm_(d_pre, w.edge.t())
        if d_angle_edges is not None:
            self._add_angle_gradients(data, d_edge, d_angle_edges, d_other)
        self._sum_edges_backward(data, edge, old.node, grads, d_edge)

    def _angle_backward(
        self,
        data: BlockData,
        x: LayerInputs,
        grads: LayerGradients,
        edge: Tensor,
        d_edge: Tensor,
        tape: LayerTape,
    ) -> tuple[Tensor, Tensor | None]:
        """Through both messages of the angles; the gradient of angles replaces ``grad``'s.

        Returns:
            Gradients of the angle-edges' projections and of the edge as its own R.
        """
        old, grad = x.features, grads.features
        assert old.angle is not None
        assert grad.angle is not None
        w, block, e = self._w, data.block, self._config.e_dim
        d_angle = grad.angle[block.angles]
        pre = tape.pre.get((block.start, "angle"))
        if pre is None:
            pq, pk = self._angle_projections(data, edge, x.own.angle)
            pre = self._angle_pre(data, pq, pk, old.angle[block.angles], w.angle, "angle pre")
        rows = tape.rows[block.start, "angle"]
        d_pre = self._ws("d angle pre", block.n_angles, w.width_angle)
        d_other = self._reduce_backward(
            data, pre[:, :e], rows, edge, d_edge, d_pre[:, :e], grads.weights
        )
        if self.plan.angle_self:
            torch.mul(d_angle, w.angle_rho[0], out=d_pre[:, e:])
        self._act.backward_(d_pre, pre, rows)
        if grads.weights is not None:
            self.algebra.outer(old.angle[block.angles], d_pre, grads.weights.angle)
            if self.plan.angle_self:
                self._add_rho(pre[:, e:], rows, d_angle, grads.weights, "t")
        if self.plan.angle_self and w.angle_keep != 1:
            d_angle.mul_(w.angle_keep)
        d_angle.addmm_(d_pre, w.angle.t())
        d_both = self._ws("d projections", block.n_angle_edges, 2 * w.width_angle)
        self._angle_projections_backward(data, d_pre, d_both, grads.own.angle, slice(None))
        if grads.weights is not None:
            inputs = self._angle_edge_inputs(data, edge)
            self.algebra.outer(inputs, d_both, grads.weights.angle_edge)
        return d_both, d_other


class SequentialTensorKernel(TensorPieces):
    """The sequential form: each phase reads the newest edges and angles, nodes change last."""

    def forward(self, x: LayerInputs, new: Features, sums: NodeSums, tape: LayerTape) -> None:
        for data in blocks_of(x.data):
            self._forward_block(data, x, new, sums, tape)

    def backward(self, x: LayerInputs, grad: LayerGradients, tape: LayerTape) -> None:
        for data in blocks_of(x.data):
            self._backward_block(data, x, grad, tape)

    def _messages(self, x: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Linear maps and weight of the messages to nodes."""
        width = self._message_width
        return x.own.edge[:, :width], x.neighbour[:, :width], self._w.edge[:, :width]

    def _forward_block(
        self,
        data: BlockData,
        x: LayerInputs,
        new: Features,
        sums: NodeSums,
        tape: LayerTape,
    ) -> None:
        assert new.angle is not None
        new_edge, new_angle = new.edge[data.block.edges], new.angle[data.block.angles]
        self._update(data, x, new_edge, new_angle)
        p_i, p_j, weight = self._messages(x)
        pre = self._edge_pre(data, new_edge, p_i, p_j, weight, "v3 pre")
        message = self._act.forward(pre, pre, self._act.rows(pre))
        self._sum_edges(data, new_edge, x.features.node, message, sums)

    def _update(
        self,
        data: BlockData,
        x: LayerInputs,
        new_edge: Tensor,
        new_angle: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Phases 1 to 3 into ``new_edge`` and ``new_angle``.

        Returns:
            The edges after phase 1 and the pre-activations of u1, t and the messages of R.
        """
        old, own = x.features, x.own
        assert old.angle is not None
        w, ws, e, width = self._w, self._ws, self._config.e_dim, self._message_width
        edge, angle = old.edge[data.block.edges], old.angle[data.block.angles]
        p_i, p_j, weight = own.edge[:, width:], x.neighbour[:, width:], w.edge[:, width:]
        u1_pre = self._edge_pre(data, edge, p_i, p_j, weight, "u1 pre")
        u1 = self._act.forward(u1_pre, ws("u1", *u1_pre.shape), self._act.rows(u1_pre))
        edge1 = torch.addcmul(edge, w.edge_rho[0], u1, out=ws("edge 1", *edge.shape))
        pq, pk = self._angle_projections(data, edge1, own.angle)
        t_pre = self._angle_pre(data, pq[..., e:], pk[..., e:], angle, w.angle[:, e:], "t pre")
        t = self._act.forward(t_pre, ws("t", *t_pre.shape), self._act.rows(t_pre))
        torch.addcmul(angle, w.angle_rho[0], t, out=new_angle)
        weight = w.angle[:, :e]
        pre = self._angle_pre(data, pq[..., :e], pk[..., :e], new_angle, weight, "angle pre")
        message = self._act.forward(pre, ws("angle message", *pre.shape), self._act.rows(pre))
        new_edge.copy_(edge1)
        self._add_edge_angle_message(data, edge1, self._reduce(data, message), new_edge)
        return edge1, u1_pre, t_pre, pre

    def _backward_block(
        self,
        data: BlockData,
        x: LayerInputs,
        grads: LayerGradients,
        tape: LayerTape,
    ) -> None:
        grad, incoming, d_own = grads.features, grads.incoming, grads.own
        assert grad.angle is not None
        w, block, e, width = self._w, data.block, self._config.e_dim, self._message_width
        d_edge, d_angle = grad.edge[block.edges], grad.angle[block.angles]
        edge2, angle2 = self._ws("edge 2", *d_edge.shape), self._ws("angle 2", *d_angle.shape)
        edge1, u1_pre, t_pre, angle_pre = self._update(data, x, edge2, angle2)
        d_pre = self._d_edge_pre(data, incoming)
        d_both = self._ws("d projections", block.n_angle_edges, 2 * w.width_angle)
        # Phase 4: nodes.
        p_i, p_j, weight = self._messages(x)
        pre = self._edge_pre(data, edge2, p_i, p_j, weight, "v3 pre")
        rows = self._act.rows(pre)
        self._message_backward(data, pre, rows, grads, d_pre[:, :width])
        self._act.backward_(d_pre[:, :width], pre, rows)
        weights = grads.weights
        if weights is not None:
            self.algebra.outer(edge2, d_pre[:, :width], weights.edge[:, :width])
        d_edge.addmm_(d_pre[:, :width], weight.t())
        self._sum_edges_backward(data, edge2, x.features.node, grads, d_edge)
        # Phase 3: edges from angles.
        d_angle_pre, rows = self._ws("d angle pre", block.n_angles, e), self._act.rows(angle_pre)
        d_other = self._reduce_backward(data, angle_pre, rows, edge1, d_edge, d_angle_pre, weights)
        self._act.backward_(d_angle_pre, angle_pre, rows)
        if weights is not None:
            self.algebra.outer(angle2, d_angle_pre, weights.angle[:, :e])
        d_angle.addmm_(d_angle_pre, w.angle[:, :e].t())
        self._angle_projections_backward(data, d_angle_pre, d_both, d_own.angle, slice(0, e))
        # Phase 2: angles.
        d_t = torch.mul(d_angle, w.angle_rho[0], out=self._ws("d t", *t_pre.shape))
        rows = self._act.rows(t_pre)
        self._act.backward_(d_t, t_pre, rows)
        if weights is not None:
            angle = x.features.angle
            assert angle is not None
            self.algebra.outer(angle[block.angles], d_t, weights.angle[:, e:])
            self._add_rho(t_pre, rows, d_angle, weights, "t")
        d_angle.addmm_(d_t, w.angle[:, e:].t())
        columns = slice(e, w.width_angle)
        self._angle_projections_backward(data, d_t, d_both, d_own.angle, columns)
        if weights is not None:
            inputs = self._angle_edge_inputs(data, edge1)
            self.algebra.outer(inputs, d_both, weights.angle_edge)
        self._add_angle_gradients(data, d_edge, d_both, d_other)
        # Phase 1: edges from nodes.
        torch.mul(d_edge, w.edge_rho[0], out=d_pre[:, width:])
        rows = self._act.rows(u1_pre)
        self._act.backward_(d_pre[:, width:], u1_pre, rows)
        if weights is not None:
            old = x.features.edge[block.edges]
            self.algebra.outer(old, d_pre[:, width:], weights.edge[:, width:])
            self._add_rho(u1_pre, rows, d_edge, weights, "u1")
        d_edge.addmm_(d_pre[:, width:], w.edge[:, width:].t())
        torch.sum(_slots(data, d_pre), dim=1, out=d_own.edge[block.rows])


def _slots(data: BlockData, x: Tensor) -> Tensor:
    """Edge array of a block as ``(count, k_room, width)``."""
    return x.unflatten(0, (data.block.count, data.block.k_room))


def _square(data: BlockData, x: Tensor) -> Tensor:
    """Angle array of a block as ``(count, m_room, m_room, width)``."""
    return x.unflatten(0, (data.block.count, data.block.m_room, data.block.m_room))


def _combine(keep: float, x: Tensor, rho: Tensor, message: Tensor, out: Tensor) -> None:
    """``out = keep x + rho message``."""
    if keep == 1:
        torch.addcmul(x, rho, message, out=out)
    else:
        torch.mul(x, keep, out=out).addcmul_(rho, message)
