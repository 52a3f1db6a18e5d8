"""Equation of state: energy against volume, ions and shape relaxed at each volume.

Volumes, not lengths, are spaced evenly around the relaxed one (docs/methods.md#volumes). The fits
are ASE's equations; a minimum outside the volumes that were computed is no result.
"""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA

from .base import Stage, relaxation
from .crystals import guards, prepare
from .crystals.cells import Extensive
from .crystals.prepare import Event, Prepared, Progress, PropertySettings
from .crystals.volumes import scaled

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

EQUATIONS = ("vinet", "birch-murnaghan", "murnaghan")
# Four parameters are fitted, and two more points tell how well.
FEWEST_POINTS = 6
WHAT = "equations of state"
# Warn of pressures that differ from the fit's by this share of the largest.
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


@dataclass(frozen=True)
class Fit:
    """An equation of state E(V) fitted by least squares, with standard errors.

    Attributes:
        equation: its name. energy: E0, volume: V0, of an atom: eV, Å^3.
        bulk_modulus: B0, GPa. derivative: B0', its change with pressure.
        errors: standard errors of these four, in this order.
        rms: root mean square of what the fit leaves, eV/atom.
    """

    equation: str
    energy: float
    volume: float
    bulk_modulus: float
    derivative: float
    errors: tuple[float, float, float, float]
    rms: float

    def energy_at(self, volume: np.ndarray) -> np.ndarray:
        """Energy of an atom, eV, at ``volume`` of an atom, Å^3."""
        b0 = self.bulk_modulus * GPA
        values: np.ndarray = _function(self.equation)(
            volume, self.energy, b0, self.derivative, self.volume
        )
        return values

    def pressure_at(self, volume: np.ndarray) -> np.ndarray:
        """Pressure -dE/dV, GPa, at ``volume`` of an atom, Å^3."""
        h = 1e-4 * self.volume
        return -(self.energy_at(volume + h) - self.energy_at(volume - h)) / (2 * h) / GPA

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "energy_per_atom_eV": self.energy,
            "energy_error_per_atom_eV": self.errors[0],
            "volume_per_atom_A3": self.volume,
            "volume_error_per_atom_A3": self.errors[1],
            "bulk_modulus_GPa": self.bulk_modulus,
            "bulk_modulus_error_GPa": self.errors[2],
            "bulk_modulus_derivative": self.derivative,
            "bulk_modulus_derivative_error": self.errors[3],
            "rms_per_atom_eV": self.rms,
        }


@dataclass(frozen=True)
class Result:
    """An equation of state.

    Attributes:
        volumes: ``(points,)`` Å^3 of an atom; energies: eV of an atom; pressures: GPa.
        structures: the relaxed primitive cell at each volume.
        fits: all that succeeded, by name.
    """

    settings: Settings
    prepared: Prepared
    volumes: np.ndarray
    energies: np.ndarray
    pressures: np.ndarray
    structures: tuple[Atoms, ...]
    fits: dict[str, Fit]
    converged: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fit(self) -> Fit | None:
        """The fit of the equation that was asked for."""
        return self.fits.get(self.settings.equation)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        cells = self.prepared.cells
        data: dict[str, Any] = {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.prepared.to_dict(),
            "equation": self.settings.equation,
        }
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
            "settings": options_of.to_dict(self.settings),
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if ``atoms`` has no equation of state; cheap."""
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
        InputError: no crystal. NotConvergedError: the relaxation before did not converge; if that
            of a volume does not, ``converged`` is False.
    """
    settings = settings or Settings()
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
    fits, problems = _fit_all(volumes, energies)
    if settings.equation in fits:
        reasons = [f"the minimum of {settings.equation} lies within the volumes"]
    else:
        reasons = [problems[settings.equation]]
    if failed:
        reasons.insert(0, f"{failed} of {len(relaxed)} volumes did not relax")
    if progress:
        progress(Event("fit", reasons[-1]))
    fit = fits.get(settings.equation)
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
        converged=settings.equation in fits and not failed,
        reasons=tuple(reasons),
        warnings=tuple(dict.fromkeys([*ready.warnings, *limits, *doubts])),
    )


def _linear(volume_range: float) -> float:
    """Largest relative change of a length for a change of the volume in percent."""
    return 1 - (1 - volume_range / 100) ** (1 / 3)


def _function(equation: str) -> Any:
    """E(V, E0, B0, B0', V0)."""
    from ase import eos

    return {
        "vinet": eos.vinet,
        "birch-murnaghan": eos.birchmurnaghan,
        "murnaghan": eos.murnaghan,
    }[equation]


def _fit_all(volumes: np.ndarray, energies: np.ndarray) -> tuple[dict[str, Fit], dict[str, str]]:
    """The equations that fit, and why the others do not."""
    fits, problems = {}, {}
    for equation in EQUATIONS:
        outcome = fit_equation(equation, volumes, energies)
        if isinstance(outcome, Fit):
            fits[equation] = outcome
        else:
            problems[equation] = outcome
    return fits, problems


def fit_equation(equation: str, volumes: np.ndarray, energies: np.ndarray) -> Fit | str:
    """Fit one equation to energies (eV) at volumes (Å^3), both of an atom; or why that fails."""
    from scipy.optimize import OptimizeWarning, curve_fit

    curvature, slope, _ = np.polyfit(volumes, energies, 2)
    if curvature <= 0:
        return "the energy has no minimum in this range of volumes: it curves downwards"
    guess = -slope / (2 * curvature)
    if not volumes.min() < guess < volumes.max():
        return _outside(guess, volumes)
    # Energies relative to the lowest: total ones would hide their differences.
    lowest = energies.min()
    start = (0.0, 2 * curvature * guess, 4.0, guess)
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("error", OptimizeWarning)
            values, covariance = curve_fit(
                _function(equation), volumes, energies - lowest, p0=start, xtol=1e-14, ftol=1e-14
            )
    except (RuntimeError, OptimizeWarning, ValueError) as error:
        return f"the fit of {equation} failed: {error}"
    e0, b0, derivative, v0 = map(float, values)
    if not volumes.min() < v0 < volumes.max():
        return _outside(v0, volumes)
    left = energies - lowest - _function(equation)(volumes, *values)
    e_error, b_error, d_error, v_error = map(float, np.sqrt(np.diag(covariance)))
    return Fit(
        equation,
        e0 + float(lowest),
        v0,
        b0 / GPA,
        derivative,
        (e_error, v_error, b_error / GPA, d_error),
        float(np.sqrt(np.mean(left**2))),
    )


def _outside(volume: float, volumes: np.ndarray) -> str:
    return (
        f"the minimum, about {volume:.3f} Å^3/atom, is outside the volumes computed "
        f"({volumes.min():.3f} to {volumes.max():.3f}); relax first, or a larger volume_range"
    )


def _doubts(fit: Fit, volumes: np.ndarray, pressures: np.ndarray) -> list[str]:
    """A warning where the stress, which the fit did not use, does not agree with it."""
    deviation = float(np.abs(pressures - fit.pressure_at(volumes)).max())
    if deviation <= PRESSURE_DEVIATION * np.abs(pressures).max():
        return []
    return [
        f"pressures from the stress differ from those of the fit by up to {deviation:.2g} GPa: the "
        "energies of the model do not follow the equation of state here, and its bulk modulus is "
        "an average over the volumes; compare a smaller volume_range"
    ]
