"""Equation of state: energy against volume, ions and shape relaxed at each volume.

Volumes, not lengths, are spaced evenly around the relaxed one (docs/methods.md#volumes). ASE's
equations are fitted; a minimum outside the computed volumes is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA

from .base import Event, Progress, Stage, relaxation, silent
from .crystals import guards, prepare
from .crystals.cells import Extensive
from .crystals.equations_of_state import EQUATIONS, Fit, fit_all
from .crystals.prepare import PropertyResult, PropertySettings
from .crystals.volumes import scaled

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Four parameters are fitted, and two more points show how well.
FEWEST_POINTS = 6
WHAT = "equations of state"
# A warning is given if pressures differ from those of the fit by this share of the largest.
PRESSURE_DEVIATION = 0.02


@dataclass(frozen=True)
class Settings(PropertySettings):
    """Options of an equation of state."""

    volume_range: float = option(
        6.0, "largest change of the volume, both ways, in percent", unit="%", minimum=0.1
    )
    points: int = option(9, "number of volumes", minimum=FEWEST_POINTS)
    equation: str = option(
        "vinet", "equation whose parameters are the result; all are fitted", choices=EQUATIONS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.volume_range > 50:
            raise InputError(f"volume_range = {self.volume_range:g} % must be at most 50 %")


@dataclass(frozen=True, kw_only=True)
class Result(PropertyResult[Settings]):
    """An equation of state.

    Attributes:
        volumes: ``(points,)`` Å^3 of an atom; energies: eV of an atom; pressures: GPa.
        structures: the relaxed primitive cell at each volume.
        fits: all that succeeded, by name.
    """

    volumes: np.ndarray
    energies: np.ndarray
    pressures: np.ndarray
    structures: tuple[Atoms, ...]
    fits: dict[str, Fit]

    @property
    def fit(self) -> Fit | None:
        """The fit of the equation that was asked for."""
        return self.fits.get(self.settings.equation)

    def _values(self) -> dict[str, Any]:
        cells = self.prepared.cells
        data = {**super()._values(), "equation": self.settings.equation}
        if self.fit is not None:
            fit = self.fit.to_dict()
            data |= Extensive(self.fit.energy, 1).keys("energy", "eV", cells)
            data |= Extensive(self.fit.volume, 1).keys("volume", "A3", cells)
            data |= {name: fit[name] for name in fit if name not in data}
            deviations = np.abs(self.pressures - self.fit.pressure_at(self.volumes))
            data["pressure_deviation_GPa"] = float(deviations.max())
        return data | {
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()},
            "volumes_per_atom_A3": self.volumes.tolist(),
            "energies_per_atom_eV": self.energies.tolist(),
            "pressures_GPa": self.pressures.tolist(),
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if an equation of state is not defined for ``atoms``; cheap."""
    prepare.check(atoms, settings, WHAT)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    cells = prepare.starting_cells(atoms, settings)
    crystal = cells.primitive.atoms
    return [
        *prepare.stages(cells, settings),
        relaxation("volumes", [len(crystal)] * settings.points, crystal, settings.steps),
        guards.stage(cells.input.atoms),
    ]


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Compute the equation of state of a crystal; all volumes are relaxed at once.

    Args:
        atoms: a crystal in any cell; it is not changed.
        potential: the model, taken to the precision of the settings.
        settings: options, defaults where None.
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal.
        NotConvergedError: the first relaxation did not converge; if that at one of the volumes
            does not, ``converged`` is False.
    """
    settings, progress = settings or Settings(), progress or silent
    ready = prepare.prepare(atoms, potential, settings, WHAT, progress)
    start = ready.cells.primitive.atoms
    n = len(start)
    changes = np.linspace(-settings.volume_range, settings.volume_range, settings.points)
    relaxed = prepare.relax_together(
        scaled(start, changes / 100),
        ready.potential,
        prepare.relax_settings(settings, "shape"),
        "volumes",
        progress,
        strict=False,
    )
    failed = sum(not r.converged for r in relaxed)
    volumes = np.array([r.atoms.get_volume() for r in relaxed]) / n
    energies = np.array([r.atoms.get_potential_energy() for r in relaxed]) / n
    pressures = np.array([-np.trace(r.atoms.get_stress(voigt=False)) / 3 / GPA for r in relaxed])
    fits, problems = fit_all(volumes, energies)
    fit = fits.get(settings.equation)
    found = f"the minimum of {settings.equation} lies within the volumes"
    reasons = [problems.get(settings.equation, found)]
    progress(Event("fit", reasons[-1]))
    if failed:
        reasons.insert(0, f"{failed} of {len(relaxed)} volumes did not relax")
    doubts = [] if fit is None else _doubts(fit, volumes, pressures)
    limits = guards.check(ready.atoms, ready.potential, strain=_linear(settings.volume_range))
    return Result(
        settings=settings,
        prepared=ready,
        volumes=volumes,
        energies=energies,
        pressures=pressures,
        structures=tuple(r.atoms for r in relaxed),
        fits=fits,
        converged=fit is not None and not failed,
        reasons=tuple(reasons),
        warnings=tuple(dict.fromkeys([*ready.warnings, *limits, *doubts])),
    )


def _linear(volume_range: float) -> float:
    """Largest relative change of a length for a change of the volume in percent."""
    return 1 - (1 - volume_range / 100) ** (1 / 3)


def _doubts(fit: Fit, volumes: np.ndarray, pressures: np.ndarray) -> list[str]:
    """A warning if the fit disagrees with the stress, which it did not use."""
    deviation = float(np.abs(pressures - fit.pressure_at(volumes)).max())
    if deviation <= PRESSURE_DEVIATION * np.abs(pressures).max():
        return []
    return [
        f"pressures from the stress differ from those of the fit by up to {deviation:.2g} GPa: the "
        "energies of the model do not follow the equation of state here, and its bulk modulus is "
        "an average over the volumes; compare a smaller volume_range"
    ]
