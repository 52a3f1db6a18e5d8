"""What the model says of a structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpa3sim.common.errors import Dpa3simError


@dataclass(frozen=True)
class Evaluation:
    """What the model says of one structure.

    Attributes:
        energy: total energy, eV.
        energies: ``(n,)`` atomic energies, eV; they add up to ``energy``.
        forces: ``(n, 3)``, eV/Å.
        virial: ``(3, 3)``, -dE/dstrain, eV (docs/model.md#energy-forces-and-virial).
        n_edges, n_angles: size of the graph.
        n_cut_edges, n_cut_angle_edges: neighbours dropped by the model's selection limits.
        warnings: reasons to doubt the result.
    """

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    n_edges: int
    n_angles: int
    n_cut_edges: int
    n_cut_angle_edges: int
    warnings: tuple[str, ...] = ()


def raise_first(outcomes: Sequence[Evaluation | Dpa3simError]) -> list[Evaluation]:
    """The evaluations; the error of a bad structure is raised, with its index if of several."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Dpa3simError):
            if len(outcomes) == 1:
                raise outcome
            raise type(outcome)(f"structure {index}: {outcome}")
    return list(outcomes)  # type: ignore[arg-type]
