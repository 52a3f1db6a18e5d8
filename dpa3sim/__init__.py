"""dpa3sim: the simulation engine for the DPA3 graph neural network potential."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpa3sim.common.lazy import lazy

if TYPE_CHECKING:
    from dpa3sim.checkpoints.registry import load_model
    from dpa3sim.clients.ase import DPA3Calculator
    from dpa3sim.clients.engine import Engine
    from dpa3sim.potential import Evaluation, Potential

__version__ = "0.1.0"
__all__ = ["DPA3Calculator", "Engine", "Evaluation", "Potential", "__version__", "load_model"]

_EXPORTS = {
    "DPA3Calculator": "dpa3sim.clients.ase",
    "Engine": "dpa3sim.clients.engine",
    "Evaluation": "dpa3sim.potential.evaluation",
    "Potential": "dpa3sim.potential.potential",
    "load_model": "dpa3sim.checkpoints.registry",
}
__getattr__ = lazy(__name__, _EXPORTS)  # torch and ASE only where they are needed


def __dir__() -> list[str]:
    return sorted(__all__)
