"""Equations of state E(V), fitted by least squares."""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpa3sim.common.units import GPA

EQUATIONS = ("vinet", "birch-murnaghan", "murnaghan")


@dataclass(frozen=True)
class Fit:
    """An equation of state E(V) fitted by least squares, with standard errors.

    Attributes:
        equation: its name. energy: E0, eV/atom. volume: V0, Å^3/atom.
        bulk_modulus: B0, GPa. derivative: B0', its change with pressure.
        errors: standard errors of these four, in this order.
        rms: root mean square residual, eV/atom.
    """

    equation: str
    energy: float
    volume: float
    bulk_modulus: float
    derivative: float
    errors: tuple[float, float, float, float]
    rms: float

    def energy_at(self, volume: np.ndarray) -> np.ndarray:
        """Energy, eV/atom, at ``volume``, Å^3/atom."""
        b0 = self.bulk_modulus * GPA
        values: np.ndarray = _function(self.equation)(
            volume, self.energy, b0, self.derivative, self.volume
        )
        return values

    def pressure_at(self, volume: np.ndarray) -> np.ndarray:
        """Pressure -dE/dV, GPa, at ``volume``, Å^3/atom."""
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


def _function(equation: str) -> Any:
    """E(V, E0, B0, B0', V0)."""
    from ase import eos

    return {
        "vinet": eos.vinet,
        "birch-murnaghan": eos.birchmurnaghan,
        "murnaghan": eos.murnaghan,
    }[equation]


def fit_all(volumes: np.ndarray, energies: np.ndarray) -> tuple[dict[str, Fit], dict[str, str]]:
    """The fits that succeeded, and why the others failed, by equation."""
    fits, problems = {}, {}
    for equation in EQUATIONS:
        outcome = fit_equation(equation, volumes, energies)
        if isinstance(outcome, Fit):
            fits[equation] = outcome
        else:
            problems[equation] = outcome
    return fits, problems


def fit_equation(equation: str, volumes: np.ndarray, energies: np.ndarray) -> Fit | str:
    """Fit one equation to energies (eV/atom) at volumes (Å^3/atom), or return why that failed."""
    from scipy.optimize import OptimizeWarning, curve_fit

    curvature, slope, _ = np.polyfit(volumes, energies, 2)
    if curvature <= 0:
        return "the energy has no minimum in this range of volumes: it curves downwards"
    guess = -slope / (2 * curvature)
    if not volumes.min() < guess < volumes.max():
        return _outside(guess, volumes)
    # Energies are relative to the lowest one: total energies would hide their differences.
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
        f"({volumes.min():.3f} to {volumes.max():.3f}); relax first, or use a larger volume_range"
    )
