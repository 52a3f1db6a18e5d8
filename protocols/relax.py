"""Relax atoms and cell to a minimum of energy (or of enthalpy, under pressure).

A relaxation has converged when the largest force and the largest stress that the cell may relax
are both below their thresholds (docs/methods.md#relaxation). Other protocols relax by the same
functions (:mod:`dpa3sim.protocols.crystals.relaxation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .base import Stage, relaxation
from .crystals.relaxation import Result, Settings, Step, check, run, unmet

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Result", "Settings", "Step", "check", "restore", "run", "stages", "state", "unmet"]


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    return [relaxation("relax", [len(atoms)], atoms, settings.steps)]


def state(atoms: Atoms, steps: Sequence[Step]) -> dict[str, Any]:
    """JSON-ready data to continue from with :func:`restore`; the last step belongs to ``atoms``."""
    return {
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell[:].tolist(),
        "steps": [asdict(step) for step in steps],
    }


def restore(atoms: Atoms, saved: Any) -> tuple[Atoms, tuple[Step, ...]]:
    """Structure and steps of :func:`state`, for :func:`run`.

    Args:
        atoms: the structure where the steps began.
        saved: what :func:`state` returned, after JSON.

    Raises:
        KeyError, TypeError, ValueError: ``saved`` is something else.
    """
    atoms = atoms.copy()
    atoms.positions = saved["positions"]
    atoms.cell = saved["cell"]
    return atoms, tuple(Step(**step) for step in saved["steps"])
