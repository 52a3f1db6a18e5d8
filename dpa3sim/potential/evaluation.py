"""What the model says of a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpa3sim.common.errors import Dpa3simError

# Atoms of a larger novelty are warned of (docs/uncertainty.md#in-every-calculation).
NEW = 2.0


@dataclass(frozen=True)
class Uncertainty:
    """How certain a model is of a structure (docs/uncertainty.md#what-is-computed).

    Attributes:
        novelties: ``(n,)`` of the atoms, without a unit: at most 1 in the structures that the
            uncertainty was fitted to, and large in surroundings unlike all of them.
        energy: standard deviation of the total energy, eV; None where no energies were known.
        energies: ``(n,)`` the same of the atomic energies, eV. Total energies need not determine
            them, so that they can be large where the total energy is certain.
    """

    novelties: np.ndarray
    energy: float | None = None
    energies: np.ndarray | None = None

    @property
    def novelty(self) -> float:
        """The largest novelty of an atom."""
        return float(self.novelties.max())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, exact."""
        energies = None if self.energies is None else self.energies.tolist()
        return {"novelties": self.novelties.tolist(), "energy": self.energy, "energies": energies}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Uncertainty:
        """What :meth:`to_dict` made."""
        energies = values["energies"]
        return cls(
            np.array(values["novelties"], dtype=np.float64),
            values["energy"],
            None if energies is None else np.array(energies, dtype=np.float64),
        )


@dataclass(frozen=True)
class Ensemble:
    """What several models say of one structure, or by how much they differ from another one.

    Attributes:
        energies: ``(m,)`` eV. forces: ``(m, n, 3)`` eV/Å. virials: ``(m, 3, 3)`` eV.
    """

    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray


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
        uncertainty: if the potential has one.
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
    uncertainty: Uncertainty | None = None


def raise_first(outcomes: Sequence[Evaluation | Dpa3simError]) -> list[Evaluation]:
    """The evaluations; the error of a bad structure is raised, with its index if of several."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Dpa3simError):
            if len(outcomes) == 1:
                raise outcome
            raise type(outcome)(f"structure {index}: {outcome}")
    return list(outcomes)  # type: ignore[arg-type]
