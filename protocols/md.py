"""Molecular dynamics: trajectories in an ensemble, and what they say.

:func:`run` moves one or several replicas in lockstep, all evaluations of a step in one batch. What
comes out of it streams into a recorder; a run that continues from the recorder's state
does the same as one that was never stopped, to the last bit. The reasons of the choices are in
docs/methods.md#molecular-dynamics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option

from .base import Stage

# ASE takes most of a second to import; `dpa3sim md --help` needs only the settings.
if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

    from .crystals.prepare import Progress
    from .dynamics.recorders import Recorder
    from .dynamics.results import Result

ENSEMBLES = ("nve", "nvt", "npt")
THERMOSTATS = ("auto", "langevin", "nose-hoover", "bussi", "berendsen")
BAROSTATS = ("auto", "mtk", "mtk-full", "berendsen")
# Time constants, fs.
THERMOSTAT_TIMES = {"langevin": 1000.0, "nose-hoover": 100.0, "bussi": 100.0, "berendsen": 100.0}
BAROSTAT_TIME = 1000.0
# Steps, fs: with hydrogen (lighter than this, u) and without.
LIGHT_MASS, LIGHT_TIMESTEP, TIMESTEP = 1.5, 0.5, 1.0
# A thermostat or barostat must be slower than so many steps.
MIN_STEPS_OF_TIME = 10
# Highest frequencies, THz, of structures whose lightest element has at most this mass (u).
HIGHEST_FREQUENCIES = ((1.5, 125.0), (2.5, 95.0), (20.5, 75.0), (math.inf, 50.0))
CONSTRAINTS = ("FixAtoms", "FixCartesian")
EQUILIBRATION_SHARE = 0.2


@dataclass(frozen=True)
class Settings:
    """Options of molecular dynamics."""

    ensemble: str = option("nvt", "what is kept besides the atoms", choices=ENSEMBLES)
    thermostat: str = option(
        "auto",
        "nvt: langevin (auto), nose-hoover, bussi, or berendsen, which is for equilibration "
        "only; npt: nose-hoover with mtk, berendsen with berendsen",
        choices=THERMOSTATS,
    )
    barostat: str = option(
        "auto",
        "npt: mtk (auto) keeps the shape of the cell, mtk-full does not; berendsen is for "
        "equilibration only",
        choices=BAROSTATS,
    )
    temperature: float = option(
        300.0, "temperature; of nve, the initial one", unit="K", minimum=0.0
    )
    temperature_end: float | None = option(
        None, "ramp from temperature to this one", unit="K", minimum=0.0
    )
    ramp_steps: int | None = option(
        None, "length of the ramp [the steps of the first start]", minimum=1
    )
    pressure: float = option(0.0, "pressure of npt", unit="GPa")
    steps: int = option(1000, "steps in all; more of them continue a finished run", minimum=0)
    timestep: float | None = option(None, "time step [1; 0.5 with hydrogen]", unit="fs")
    thermostat_time: float | None = option(
        None, "time constant of the thermostat [langevin 1000, others 100]", unit="fs"
    )
    barostat_time: float | None = option(None, "time constant of the barostat [1000]", unit="fs")
    seed: int = option(0, "random numbers; replica k has seed + k", minimum=0)
    replicas: int = option(1, "independent runs, computed together", minimum=1)
    keep_velocities: bool = option(False, "start with the velocities of the structure")
    interval: int | None = option(
        None,
        "steps between frames of the trajectory [about 10 fs, less for light atoms]",
        minimum=1,
    )
    table_interval: int | None = option(
        None, "steps between rows of the table [as interval]", minimum=1
    )
    checkpoint: int = option(1000, "steps between saved states", minimum=1)
    equilibration: int | None = option(
        None, "first steps, left out of averages [a fifth]", minimum=0
    )
    trajectory_format: str = option(
        "extxyz", "of the trajectory; traj is binary and exact", choices=("extxyz", "traj")
    )
    max_hours: float | None = option(None, "stop in time before this limit", unit="h")

    def __post_init__(self) -> None:
        options_of.validate(self)
        for name in ("timestep", "thermostat_time", "barostat_time", "max_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"option {name} = {value:g} must be positive")
        self._check_ensemble()
        ends = (self.temperature, self.temperature_end)
        if self.ensemble != "nve" and 0.0 in ends:
            raise InputError(
                f"a thermostat needs a temperature above 0 K (ensemble={self.ensemble})"
            )
        if self.ramp_steps is not None and self.temperature_end is None:
            raise InputError("ramp_steps needs temperature_end")

    def _check_ensemble(self) -> None:
        """Raise InputError for a thermostat or barostat that the ensemble cannot have."""
        if self.ensemble == "nve":
            for name in ("thermostat", "barostat"):
                if getattr(self, name) != "auto":
                    raise InputError(f"ensemble=nve has no {name} ({getattr(self, name)})")
            if self.temperature_end is not None:
                raise InputError("ensemble=nve has no temperature_end: nothing controls it")
        if self.ensemble != "npt":
            if self.barostat != "auto":
                raise InputError(
                    f"ensemble={self.ensemble} has no barostat ({self.barostat}); use ensemble=npt"
                )
            if self.pressure:
                raise InputError("a pressure has an effect only with ensemble=npt")
            return
        fitting = "berendsen" if self.barostat == "berendsen" else "nose-hoover"
        if self.thermostat not in ("auto", fitting):
            raise InputError(
                f"barostat={self.barostat.replace('auto', 'mtk')} goes with thermostat={fitting}, "
                f"not {self.thermostat}"
            )

    @property
    def methods(self) -> tuple[str, str]:
        """Thermostat and barostat, ``"none"`` where there is none."""
        if self.ensemble == "nve":
            return "none", "none"
        if self.ensemble == "nvt":
            return ("langevin" if self.thermostat == "auto" else self.thermostat), "none"
        barostat = "mtk" if self.barostat == "auto" else self.barostat
        return ("berendsen" if barostat == "berendsen" else "nose-hoover"), barostat


@dataclass(frozen=True)
class Plan:
    """The settings with everything decided for a structure.

    Attributes:
        timestep, thermostat_time, barostat_time: fs.
        thermostat, barostat: names, ``"none"`` where there is none.
        interval, table_interval: steps.
        degrees: degrees of freedom that have a temperature.
        periodic: whether all three axes are, so that there is a pressure.
    """

    settings: Settings
    timestep: float
    thermostat: str
    barostat: str
    thermostat_time: float
    barostat_time: float
    interval: int
    table_interval: int
    degrees: int
    periodic: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table; their names end in their units."""
        energies = ("potential_eV", "kinetic_eV", "total_eV", "conserved_eV", "temperature_K")
        cell = (
            "pressure_GPa",
            "volume_A3",
            *(f"{name}_A" for name in "abc"),
            *(f"{name}_deg" for name in ("alpha", "beta", "gamma")),
        )
        return ("step", "time_ps", *energies, *(cell if self.periodic else ()))

    def equilibration(self, steps: int) -> int:
        """Steps that averages leave out of so many."""
        return equilibration_steps(self.settings.equilibration, steps)

    def time(self, step: int) -> float:
        """Simulated time, ps."""
        return step * self.timestep / 1000

    def target(self, step: int, ramp: int) -> float:
        """Temperature of the thermostat in a step, K."""
        start, end = self.settings.temperature, self.settings.temperature_end
        if end is None:
            return start
        return start + (end - start) * min(1.0, step / max(1, ramp))


def check(atoms: Atoms, settings: Settings) -> Plan:
    """Decide what the settings leave open.

    Raises:
        InputError: the settings cannot be applied to the structure.
    """
    from .crystals.isotopes import check_masses
    from .dynamics.integrators import degrees_of_freedom

    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    check_masses(atoms)
    _check_constraints(atoms, settings)
    if settings.ensemble == "npt" and not atoms.pbc.all():
        kind = "a molecule" if not atoms.pbc.any() else "not periodic along all three axes"
        raise InputError(f"ensemble=npt needs a structure periodic in 3 axes; this one is {kind}")
    if settings.keep_velocities and not atoms.has("momenta"):
        raise InputError("keep_velocities: the structure has no velocities")
    thermostat, barostat = settings.methods
    degrees = degrees_of_freedom(atoms, thermostat)
    if degrees < 1:
        raise InputError(
            f"{len(atoms)} atom(s) with nothing free to move: no degree of freedom is left once "
            "the whole is at rest"
        )
    light = atoms.get_masses().min() < LIGHT_MASS
    timestep = settings.timestep or (LIGHT_TIMESTEP if light else TIMESTEP)
    thermostat_time = settings.thermostat_time or THERMOSTAT_TIMES.get(thermostat, 0.0)
    barostat_time = settings.barostat_time or BAROSTAT_TIME
    for name, value in (("thermostat_time", thermostat_time), ("barostat_time", barostat_time)):
        used = thermostat != "none" if name == "thermostat_time" else barostat != "none"
        if used:
            check_time(name, value, timestep)
    interval = settings.interval or _frame_interval(atoms, timestep)
    return Plan(
        settings,
        timestep,
        thermostat,
        barostat,
        thermostat_time,
        barostat_time,
        interval,
        settings.table_interval or interval,
        degrees,
        bool(atoms.pbc.all()),
    )


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    n, berendsen = len(atoms), settings.methods[1] == "berendsen"
    # That barostat scales the cell before each step, which takes an evaluation more.
    times = settings.steps * (2 if berendsen else 1) + 1
    note = "" if settings.max_hours is None else f"less if {settings.max_hours:g} h are over before"
    steps = Stage("steps", [n] * settings.replicas, atoms, (times, times), note=note)
    bulk_modulus = Stage("bulk modulus, for the barostat", [n, n], atoms)
    return [bulk_modulus, steps] if berendsen else [steps]


def check_time(name: str, value: float, timestep: float) -> None:
    """Raise InputError for a time constant (fs) too short to be integrated with this step (fs)."""
    if value < MIN_STEPS_OF_TIME * timestep:
        raise InputError(
            f"{name} = {value:g} fs must be at least {MIN_STEPS_OF_TIME} time steps of "
            f"{timestep:g} fs"
        )


def equilibration_steps(given: int | None, steps: int) -> int:
    """Steps that averages of a run of ``steps`` leave out: those asked for, or a share."""
    return int(EQUILIBRATION_SHARE * steps) if given is None else given


def _check_constraints(atoms: Atoms, settings: Settings) -> None:
    for constraint in atoms.constraints:
        name = type(constraint).__name__
        if name not in CONSTRAINTS:
            raise InputError(f"constraint {name}: molecular dynamics knows only FixAtoms")
    if atoms.constraints and settings.ensemble == "npt":
        raise InputError("ensemble=npt cannot have fixed atoms; remove the constraints")


def highest_frequency(atoms: Atoms) -> float:
    """An upper bound of vibrations of such atoms, THz."""
    lightest = float(atoms.get_masses().min())
    return next(nu for mass, nu in HIGHEST_FREQUENCIES if lightest <= mass)


def _frame_interval(atoms: Atoms, timestep: float) -> int:
    """Steps between frames, close enough for the highest frequency, and at most 10 fs."""
    spacing = min(10.0, 1000.0 / (2 * highest_frequency(atoms)))
    return max(1, int(spacing / timestep + 1e-9))


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
    stop: Callable[[], bool] | None = None,
    began: float | None = None,
) -> Result:
    """Simulate; the argument ``atoms`` is not changed.

    Args:
        atoms: where to start; its FixAtoms constraints are honoured.
        potential: the resident model, or one like it.
        settings: options, defaults where None.
        progress: called a few times a second.
        recorder: where trajectory and table go, and the state to continue from if it has one;
            memory where None.
        stop: asked after every step; the state is saved when it says so.
        began: when ``max_hours`` began, by ``time.monotonic()``; now where None.

    Raises:
        InputError: settings and structure do not fit, or the structure has no energy.
        UnphysicalError: the simulation exploded; the message names step and quantity.
        KeyboardInterrupt: ``stop`` said so; the state is saved.
    """
    from .dynamics.recorders import MemoryRecorder
    from .dynamics.replicas import Simulation
    from .dynamics.results import summarise

    began = time.monotonic() if began is None else began
    settings = settings or Settings()
    plan = check(atoms, settings)
    recorder = MemoryRecorder() if recorder is None else recorder
    simulation = Simulation(atoms, potential, plan, recorder, progress, stop, began)
    reason = simulation.run()
    if simulation.interrupted:
        raise KeyboardInterrupt
    return summarise(simulation, reason)
