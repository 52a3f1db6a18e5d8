"""Blocks of centres of similar size, so that a layer consists of a few dense operations.

The line graph of a centre is dense: every pair of its angle-edges is an angle. Centres with the
same room for edges (``k_room``) and angle-edges (``m_room``) form a block, in which edge arrays
are ``(count, k_room, ...)`` and angle arrays ``(count, m_room, m_room, ...)``; nothing has to be
gathered to angles, and sums over neighbours are sums over an axis. Empty slots are masked. A block
also bounds the temporary arrays of the layers (docs/methods.md#blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Groups of centres at which blocks may begin; the search for the best division is quadratic.
MAX_GROUPS = 96

UNLIMITED = 2**62
"""Slots of a block without a limit."""


@dataclass(frozen=True)
class Block:
    """A range of centres with the same room, and the positions of their arrays.

    Attributes:
        start, count: the centres of the block are rows ``start`` to ``start + count``.
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
        """Number of slots for edges."""
        return self.count * self.k_room

    @property
    def n_angle_edges(self) -> int:
        """Number of slots for angle-edges."""
        return self.count * self.m_room

    @property
    def n_angles(self) -> int:
        """Number of slots for angles."""
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
    """How centres are divided into blocks.

    Attributes:
        angles, edges: largest number of slots in a block with more than one centre.
        overhead: cost of an additional block, in units of the work for an angle.
        edge_cost: work for an edge, in the same units.
        margin: room beyond the present counts, as a fraction (for fixed capacities).
        bucket: rooms are multiples of this, so that shapes change rarely.
    """

    angles: int
    edges: int
    overhead: float
    edge_cost: float = 6.0
    margin: float = 0.0
    bucket: int = 1

    def rooms(self, counts: np.ndarray) -> np.ndarray:
        """The rooms for these numbers of edges or angle-edges."""
        rooms = np.ceil(counts * (1 + self.margin)).astype(np.int64)
        return -(-rooms // self.bucket) * self.bucket


@dataclass(frozen=True)
class Layout:
    """The order of the centres, and the blocks of rows.

    Attributes:
        order: ``(n_atoms,)`` atom at each row.
        blocks: the blocks, in row order; together they cover all rows.
    """

    order: np.ndarray
    blocks: tuple[Block, ...]

    @cached_property
    def centres(self) -> np.ndarray:
        """Rooms for edges and angle-edges of each row, and the positions of its arrays, ``(5, n)``.

        The last three rows are the first edge, angle-edge and angle.
        """
        columns = []
        for b in self.blocks:
            within = np.arange(b.count)
            columns.append(
                np.stack(
                    [
                        np.full(b.count, b.k_room),
                        np.full(b.count, b.m_room),
                        b.edge_start + within * b.k_room,
                        b.angle_edge_start + within * b.m_room,
                        b.angle_start + within * b.m_room**2,
                    ]
                )
            )
        return np.ascontiguousarray(np.concatenate(columns, axis=1))

    @cached_property
    def derived(self) -> dict[str, Any]:
        """Data that other modules derive from the layout and keep during its lifetime."""
        return {}

    @property
    def n_edges(self) -> int:
        """Number of edge slots of all blocks."""
        return self.blocks[-1].edges.stop

    @property
    def n_angle_edges(self) -> int:
        """Number of angle-edge slots of all blocks."""
        return self.blocks[-1].angle_edges.stop

    @property
    def n_angles(self) -> int:
        """Number of angle slots of all blocks."""
        return self.blocks[-1].angles.stop


def make_layout(n_edges: np.ndarray, n_angle_edges: np.ndarray, limits: BlockLimits) -> Layout:
    """Sort centres by size and divide them into blocks at the lowest cost.

    The layout depends on the counts alone, so that results do not depend on earlier lists.

    Args:
        n_edges, n_angle_edges: ``(n_atoms,)`` counts of each centre.
        limits: see :class:`BlockLimits`.
    """
    k, m = limits.rooms(n_edges), np.minimum(limits.rooms(n_angle_edges), limits.rooms(n_edges))
    # It is not known beforehand which of the two varies less within a block.
    plans = [(*_partition(k[order], m[order], limits), order) for order in _orders(k, m)]
    _, sizes, order = min(plans, key=lambda plan: plan[0])

    blocks, start, edge, angle_edge, angle = [], 0, 0, 0, 0
    for count in sizes:
        rows = order[start : start + count]
        k_room, m_room = int(k[rows].max()), int(m[rows].max())
        block = Block(start, count, k_room, m_room, edge, angle_edge, angle)
        blocks.append(block)
        start, edge = start + count, block.edges.stop
        angle_edge, angle = block.angle_edges.stop, block.angles.stop
    return Layout(order, tuple(blocks))


def _orders(k: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, ...]:
    if (k == k[0]).all() or (m == m[0]).all():
        return (np.lexsort((-k, -m)),)
    return np.lexsort((-k, -m)), np.lexsort((-m, -k))


def _partition(k: np.ndarray, m: np.ndarray, limits: BlockLimits) -> tuple[float, list[int]]:
    """The cheapest division of sorted centres into consecutive blocks: cost and sizes."""
    starts = _group_starts(k, m)
    ends = np.append(starts[1:], len(k))
    group_k = np.maximum.reduceat(k, starts)
    group_m = np.maximum.reduceat(m, starts)
    n_groups = len(starts)
    best = np.full(n_groups + 1, np.inf)
    best[0] = 0.0
    previous = np.zeros(n_groups + 1, dtype=np.int64)
    for first in range(n_groups):
        rows = ends[first:] - starts[first]
        k_room = np.maximum.accumulate(group_k[first:])
        m_room = np.maximum.accumulate(group_m[first:])
        room = rows * (m_room**2 + limits.edge_cost * k_room)
        cost = best[first] + room + limits.overhead * _chunks(rows, k_room, m_room, limits)
        better = cost < best[first + 1 :]
        best[first + 1 :][better] = cost[better]
        previous[first + 1 :][better] = first

    segments, last = [], n_groups
    while last > 0:
        segments.append((starts[previous[last]], ends[last - 1]))
        last = int(previous[last])
    sizes = []
    for start, end in reversed(segments):
        rows = end - start
        n_chunks = int(_chunks(rows, k[start:end].max(), m[start:end].max(), limits))
        bounds = [rows * c // n_chunks for c in range(n_chunks + 1)]
        sizes += [int(b - a) for a, b in pairwise(bounds)]
    return float(best[-1]), sizes


def _group_starts(k: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Starts of runs of equal centres; at most :data:`MAX_GROUPS`, evenly chosen."""
    changes = np.flatnonzero((k[1:] != k[:-1]) | (m[1:] != m[:-1])) + 1
    every = len(changes) // MAX_GROUPS + 1
    return np.concatenate([[0], changes[every - 1 :: every]])


def _chunks(rows: np.ndarray, k_room: np.ndarray, m_room: np.ndarray, limits: BlockLimits) -> Any:
    """The number of blocks that the limits require for so many centres."""
    fit = np.minimum(
        limits.angles // np.maximum(m_room**2, 1), limits.edges // np.maximum(k_room, 1)
    )
    return -(-rows // np.maximum(fit, 1))


@dataclass(frozen=True)
class BlockGraph:
    """The graph of a batch in block order, on one device: the input of the layers.

    Rows are atoms in the order of the layout, then those that only others have edges to. Empty
    slots have ``edge_mask`` 0, point to their own centre and have a vector of length 1; their
    content must not affect any result.

    Attributes:
        layout: rows and blocks.
        n_structures: number of structures.
        types, structure: ``(n_nodes,)`` type and structure of each row.
        edge_i, edge_j: ``(n_edges,)`` row of the centre and of the neighbour.
        vectors: ``(n_edges, 3)`` float64, Å.
        edge_mask: ``(n_edges,)`` bool, False in empty slots.
        angle_slots: ``(n_angle_edges,)`` edge slot of each angle-edge slot.
        angle_edge_mask: ``(n_angle_edges,)`` bool: the slot holds an angle-edge.
        incoming: ``(n_edges,)`` edge slots sorted by neighbour; those of row j begin at
            ``incoming_start[j]``, ``(n_nodes,)``.
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
        """Centres: atoms that have edges and an energy here."""
        return len(self.layout.order)

    @property
    def n_nodes(self) -> int:
        """Rows: the centres, and after them atoms that only others have edges to, if any."""
        return self.types.shape[0]


def sum_incoming(x: Tensor, graph: BlockGraph) -> Tensor:
    """Sum ``x`` ``(n_edges, width)`` over the edges that point to each row.

    This is a segment sum over sorted rows, so that the order of additions is always the same.
    """
    total: Tensor = torch.nn.functional.embedding_bag(
        graph.incoming, x, graph.incoming_start, mode="sum"
    )
    return total


def forces_and_virials(gradient: Tensor, graph: BlockGraph) -> tuple[Tensor, Tensor]:
    """Forces ``(n_nodes, 3)``, eV/Å, and the atoms' virials ``(n_atoms, 3, 3)``, eV.

    The virial W = -dE/dstrain of a structure is the sum of those of its atoms, one for the edges
    of each (docs/model.md#energy-forces-and-virial). The force on a node that is no centre is the
    part of it that comes from these edges.

    Args:
        gradient: ``(n_edges, 3)`` dE/dd, eV/Å. graph: the batch.
    """
    forces = sum_incoming(gradient, graph).neg_()
    virials = gradient.new_empty((graph.n_atoms, 3, 3))
    for block in graph.layout.blocks:
        slots = (block.count, block.k_room, 3)
        g, d = gradient[block.edges].view(slots), graph.vectors[block.edges].view(slots)
        forces[block.rows] += g.sum(dim=1)
        virials[block.rows] = g.mT @ d
    return forces, virials.neg_()
