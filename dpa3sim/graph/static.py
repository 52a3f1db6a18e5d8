"""The graph of structures that do not move, in blocks: what training evaluates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph, BlockLimits, make_layout
from dpa3sim.graph.edges import Edges
from dpa3sim.structures.system import System, model_inputs


def block_graph(
    systems: Sequence[System],
    edges: Sequence[Edges],
    limits: BlockLimits,
    with_angles: bool,
    device: torch.device,
) -> BlockGraph:
    """Blocks of structures side by side, from their edges.

    Args:
        systems: structures with the inputs of a model; edges: of each.
        limits: how centres are divided into blocks.
        with_angles: whether the model has angles.
        device: where the graph goes.
    """
    sizes = np.array([len(system) for system in systems])
    offsets = np.cumsum(sizes) - sizes
    n_atoms = int(sizes.sum())
    centre = np.concatenate([g.i + o for g, o in zip(edges, offsets, strict=True)])
    neighbour = np.concatenate([g.j + o for g, o in zip(edges, offsets, strict=True)])
    vectors = np.concatenate(
        [g.vectors(x.positions, x.cell) for x, g in zip(systems, edges, strict=True)]
    )
    n_edges = np.bincount(centre, minlength=n_atoms)
    n_angle_edges = np.concatenate([g.n_angle_edges for g in edges])
    if not with_angles:
        n_angle_edges = np.zeros_like(n_angle_edges)
    layout = make_layout(n_edges, n_angle_edges, limits)
    row_of = np.empty(n_atoms, dtype=np.int64)
    row_of[layout.order] = np.arange(n_atoms)
    k_room, m_room, edge_start, *_ = layout.centres

    # Slots: the edges of a centre in their order, which has the angle-edges first, then empty ones.
    edge_i = np.repeat(np.arange(n_atoms), k_room)
    number = np.arange(layout.n_edges) - edge_start[edge_i]
    first = np.cumsum(n_edges) - n_edges
    slot = edge_start[row_of[centre]] + np.arange(len(centre)) - first[centre]
    edge_j, mask = edge_i.copy(), np.zeros(layout.n_edges, dtype=bool)
    edge_j[slot], mask[slot] = row_of[neighbour], True
    slot_vectors = np.tile([1.0, 0.0, 0.0], (layout.n_edges, 1))
    slot_vectors[slot] = vectors
    angle_slots = np.flatnonzero(number < m_room[edge_i])
    angle_mask = number[angle_slots] < n_angle_edges[layout.order][edge_i[angle_slots]]
    incoming = np.argsort(edge_j, kind="stable")
    types, fparam, aparam, charge_spin = model_inputs(systems)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return BlockGraph(
        layout=layout,
        n_structures=len(systems),
        types=tensor(types[layout.order]),
        structure=tensor(np.repeat(np.arange(len(systems)), sizes)[layout.order]),
        edge_i=tensor(edge_i),
        edge_j=tensor(edge_j),
        vectors=tensor(slot_vectors),
        edge_mask=tensor(mask),
        angle_slots=tensor(angle_slots),
        angle_edge_mask=tensor(angle_mask),
        incoming=tensor(incoming),
        incoming_start=tensor(np.searchsorted(edge_j[incoming], np.arange(n_atoms))),
        fparam=tensor(fparam),
        aparam=tensor(aparam[layout.order]),
        charge_spin=None if charge_spin is None else tensor(charge_spin),
    )
