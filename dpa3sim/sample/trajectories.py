"""Frames of molecular dynamics with the model at a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpa3sim.common.errors import UnphysicalError
from dpa3sim.protocols import md
from dpa3sim.protocols.base import Progress
from dpa3sim.sample.frames import plain, too_close
from dpa3sim.sample.settings import SampleSettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Of the thermostat, fs: short simulations must reach their temperature.
THERMOSTAT_TIME = 100.0


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


def simulate(
    atoms: Atoms,
    potential: BatchPotential,
    temperature: float,
    settings: SampleSettings,
    seed: int,
    progress: Progress,
) -> Trajectory:
    """Simulate the canonical ensemble (Langevin) from random velocities.

    Frames from the first one with atoms too close on are left out, and so are those after a
    simulation has exploded.

    Args:
        atoms: the start. potential: the model. temperature: K.
        settings: length, interval and least distance. seed: of velocities and thermostat.
        progress: receives the steps.

    Raises:
        InputError, NonFiniteError: the structure cannot be simulated, or not even evaluated.
    """
    from dpa3sim.protocols.dynamics.recorders import MemoryRecorder

    timestep = md.check(atoms, md.Settings()).timestep
    interval = max(1, round(settings.md_interval / timestep))
    dynamics = md.Settings(
        temperature=temperature,
        steps=interval * int(settings.md_time / (interval * timestep) + 1e-9),
        timestep=timestep,
        thermostat="langevin",
        thermostat_time=max(THERMOSTAT_TIME, 20 * timestep),
        seed=seed,
        interval=interval,
    )
    recorder, problem = MemoryRecorder(), None
    try:
        md.run(atoms, potential, dynamics, progress=progress, recorder=recorder)
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
