"""Batches: the graphs of many structures side by side, as tensors on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpa3sim.graph.angles import find_angles
from dpa3sim.graph.edges import Edges


@dataclass(frozen=True)
class GraphInput:
    """One structure with its edges, and the model's extra inputs for it (numpy, host).

    Attributes:
        types: ``(n_atoms,)`` index into the model's type map.
        vectors: ``(n_edges, 3)`` edge vectors, Å.
        edges: the edges.
        fparam: ``(numb_fparam,)`` frame parameters, aparam: ``(n_atoms, numb_aparam)``.
        charge_spin: ``(2,)`` total charge and spin, for models that depend on them.
    """

    types: np.ndarray
    vectors: np.ndarray
    edges: Edges
    fparam: np.ndarray
    aparam: np.ndarray
    charge_spin: np.ndarray | None = None


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


def make_batch(inputs: Sequence[GraphInput], device: torch.device) -> GraphBatch:
    """Concatenate graphs and move them to ``device``."""
    sizes = np.array([len(g.types) for g in inputs])
    offsets = np.cumsum(sizes) - sizes
    centres = np.concatenate([g.edges.i + o for g, o in zip(inputs, offsets, strict=True)])
    neighbours = np.concatenate([g.edges.j + o for g, o in zip(inputs, offsets, strict=True)])
    n_angle_edges = np.concatenate([g.edges.n_angle_edges for g in inputs])
    angles = find_angles(centres, n_angle_edges)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    charge_spin = [g.charge_spin for g in inputs if g.charge_spin is not None]
    return GraphBatch(
        n_structures=len(inputs),
        types=tensor(np.concatenate([g.types for g in inputs])),
        structure=tensor(np.repeat(np.arange(len(inputs)), sizes)),
        edge_i=tensor(centres),
        edge_j=tensor(neighbours),
        vectors=tensor(np.concatenate([g.vectors for g in inputs])),
        angle_edges=tensor(angles.edges),
        angle_centres=tensor(angles.centres),
        angle_q=tensor(angles.q),
        angle_k=tensor(angles.k),
        fparam=tensor(np.stack([g.fparam for g in inputs])),
        aparam=tensor(np.concatenate([g.aparam for g in inputs])),
        charge_spin=tensor(np.stack(charge_spin)) if charge_spin else None,
    )
