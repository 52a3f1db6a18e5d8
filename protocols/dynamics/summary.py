"""A recorded simulation read back, averaged and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from ase import units

from dpa3sim.potential.evaluation import NEW

from ..base import Event
from ..crystals import guards
from .plan import highest_frequency
from .results import Result
from .statistics import statistics
from .trajectories import Analyser, Analysis, Frame

if TYPE_CHECKING:
    from ase import Atoms

    from .replicas import Simulation

# A warning is given of a drift (meV/atom/ps) beyond this, if it is so many times its error.
LARGE_DRIFT, SIGNIFICANT = 0.1, 3.0
# Crossings of the angle cutoff are reported if steps with them are so many times rougher.
ROUGHNESS = 2.0
# ASE's velocities in Å/ps.
PER_PS = 1000 * units.fs


def summarise(simulation: Simulation, reason: str | None) -> Result:
    """Read back what a simulation recorded, average and judge it.

    Args:
        simulation: finished or interrupted.
        reason: why it ended before its last step; None if it did not.

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
        settings=settings,
        plan=plan,
        atoms=finals,
        n_steps=done,
        converged=done >= settings.steps,
        reasons=(reason or f"all {done} steps are done",),
        statistics=tables,
        jumps=tuple(replica.jumps for replica in simulation.replicas),
        watches=tuple(replica.watch for replica in simulation.replicas),
        analysis=_analyse(simulation, equilibration),
        equilibration=equilibration,
    )
    return replace(result, warnings=tuple(guards.afterwards(_warnings, simulation, result)))


def _final(atoms: Atoms) -> Atoms:
    """A copy with energy and forces, without calculator and the constraint of the thermostat."""
    from ase.calculators.singlepoint import SinglePointCalculator

    final = atoms.copy()
    final.set_constraint([c for c in atoms.constraints if type(c).__name__ != "FixCom"])
    results = {k: atoms.calc.results[k] for k in ("energy", "forces")}
    if "stress" in atoms.calc.results:
        results["stress"] = atoms.calc.results["stress"]
    final.calc = SinglePointCalculator(final, **results)
    return final


def _analyse(simulation: Simulation, equilibration: int) -> Analysis:
    """Analyse the frames of all replicas after equilibration."""
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
    """What impairs the result."""
    plan, potential = result.plan, simulation.potential
    evaluation = simulation.replicas[0].calculator.evaluation
    assert evaluation is not None
    warnings = guards.domain(simulation.start, potential, evaluation)
    warnings += _new(result)
    if "berendsen" in (plan.thermostat, plan.barostat):
        warnings.append(
            "berendsen samples no ensemble: fluctuations are too small, and heat flows between "
            "modes; use it to reach a temperature or pressure, and another method for averages"
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


def _new(result: Result) -> list[str]:
    """A warning if the simulation came to surroundings that are new to the model."""
    worst = max(result.watches, key=lambda watch: watch.largest)
    if worst.largest <= NEW:
        return []
    return [
        f"the model was not fitted to what happened: the novelty of atom {worst.atom} was "
        f"{worst.largest:.3g} in step {worst.step} (above {NEW:g} it extrapolates)"
    ]


def _temperature(result: Result) -> list[str]:
    """A warning if the thermostat has not brought the atoms to its temperature."""
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
    """A warning if pairs that cross the angle cutoff visibly change the conserved quantity."""
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
        f"others; {1000 * worst.crossing_change / n_atoms:.2g} of its total change of "
        f"{1000 * worst.change / n_atoms:.2g} meV/atom occurred in those. smooth_cutoff=0.3 "
        "(--smooth-cutoff 0.3) makes the model smooth there"
    ]
