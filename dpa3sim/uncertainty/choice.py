"""Which structures to label: those that add most to what a model is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpa3sim.uncertainty.rigidity import Rigidity, factorised


def choose(
    features: Sequence[np.ndarray], number: int, known: Rigidity | None = None
) -> list[tuple[int, float]]:
    """Structures that increase the determinant of F^T F most, one after the other (D-optimal).

    Each one changes the covariance by its row f / n, so that a structure like one that is chosen
    already is not chosen again.

    Args:
        features: ``(n_atoms, width)`` of each structure.
        number: how many to choose, at most.
        known: what the model was fitted to; None for nothing.

    Returns:
        Indices in the order of the choice, each with its gain: f^T C f / n^2 at that time.
    """
    rows = np.array([x.mean(axis=0) for x in features])
    if not len(rows):
        return []
    if known is not None:
        factor = known.factor
    else:
        # A weak prior: features differ by orders of magnitude, and none of them is known.
        factor = factorised(1e-6 * rows.T @ rows / len(rows))
    inverse = np.linalg.inv(factor)
    covariance = inverse.T @ inverse
    found: list[tuple[int, float]] = []
    left = np.ones(len(rows), dtype=bool)
    for _ in range(min(number, len(rows))):
        gains = np.where(left, np.einsum("ij,jk,ik->i", rows, covariance, rows), -np.inf)
        best = int(np.argmax(gains))
        found.append((best, float(gains[best])))
        left[best] = False
        change = covariance @ rows[best]  # Sherman and Morrison
        covariance -= np.outer(change, change) / (1 + gains[best])
    return found
