"""One resident model: a batch of structures in, energies, forces and virials out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpa3sim.common.lazy import lazy

if TYPE_CHECKING:
    from dpa3sim.potential.evaluation import Ensemble, Evaluation, Uncertainty
    from dpa3sim.potential.interface import BatchPotential, PotentialLike
    from dpa3sim.potential.potential import Potential

__all__ = [
    "BatchPotential",
    "Ensemble",
    "Evaluation",
    "Potential",
    "PotentialLike",
    "Uncertainty",
]

_EXPORTS = {
    "BatchPotential": "dpa3sim.potential.interface",
    "Ensemble": "dpa3sim.potential.evaluation",
    "Evaluation": "dpa3sim.potential.evaluation",
    "Potential": "dpa3sim.potential.potential",
    "PotentialLike": "dpa3sim.potential.interface",
    "Uncertainty": "dpa3sim.potential.evaluation",
}
__getattr__ = lazy(__name__, _EXPORTS)  # torch and ASE only where they are needed
