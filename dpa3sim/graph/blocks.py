"""Blocks: centres of similar size side by side, so that a layer is a few dense operations.

The line graph of a centre is dense: every pair of its angle-edges is an angle. Centres with the
same room for edges (``k_room``) and angle-edges (``m_room``) form a block, in which edge arrays
are ``(count, k_room, ...)`` and angle arrays ``(count, m_room, m_room, ...)``; nothing has to be
gathered to angles, and sums over neighbours are sums over an axis. Rooms that a centre does not
fill are masked. A block also bounds the temporaries of the layers (docs/methods.md#blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Groups of centres between which blocks may begin; finding the best division takes their square.
MAX_GROUPS = 96

UNLIMITED = 2**62
"""Slots of a block without a limit."""


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
        overhead: cost of another block, in units of the work for an angle.
        edge_cost: work for an edge, in the same units.
        margin: room beyond the present counts, as a fraction (for fixed capacities).
        bucket: rooms are multiples of this, so that few counts change a shape.
    """

    angles: int
    edges: int
    overhead: float
    edge_cost: float = 6.0
    margin: float = 0.0
    bucket: int = 1

    def rooms(self, counts: np.ndarray) -> np.ndarray:
        """Room for so many edges or angle-edges."""
        rooms = np.ceil(counts * (1 + self.margin)).astype(np.int64)
        return -(-rooms // self.bucket) * self.bucket


@dataclass(frozen=True)
class Layout:
    """Which centre goes to which row, and the blocks of rows.

    Attributes:
        order: ``(n_atoms,)`` atom at each row.
        blocks: the blocks, in row order; together they cover all rows.
    """

    order: np.ndarray
    blocks: tuple[Block, ...]

    @cached_property
    def centres(self) -> np.ndarray:
        """Rooms for edges and angle-edges of each row, and where its arrays begin, ``(5, n)``.

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
        """What others make of the layout, and want to keep as long as it lives."""
        return {}

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
    """Sort centres by size and cut them into blocks at the lowest cost.

    Depends on the counts alone, so that a result cannot depend on the history of the lists.

    Args:
        n_edges, n_angle_edges: ``(n_atoms,)`` counts of each centre.
        limits: see :class:`BlockLimits`.
    """
    k, m = limits.rooms(n_edges), np.minimum(limits.rooms(n_angle_edges), limits.rooms(n_edges))
    # Which of the two varies less within a block is not known beforehand.
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
    """Cheapest division of sorted centres into consecutive blocks: its cost and their sizes."""
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
    """Where runs of equal centres begin; at most :data:`MAX_GROUPS` of them, evenly chosen."""
    changes = np.flatnonzero((k[1:] != k[:-1]) | (m[1:] != m[:-1])) + 1
    every = len(changes) // MAX_GROUPS + 1
    return np.concatenate([[0], changes[every - 1 :: every]])


def _chunks(rows: np.ndarray, k_room: np.ndarray, m_room: np.ndarray, limits: BlockLimits) -> Any:
    """Into how many blocks so many centres have to be cut to respect the limits."""
    fit = np.minimum(
        limits.angles // np.maximum(m_room**2, 1), limits.edges // np.maximum(k_room, 1)
    )
    return -(-rows // np.maximum(fit, 1))


@dataclass(frozen=True)
class BlockGraph:
    """The graph of a batch in block order, on one device: what the layers run on.

    Rows are atoms in the order of the layout, then those that only others have edges to. Empty
    slots have ``edge_mask`` 0, point to their
    own centre and have a vector of length 1; nothing that they hold may reach a result.

    Attributes:
        layout: rows and blocks.
        n_structures: number of structures.
        types, structure: ``(n_nodes,)`` of each row.
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

    A segment sum over sorted rows, so that the order of additions is always the same.
    """
    total: Tensor = torch.nn.functional.embedding_bag(
        graph.incoming, x, graph.incoming_start, mode="sum"
    )
    return total
