"""Graphs of many structures from a fresh search, side by side: what ``network.py`` runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpa3sim.graph.edges import Edges
from dpa3sim.structures.system import System, model_inputs


@dataclass(frozen=True)
class Angles:
    """All ordered pairs (q, k) of angle-edges of a centre, including q == k.

    See docs/model.md#neighbours-edges-and-angles. The m_i^2 angles of centre i are contiguous,
    q-major: block i is an (m_i, m_i) matrix.

    Attributes:
        edges: ``(n_angle_edges,)`` index of every angle-edge in the edge list.
        centres: ``(n_angle_edges,)`` centre of every angle-edge.
        q, k: ``(n_angles,)`` receiving edge and other edge, as indices into ``edges``.
    """

    edges: np.ndarray
    centres: np.ndarray
    q: np.ndarray
    k: np.ndarray


def find_angles(edge_centres: np.ndarray, n_angle_edges: np.ndarray) -> Angles:
    """List the angles of edges that are sorted by centre, angle-edges first.

    Args:
        edge_centres: ``(n_edges,)`` sorted centre of every edge.
        n_angle_edges: ``(n_atoms,)`` m_i, the number of angle-edges of every centre.
    """
    n_edges = np.bincount(edge_centres, minlength=len(n_angle_edges))
    first_edge = np.cumsum(n_edges) - n_edges
    centres = np.repeat(np.arange(len(n_angle_edges)), n_angle_edges)
    first = np.cumsum(n_angle_edges) - n_angle_edges
    rank = np.arange(len(centres)) - first[centres]
    m = n_angle_edges[centres]
    q = np.repeat(np.arange(len(centres)), m)
    row_start = np.cumsum(m) - m
    k = np.arange(len(q)) - row_start[q] + first[centres[q]]
    return Angles(edges=first_edge[centres] + rank, centres=centres, q=q, k=k)


@dataclass(frozen=True)
class GraphBatch:
    """Concatenated graphs; atoms, edges and angles of a structure are contiguous.

    Attributes:
        n_structures: number of graphs.
        types: ``(n_atoms,)`` int64; structure: ``(n_atoms,)`` index of the graph of each atom.
        edge_i, edge_j: ``(n_edges,)`` centre and neighbour, sorted by centre.
        vectors: ``(n_edges, 3)`` float64, Å.
        angle_edges: ``(n_angle_edges,)`` edge index; angle_centres: centre of each angle-edge.
        angle_q, angle_k: ``(n_angles,)`` indices into ``angle_edges``.
        fparam: ``(n_structures, numb_fparam)``; aparam: ``(n_atoms, numb_aparam)``; float64.
        charge_spin: ``(n_structures, 2)`` int64 or None.
    """

    n_structures: int
    types: torch.Tensor
    structure: torch.Tensor
    edge_i: torch.Tensor
    edge_j: torch.Tensor
    vectors: torch.Tensor
    angle_edges: torch.Tensor
    angle_centres: torch.Tensor
    angle_q: torch.Tensor
    angle_k: torch.Tensor
    fparam: torch.Tensor
    aparam: torch.Tensor
    charge_spin: torch.Tensor | None

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all structures together."""
        return self.types.shape[0]


def make_batch(
    systems: Sequence[System], edges: Sequence[Edges], device: torch.device
) -> GraphBatch:
    """Concatenate graphs and move them to ``device``.

    Args:
        systems: structures with the inputs of a model; edges: of each, from a fresh search.
        device: where the batch goes.
    """
    sizes = np.array([len(system) for system in systems])
    offsets = np.cumsum(sizes) - sizes
    centres = np.concatenate([g.i + o for g, o in zip(edges, offsets, strict=True)])
    neighbours = np.concatenate([g.j + o for g, o in zip(edges, offsets, strict=True)])
    vectors = [g.vectors(x.positions, x.cell) for x, g in zip(systems, edges, strict=True)]
    angles = find_angles(centres, np.concatenate([g.n_angle_edges for g in edges]))

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    types, fparam, aparam, charge_spin = model_inputs(systems)
    return GraphBatch(
        n_structures=len(systems),
        types=tensor(types),
        structure=tensor(np.repeat(np.arange(len(systems)), sizes)),
        edge_i=tensor(centres),
        edge_j=tensor(neighbours),
        vectors=tensor(np.concatenate(vectors)),
        angle_edges=tensor(angles.edges),
        angle_centres=tensor(angles.centres),
        angle_q=tensor(angles.q),
        angle_k=tensor(angles.k),
        fparam=tensor(fparam),
        aparam=tensor(aparam),
        charge_spin=None if charge_spin is None else tensor(charge_spin),
    )
