"""dpa3sim: the simulation engine for the DPA3 graph neural network potential."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpa3sim.calculator import DPA3Calculator
    from dpa3sim.checkpoints.registry import load_model
    from dpa3sim.engine import Engine
    from dpa3sim.potential import Evaluation, Potential

__version__ = "0.1.0"
__all__ = ["DPA3Calculator", "Engine", "Evaluation", "Potential", "__version__", "load_model"]

# In a source checkout the folder protocols/ stands beside this one instead of inside it; an
# installed dpa3sim has it inside. This makes `dpa3sim.protocols` the same thing in both.
_checkout = Path(__file__).resolve().parent.parent
if not (Path(__path__[0]) / "protocols").is_dir() and (_checkout / "protocols").is_dir():
    __path__.append(str(_checkout))

_EXPORTS = {
    "DPA3Calculator": "dpa3sim.calculator",
    "Engine": "dpa3sim.engine",
    "Evaluation": "dpa3sim.potential",
    "Potential": "dpa3sim.potential",
    "load_model": "dpa3sim.checkpoints.registry",
}


def __getattr__(name: str) -> Any:
    """Import torch, ASE and the rest only when something that needs them is asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dpa3sim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
