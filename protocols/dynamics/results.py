"""What a simulation found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.units import G_PER_CM3

from .. import base

if TYPE_CHECKING:
    from ase import Atoms

    from ..md import Settings
    from .plan import Plan
    from .statistics import Jumps, Statistics
    from .trajectories import Analysis
    from .watch import Watch


@dataclass(frozen=True, kw_only=True)
class Result(base.Result[Any]):
    """What a simulation did and found; it has converged once all steps are done.

    Attributes:
        plan: the settings with everything decided. atoms: the last structure of each replica.
        n_steps: number of steps done so far.
        statistics, jumps, watches: of each replica. analysis: of all replicas together.
        equilibration: number of steps that averages leave out.
    """

    settings: Settings
    plan: Plan
    atoms: tuple[Atoms, ...]
    n_steps: int
    statistics: tuple[Statistics, ...]
    jumps: tuple[Jumps, ...]
    watches: tuple[Watch, ...]
    analysis: Analysis
    equilibration: int

    @property
    def drift(self) -> tuple[float, float] | None:
        """Drift of the conserved quantity, meV/atom/ps, mean of the replicas, and its error."""
        known = [s.drift for s in self.statistics if s.drift is not None]
        if not known:
            return None
        values, errors = np.array(known).T
        return float(values.mean()), float(math.hypot(*errors) / len(errors))

    def mean(self, column: str) -> tuple[float, float | None]:
        """Mean of a column over the replicas, and its standard error; None if unknown."""
        averages = [s.averages[column] for s in self.statistics]
        errors = [a.error for a in averages]
        value = float(np.mean([a.mean for a in averages]))
        if any(e is None for e in errors):
            return value, None
        return value, float(math.hypot(*(e or 0.0 for e in errors)) / len(errors))

    def _values(self) -> dict[str, Any]:
        plan, settings, atoms = self.plan, self.settings, self.atoms[0]
        drift = self.drift
        return {
            "complete": self.converged,
            "formula": atoms.get_chemical_formula(),
            "n_atoms": len(atoms),
            "degrees_of_freedom": plan.degrees,
            "ensemble": settings.ensemble,
            "thermostat": plan.thermostat,
            "barostat": plan.barostat,
            "n_steps": self.n_steps,
            "timestep_fs": plan.timestep,
            "simulated_ps": plan.time(self.n_steps),
            "equilibration_steps": self.equilibration,
            "frames_every_steps": plan.interval,
            "rows_every_steps": plan.table_interval,
            "seeds": [settings.seed + k for k in range(settings.replicas)],
            "drift_meV_per_atom_per_ps": drift and drift[0],
            "drift_error_meV_per_atom_per_ps": drift and drift[1],
            **self._averages(),
            **self._novelties(),
            "diffusion": {
                name: {
                    "coefficient_m2_per_s": d.coefficient,
                    "error_m2_per_s": d.error,
                    "power_of_time": d.power,
                    "diffusive": d.diffusive,
                }
                for name, d in self.analysis.diffusion.items()
            },
            "n_frames_analysed": self.analysis.n_frames,
            "replicas": [self._replica(k) for k in range(len(self.atoms))],
        }

    def _averages(self) -> dict[str, Any]:
        """Means over time and replicas with their errors; energies per atom."""
        n_atoms = len(self.atoms[0])
        found: dict[str, float | None] = {}
        for column in self.plan.columns[2:]:
            if not all(column in s.averages for s in self.statistics):
                continue
            value, error = self.mean(column)
            name, _, unit = column.rpartition("_")
            if unit == "eV":
                name, unit, value = f"{name}_energy", "per_atom_eV", value / n_atoms
                error = None if error is None else error / n_atoms
            found[f"{name}_{unit}"] = value
            found[f"{name}_error_{unit}"] = error
        found.pop("conserved_energy_per_atom_eV", None)
        found.pop("conserved_energy_error_per_atom_eV", None)
        if "volume_A3" in found:
            mass = float(self.atoms[0].get_masses().sum()) * G_PER_CM3
            found["density_g_per_cm3"] = mass / self.mean("volume_A3")[0]
        return found

    def _novelties(self) -> dict[str, Any]:
        """What was new to the model, if that has an uncertainty."""
        if any(watch.initial is None for watch in self.watches):
            return {}
        worst = max(self.watches, key=lambda watch: watch.largest)
        return {
            "novelty_initial": max(watch.initial or 0.0 for watch in self.watches),
            "novelty_final": max(watch.last or 0.0 for watch in self.watches),
            "novelty_largest": worst.largest,
            "novelty_largest_step": worst.step,
            "novelty_largest_atom": worst.atom,
            "uncertain_frames": sum(watch.kept for watch in self.watches),
        }

    def _replica(self, index: int) -> dict[str, Any]:
        statistics, atoms = self.statistics[index], self.atoms[index]
        drift = statistics.drift
        temperature = statistics.averages.get("temperature_K")
        return {
            "seed": self.plan.settings.seed + index,
            "temperature_K": temperature and temperature.mean,
            "temperature_error_K": temperature and temperature.error,
            "temperature_deviation_K": temperature and temperature.deviation,
            "drift_meV_per_atom_per_ps": drift and drift[0],
            "drift_error_meV_per_atom_per_ps": drift and drift[1],
            "angle_cutoff": self.jumps[index].to_dict(len(atoms)),
        }
