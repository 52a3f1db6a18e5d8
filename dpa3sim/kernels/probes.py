"""Graphs of random vectors, to try kernels and to measure their memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpa3sim.graph.blocks import UNLIMITED, BlockGraph, BlockLimits, make_layout
from dpa3sim.model.config import ModelConfig


def probe(
    config: ModelConfig,
    n_atoms: int,
    n_edges: int | np.ndarray,
    n_angle_edges: int | np.ndarray,
    together: bool,
    device: torch.device,
) -> BlockGraph:
    """A graph of random vectors with the given numbers of edges and angle-edges.

    Args:
        config: the model.
        n_atoms: number of centres.
        n_edges, n_angle_edges: of every centre, or ``(n_atoms,)`` of each.
        together: put all centres into one block, which needs equal numbers, or each in its own.
        device: where the graph is.
    """
    descriptor, fitting = config.descriptor, config.fitting
    if not descriptor.update_angle:
        n_angle_edges = 0
    size = UNLIMITED if together else 1
    limits = BlockLimits(size, size, 0.0)
    counts = np.full(n_atoms, n_edges), np.full(n_atoms, n_angle_edges)
    layout = make_layout(*counts, limits)
    rng = np.random.default_rng(0)
    k, m, edge_start, *_ = layout.centres
    edge_i = np.repeat(np.arange(n_atoms), k)
    edge_j = rng.integers(n_atoms, size=len(edge_i))
    incoming = np.argsort(edge_j, kind="stable")
    slots = np.flatnonzero(np.arange(len(edge_i)) - edge_start[edge_i] < m[edge_i])
    vectors = rng.normal(size=(len(edge_i), 3))
    length: float | np.ndarray = 3
    if descriptor.smooth_cutoff is not None:  # where every derivative counts
        shares = rng.uniform(0.1, 0.9, size=(len(edge_i), 1))
        length = descriptor.a_rcut - shares * descriptor.smooth_cutoff
    vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    charged = descriptor.add_chg_spin_ebd
    return BlockGraph(
        layout=layout,
        n_structures=1,
        types=tensor(np.zeros(n_atoms, dtype=np.int64)),
        structure=tensor(np.zeros(n_atoms, dtype=np.int64)),
        edge_i=tensor(edge_i),
        edge_j=tensor(edge_j),
        vectors=tensor(vectors),
        edge_mask=tensor(np.ones(len(edge_i), dtype=bool)),
        angle_slots=tensor(slots),
        angle_edge_mask=tensor(np.ones(len(slots), dtype=bool)),
        incoming=tensor(incoming),
        incoming_start=tensor(np.searchsorted(edge_j[incoming], np.arange(n_atoms))),
        fparam=tensor(np.zeros((1, fitting.numb_fparam))),
        aparam=tensor(np.zeros((n_atoms, fitting.numb_aparam))),
        charge_spin=tensor(np.zeros((1, 2), dtype=np.int64)) if charged else None,
    )
