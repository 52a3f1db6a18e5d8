"""Frames of molecular dynamics with the model at a temperature, and at a volume or pressure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import UnphysicalError
from dpa3sim.protocols import md
from dpa3sim.protocols.base import Progress
from dpa3sim.sample.frames import plain, too_close
from dpa3sim.sample.settings import SampleSettings, pressures, temperatures

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Of thermostat and barostat, fs: short simulations must reach their temperature and volume.
THERMOSTAT_TIME, BAROSTAT_TIME = 100.0, 200.0
# Atoms are at rest where the rms of their forces is below this, eV/Å; at 300 K, it is above 0.3.
_REST = 0.1


@dataclass(frozen=True)
class Condition:
    """What is kept in a simulation.

    Attributes:
        temperature: K. pressure: GPa; None keeps the volume.
    """

    temperature: float
    pressure: float | None = None

    def __str__(self) -> str:
        pressure = "" if self.pressure is None else f", {self.pressure:g} GPa"
        return f"{self.temperature:g} K{pressure}"


def conditions(atoms: Atoms, settings: SampleSettings) -> list[Condition]:
    """The conditions that the settings ask for, as far as a structure can have them.

    A structure that is not periodic along all axes has no pressure.
    """
    given: list[float | None] = []
    if atoms.pbc.all():
        given += pressures(settings)
    return [Condition(t, p) for t in temperatures(settings) for p in given or [None]]


@dataclass(frozen=True)
class Trajectory:
    """What is usable of a simulation.

    Attributes:
        frames: without the start. times: of them, fs.
        problem: why it ended early or frames are missing, None if it went well.
    """

    frames: list[Atoms]
    times: list[float]
    problem: str | None


def start_temperature(atoms: Atoms, potential: BatchPotential, temperature: float) -> float:
    """The temperature of random velocities, K, after which a short simulation has the wanted one.

    Of atoms at rest in a minimum, half of the kinetic energy soon becomes potential energy.

    Raises:
        InputError, NonFiniteError: the structure cannot be evaluated.
    """
    forces = potential.evaluate([atoms])[0].forces
    at_rest = bool(np.sqrt(np.mean(forces**2)) < _REST)
    return 2 * temperature if at_rest else temperature


def simulate(
    atoms: Atoms,
    potential: BatchPotential,
    condition: Condition,
    settings: SampleSettings,
    seed: int,
    progress: Progress,
) -> Trajectory:
    """Simulate from random velocities, with Langevin's thermostat, or with the barostat of ``md``.

    Frames from the first one with atoms too close on are left out, and so are those after a
    simulation has exploded.

    Args:
        atoms: the start. potential: the model. condition: what is kept.
        settings: length, interval and least distance. seed: of velocities and thermostat.
        progress: receives the steps.

    Raises:
        InputError, NonFiniteError: the structure cannot be simulated, or not even evaluated.
    """
    from dpa3sim.protocols.dynamics.integrators import degrees_of_freedom, start_velocities
    from dpa3sim.protocols.dynamics.recorders import MemoryRecorder

    timestep = md.check(atoms, md.Settings()).timestep
    interval = max(1, round(settings.md_interval / timestep))
    constant = condition.pressure is None
    dynamics = md.Settings(
        ensemble="nvt" if constant else "npt",
        temperature=condition.temperature,
        pressure=condition.pressure or 0.0,
        steps=interval * int(settings.md_time / (interval * timestep) + 1e-9),
        timestep=timestep,
        thermostat="langevin" if constant else "auto",
        thermostat_time=max(THERMOSTAT_TIME, 20 * timestep),
        barostat_time=max(BAROSTAT_TIME, 20 * timestep),
        seed=seed,
        interval=interval,
        keep_velocities=True,
    )
    moving = atoms.copy()
    degrees = degrees_of_freedom(moving, dynamics.methods[0])
    first = start_temperature(atoms, potential, condition.temperature)
    start_velocities(moving, first, degrees, np.random.default_rng([seed, 1]))
    recorder, problem = MemoryRecorder(), None
    try:
        md.run(moving, potential, dynamics, progress=progress, recorder=recorder)
    except UnphysicalError as error:
        problem = str(error)
    frames, times = [], []
    for frame in list(recorder.frames(0))[1:]:
        time = float(frame.info["time_ps"]) * 1000
        if too_close(frame, settings.min_distance):
            problem = f"atoms are too close after {time:g} fs"
            break
        found = plain(frame)
        found.info = plain(atoms).info
        frames.append(found)
        times.append(time)
    return Trajectory(frames, times, problem)
