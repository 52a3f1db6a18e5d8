"""What a simulation found: averages, drift, structure and motion, and what limits them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from dpa3sim.common import settings as options_of
from dpa3sim.common.units import G_PER_CM3

from ..crystals import guards
from ..crystals.prepare import Event
from ..md import highest_frequency
from .statistics import Jumps, Statistics, statistics
from .trajectories import Analyser, Analysis, Frame

if TYPE_CHECKING:
    from ase import Atoms

    from ..md import Plan
    from .replicas import Simulation

# Drift (meV/atom/ps) that the user is told, if it is this many times its error.
LARGE_DRIFT, SIGNIFICANT = 0.1, 3.0
# Crossings of the angle cutoff are told where steps with them are so many times rougher.
ROUGHNESS = 2.0
# ASE's velocities in Å/ps.
PER_PS = 1000 * units.fs
"""In g/cm^3."""


@dataclass(frozen=True)
class Result:
    """What a simulation did and found.

    Attributes:
        plan: settings, with everything decided. atoms: the last structure of each replica.
        n_steps: done so far. converged: whether these are all that were asked for.
        statistics, jumps: of each replica. analysis: of all of them together.
    """

    plan: Plan
    atoms: tuple[Atoms, ...]
    n_steps: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    statistics: tuple[Statistics, ...]
    jumps: tuple[Jumps, ...]
    analysis: Analysis
    equilibration: int

    @property
    def converged(self) -> bool:
        """Whether all steps that were asked for are done."""
        return self.n_steps >= self.plan.settings.steps

    @property
    def drift(self) -> tuple[float, float] | None:
        """Drift of the conserved quantity, meV/atom/ps, mean of the replicas, and its error."""
        known = [s.drift for s in self.statistics if s.drift is not None]
        if not known:
            return None
        values, errors = np.array(known).T
        return float(values.mean()), float(math.hypot(*errors) / len(errors))

    def mean(self, column: str) -> tuple[float, float | None]:
        """Average of a column over the replicas, and its standard error; None if unknown."""
        averages = [s.averages[column] for s in self.statistics]
        errors = [a.error for a in averages]
        value = float(np.mean([a.mean for a in averages]))
        if any(e is None for e in errors):
            return value, None
        return value, float(math.hypot(*(e or 0.0 for e in errors)) / len(errors))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        plan, settings, atoms = self.plan, self.plan.settings, self.atoms[0]
        drift = self.drift
        return {
            "converged": self.converged,
            "complete": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
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
            "settings": options_of.to_dict(settings),
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


def summarise(simulation: Simulation, reason: str | None) -> Result:
    """Read back what a simulation recorded, and judge it.

    Args:
        simulation: as far as it came.
        reason: why it stopped before its end; None if it did not.

    Raises:
        KeyboardInterrupt: the user wants to stop; all that was simulated is saved.
    """
    plan, done, recorder = simulation.plan, simulation.step, simulation.recorder
    settings, atoms = plan.settings, simulation.replicas[0].atoms
    equilibration = plan.equilibration(done)
    tables = tuple(
        statistics(recorder.rows(k), done // plan.table_interval + 1, equilibration, len(atoms))
        for k in range(settings.replicas)
    )
    finals = tuple(_final(replica.atoms) for replica in simulation.replicas)
    result = Result(
        plan=plan,
        atoms=finals,
        n_steps=done,
        reasons=(reason or f"all {done} steps are done",),
        warnings=(),
        statistics=tables,
        jumps=tuple(replica.jumps for replica in simulation.replicas),
        analysis=_analyse(simulation, equilibration),
        equilibration=equilibration,
    )
    return replace(result, warnings=tuple(guards.afterwards(_warnings, simulation, result)))


def _final(atoms: Atoms) -> Atoms:
    """A copy without calculator or the constraint of the thermostat, with energy and forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    final = atoms.copy()
    final.set_constraint([c for c in atoms.constraints if type(c).__name__ != "FixCom"])
    results = {k: atoms.calc.results[k] for k in ("energy", "forces")}
    if "stress" in atoms.calc.results:
        results["stress"] = atoms.calc.results["stress"]
    final.calc = SinglePointCalculator(final, **results)
    return final


def _analyse(simulation: Simulation, equilibration: int) -> Analysis:
    """Read the frames after equilibration, of all replicas."""
    plan, settings = simulation.plan, simulation.plan.settings
    skipped = -(-equilibration // plan.interval)
    count = max(1, simulation.step // plan.interval + 1 - skipped)
    analyser = Analyser(simulation.start, count, plan.time(plan.interval))
    total = count * settings.replicas
    for k in range(settings.replicas):
        analyser.read(_frames(simulation, k, skipped, k * count, total))
    return analyser.result()


def _analysing(number: int, total: int) -> Event:
    return Event("analysis", f"frame {number} of {total}", number, total)


def _frames(
    simulation: Simulation, replica: int, skipped: int, done: int, total: int
) -> Iterator[Frame]:
    for index, atoms in enumerate(simulation.recorder.frames(replica)):
        if index < skipped:
            continue
        if simulation.wants_to_stop():
            raise KeyboardInterrupt
        simulation.tell(partial(_analysing, done + index - skipped + 1, total))
        yield Frame(atoms.positions, atoms.get_velocities() * PER_PS, np.asarray(atoms.cell[:]))


def _warnings(simulation: Simulation, result: Result) -> list[str]:
    """What limits the result."""
    plan, potential = result.plan, simulation.potential
    evaluation = simulation.replicas[0].calculator.evaluation
    assert evaluation is not None
    warnings = guards.domain(simulation.start, potential, evaluation)
    if "berendsen" in (plan.thermostat, plan.barostat):
        warnings.append(
            "berendsen samples no ensemble: fluctuations are too small and heat flows between "
            "modes; use it to reach a temperature or pressure, and average with another one"
        )
    warnings += _temperature(result)
    drift = result.drift
    if drift and abs(drift[0]) > max(LARGE_DRIFT, SIGNIFICANT * drift[1]):
        warnings.append(
            f"the conserved quantity drifts by {drift[0]:.3g} ± {drift[1]:.2g} meV/atom/ps: try a "
            f"shorter timestep than {plan.timestep:g} fs, or dtype=float64"
        )
    warnings += _crossings(simulation, result)
    spacing = plan.interval * plan.timestep
    shown, highest = 1000 / (2 * spacing), highest_frequency(simulation.start)
    if len(result.analysis.frequency) and shown < highest:
        warnings.append(
            f"frames are {spacing:g} fs apart: vibrations above {shown:.3g} THz, which these "
            "elements may have, appear at wrong frequencies in the density of states; use a "
            "smaller interval"
        )
    return warnings


def _temperature(result: Result) -> list[str]:
    """Whether a thermostat had the time to bring the atoms to its temperature."""
    plan, settings = result.plan, result.plan.settings
    known = all("temperature_K" in s.averages for s in result.statistics)
    if plan.thermostat == "none" or settings.temperature_end is not None or not known:
        return []
    value, error = result.mean("temperature_K")
    if error is None or abs(value - settings.temperature) <= SIGNIFICANT * error:
        return []
    return [
        f"the mean temperature is {value:.4g} ± {error:.2g} K, not {settings.temperature:g} K: the "
        f"thermostat ({plan.thermostat}, {plan.thermostat_time:g} fs) needs more steps, or a "
        "longer equilibration"
    ]


def _crossings(simulation: Simulation, result: Result) -> list[str]:
    """Steps of the energy where a pair crosses the angle cutoff, as far as they can be seen."""
    descriptor = simulation.potential.model.config.descriptor
    if not descriptor.has_step:
        return []
    rough = [j for j in result.jumps if j.rms and j.rms[0] > ROUGHNESS * j.rms[1]]
    if not rough:
        return []
    n_atoms = len(result.atoms[0])
    worst = max(rough, key=lambda jumps: jumps.crossing_square)
    crossing, other = (1000 * rms / n_atoms for rms in worst.rms or (0.0, 0.0))
    return [
        f"in {worst.crossings} of {worst.steps} steps pairs of atoms crossed the angle cutoff "
        f"({descriptor.a_rcut:g} Å), where the energy of this model has a step: the conserved "
        f"quantity changed by {crossing:.2g} meV/atom (rms) in those and by {other:.2g} in the "
        f"others; {1000 * worst.crossing_change / n_atoms:.2g} of its change of "
        f"{1000 * worst.change / n_atoms:.2g} meV/atom came in those. smooth_cutoff=0.3 "
        "(--smooth-cutoff 0.3) makes the model smooth there"
    ]
