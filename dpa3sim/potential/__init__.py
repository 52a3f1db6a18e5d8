"""One resident model: a batch of structures in, energies, forces and virials out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential, PotentialLike
    from dpa3sim.potential.potential import Potential

__all__ = ["BatchPotential", "Evaluation", "Potential", "PotentialLike"]

_EXPORTS = {
    "BatchPotential": "dpa3sim.potential.interface",
    "Evaluation": "dpa3sim.potential.evaluation",
    "Potential": "dpa3sim.potential.potential",
    "PotentialLike": "dpa3sim.potential.interface",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dpa3sim.potential' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
