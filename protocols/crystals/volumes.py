"""A crystal at other volumes: cells of given volumes, with their shape and ions relaxed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import NotConvergedError

from ..base import Progress, Stage, relaxation, silent
from .prepare import Prepared, PropertySettings, relax_settings, relax_together

if TYPE_CHECKING:
    from ase import Atoms

# Largest relative error of the volume after a relaxation that keeps it.
VOLUME_ERROR = 1e-5


def scaled(atoms: Atoms, strains: Iterable[float]) -> list[Atoms]:
    """The crystal with its volume changed by each strain; shape and fractional positions stay."""
    cells = []
    for strain in strains:
        cell = atoms.copy()
        cell.set_cell(atoms.cell[:] * (1 + strain) ** (1 / 3), scale_atoms=True)
        cells.append(cell)
    return cells


def stage(atoms: Atoms, count: int, settings: PropertySettings) -> Stage:
    """What :func:`at_volumes` is going to evaluate for a primitive cell at ``count`` volumes."""
    sizes = [len(atoms)] * count
    if not settings.relax:
        return Stage("volumes", sizes, atoms)
    return relaxation("volumes", sizes, atoms, settings.steps)


def at_volumes(
    prepared: Prepared,
    strains: Sequence[float],
    settings: PropertySettings,
    progress: Progress = silent,
) -> tuple[list[Atoms], np.ndarray]:
    """Primitive cells at V = V0 (1 + strain), relaxed together, and their energies, eV.

    A strain is one of the volume, not of the lengths. Without ``settings.relax`` the cells are only
    scaled.

    Raises:
        NotConvergedError: a relaxation did not converge, or did not keep its volume.
    """
    starts = scaled(prepared.cells.primitive.atoms, strains)
    if not settings.relax:
        energies = [e.energy for e in prepared.potential.evaluate(starts)]
        return starts, np.array(energies)
    shape = relax_settings(settings, "shape")
    results = relax_together(starts, prepared.potential, shape, "volumes", progress)
    for start, result in zip(starts, results, strict=True):
        error = abs(result.atoms.cell.volume / start.cell.volume - 1)
        if error > VOLUME_ERROR:
            raise NotConvergedError(f"volumes: a relaxation changed its volume by {error:.1e}")
    relaxed = [result.atoms.copy() for result in results]
    return relaxed, np.array([result.steps[-1].energy_eV for result in results])
