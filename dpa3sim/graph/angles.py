"""Angles: the line graph, with one block of ordered edge pairs for every centre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
