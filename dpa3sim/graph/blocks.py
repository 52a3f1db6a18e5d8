"""Blocks: centres of similar size side by side, so that a layer is a few dense operations.

The line graph of a centre is dense: every pair of its angle-edges is an angle. Centres with the
same room for edges (``k_room``) and angle-edges (``m_room``) form a block, in which edge arrays
are ``(count, k_room, ...)`` and angle arrays ``(count, m_room, m_room, ...)``; nothing has to be
gathered to angles, and sums over neighbours are sums over an axis. Rooms that a centre does not
fill are masked. A block also bounds the temporaries of the layers (spec/engine.md 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """A range of centres that have the same room, and where their arrays begin.

    Attributes:
        start, count: the block's centres are rows ``start`` to ``start + count``.
        k_room, m_room: slots for edges and for angle-edges of a centre.
        edge_start, angle_edge_start, angle_start: first row in the flat arrays.
    """

    start: int
    count: int
    k_room: int
    m_room: int
    edge_start: int
    angle_edge_start: int
    angle_start: int

    @property
    def rows(self) -> slice:
        """The block's centres in arrays over atoms."""
        return slice(self.start, self.start + self.count)

    @property
    def n_edges(self) -> int:
        """Slots for edges."""
        return self.count * self.k_room

    @property
    def n_angle_edges(self) -> int:
        """Slots for angle-edges."""
        return self.count * self.m_room

    @property
    def n_angles(self) -> int:
        """Slots for angles."""
        return self.count * self.m_room**2

    @property
    def edges(self) -> slice:
        """The block's part of arrays over edge slots."""
        return slice(self.edge_start, self.edge_start + self.n_edges)

    @property
    def angle_edges(self) -> slice:
        """The block's part of arrays over angle-edge slots."""
        return slice(self.angle_edge_start, self.angle_edge_start + self.n_angle_edges)

    @property
    def angles(self) -> slice:
        """The block's part of arrays over angle slots."""
        return slice(self.angle_start, self.angle_start + self.n_angles)


@dataclass(frozen=True)
class BlockLimits:
    """How centres are put into blocks.

    Attributes:
        angles, edges: at most this many slots in a block, if it has more than one centre.
        waste: empty room (in angles) that is worth less than the overhead of another block.
        waste_fraction: the same as a fraction of the room.
        edge_cost: work for an edge in units of the work for an angle.
        margin: room beyond the present counts, as a fraction (for fixed capacities).
    """

    angles: int
    edges: int
    waste: float
    waste_fraction: float = 0.0
    edge_cost: float = 8.0
    margin: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Which centre goes to which row, and the blocks of rows.

    Attributes:
        order: ``(n_atoms,)`` atom at each row.
        blocks: the blocks, in row order; together they cover all rows.
    """

    order: np.ndarray
    blocks: tuple[Block, ...]

    @property
    def n_edges(self) -> int:
        """Edge slots of all blocks."""
        return self.blocks[-1].edges.stop

    @property
    def n_angle_edges(self) -> int:
        """Angle-edge slots of all blocks."""
        return self.blocks[-1].angle_edges.stop

    @property
    def n_angles(self) -> int:
        """Angle slots of all blocks."""
        return self.blocks[-1].angles.stop


def make_layout(n_edges: np.ndarray, n_angle_edges: np.ndarray, limits: BlockLimits) -> Layout:
    """Sort centres by size and cut them into blocks.

    Depends on the counts alone, so that a result cannot depend on the history of the lists.

    Args:
        n_edges, n_angle_edges: ``(n_atoms,)`` counts of each centre.
        limits: see :class:`BlockLimits`.
    """
    order = np.lexsort((-n_edges, -n_angle_edges))
    k_all = np.ceil(n_edges[order] * (1 + limits.margin)).astype(int)
    m_all = np.ceil(n_angle_edges[order] * (1 + limits.margin)).astype(int)
    bounds: list[tuple[int, int, int]] = []  # count, k_room, m_room
    count = k_room = m_room = filled_k = filled_m = 0
    for k, m in zip(k_all.tolist(), m_all.tolist(), strict=True):
        new_k = max(k_room, k)
        new_m = m_room if count else m
        room = (count + 1) * (new_m**2 + limits.edge_cost * new_k)
        empty = room - (filled_m + m**2) - limits.edge_cost * (filled_k + k)
        too_large = (count + 1) * new_m**2 > limits.angles or (count + 1) * new_k > limits.edges
        too_empty = empty > max(limits.waste, limits.waste_fraction * room)
        if count and (too_large or too_empty):
            bounds.append((count, k_room, m_room))
            count = filled_k = filled_m = 0
            new_k, new_m = k, m
        count, k_room, m_room = count + 1, new_k, new_m
        filled_k, filled_m = filled_k + k, filled_m + m**2
    bounds.append((count, k_room, m_room))

    blocks, start, edge, angle_edge, angle = [], 0, 0, 0, 0
    for count, k_room, m_room in bounds:
        block = Block(start, count, k_room, m_room, edge, angle_edge, angle)
        blocks.append(block)
        start, edge = start + count, block.edges.stop
        angle_edge, angle = block.angle_edges.stop, block.angles.stop
    return Layout(order, tuple(blocks))


@dataclass(frozen=True)
class BlockGraph:
    """The graph of a batch in block order, on one device: what the layers run on.

    Rows are atoms in the order of the layout. Empty slots have ``edge_mask`` 0, point to their
    own centre and have a vector of length 1; nothing that they hold may reach a result.

    Attributes:
        layout: rows and blocks.
        n_structures: number of structures.
        types, structure: ``(n_atoms,)`` of each row.
        edge_i, edge_j: ``(n_edges,)`` row of the centre and of the neighbour.
        vectors: ``(n_edges, 3)`` float64, Å.
        edge_mask: ``(n_edges,)`` bool, False in empty slots.
        angle_slots: ``(n_angle_edges,)`` edge slot of each angle-edge slot.
        angle_edge_mask: ``(n_angle_edges,)`` bool: the slot holds an angle-edge.
        incoming: ``(n_edges,)`` edge slots sorted by neighbour; those of row j begin at
            ``incoming_start[j]``, ``(n_atoms,)``.
        fparam: ``(n_structures, numb_fparam)``; aparam: ``(n_atoms, numb_aparam)``; float64.
        charge_spin: ``(n_structures, 2)`` int64 or None.
    """

    layout: Layout
    n_structures: int
    types: Tensor
    structure: Tensor
    edge_i: Tensor
    edge_j: Tensor
    vectors: Tensor
    edge_mask: Tensor
    angle_slots: Tensor
    angle_edge_mask: Tensor
    incoming: Tensor
    incoming_start: Tensor
    fparam: Tensor
    aparam: Tensor
    charge_spin: Tensor | None

    @property
    def n_atoms(self) -> int:
        """Rows."""
        return self.types.shape[0]


def sum_incoming(x: Tensor, graph: BlockGraph) -> Tensor:
    """Sum ``x`` ``(n_edges, width)`` over the edges that point to each row.

    A segment sum over sorted rows, so that the order of additions is always the same.
    """
    total: Tensor = torch.nn.functional.embedding_bag(
        graph.incoming, x, graph.incoming_start, mode="sum"
    )
    return total
