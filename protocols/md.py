"""Molecular dynamics: trajectories in an ensemble, and averages over them.

:func:`run` moves one or several replicas in lockstep, with all evaluations of a step in one batch.
Frames and rows stream into a recorder; a run that continues from the recorder's state reproduces
one that was never stopped, to the last bit. The choices are explained in
docs/methods.md#molecular-dynamics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option
from dpa3sim.potential.interface import rigidity_of

from .base import Progress, Stage, silent
from .crystals.isotopes import check_masses
from .dynamics.plan import Plan, check_time, highest_frequency
from .dynamics.results import Result

# ASE takes most of a second to import; `dpa3sim md --help` needs only the settings.
if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential, PotentialLike

    from .dynamics.recorders import Recorder

__all__ = ["Result", "Settings", "check", "run", "stages"]
ENSEMBLES = ("nve", "nvt", "npt")
THERMOSTATS = ("auto", "langevin", "nose-hoover", "bussi", "berendsen")
BAROSTATS = ("auto", "mtk", "mtk-full", "berendsen")
# Time constants, fs.
THERMOSTAT_TIMES = {"langevin": 1000.0, "nose-hoover": 100.0, "bussi": 100.0, "berendsen": 100.0}
BAROSTAT_TIME = 1000.0
# Time steps, fs: with atoms lighter than this (u), which are hydrogen, and without.
LIGHT_MASS, LIGHT_TIMESTEP, TIMESTEP = 1.5, 0.5, 1.0
CONSTRAINTS = ("FixAtoms", "FixCartesian")


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
    steps: int = option(
        1000, "total number of steps; more of them continue a finished run", minimum=0
    )
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
    novelty_keep: float | None = option(
        None,
        "with --uncertainty, write frames to uncertain.extxyz while the novelty of an atom "
        "exceeds this: the first one, and those of the trajectory",
        minimum=0.0,
    )
    novelty_stop: float | None = option(
        None,
        "with --uncertainty, stop when the novelty of an atom exceeds this; a higher limit "
        "continues",
        minimum=0.0,
    )

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
                raise InputError(
                    "ensemble=nve has no temperature_end: nothing controls the temperature"
                )
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
    def needs_uncertainty(self) -> bool:
        """Whether an option has an effect only with an uncertainty."""
        return self.novelty_keep is not None or self.novelty_stop is not None

    @property
    def methods(self) -> tuple[str, str]:
        """Names of thermostat and barostat, ``"none"`` where there is none."""
        if self.ensemble == "nve":
            return "none", "none"
        if self.ensemble == "nvt":
            return ("langevin" if self.thermostat == "auto" else self.thermostat), "none"
        barostat = "mtk" if self.barostat == "auto" else self.barostat
        return ("berendsen" if barostat == "berendsen" else "nose-hoover"), barostat


def check(atoms: Atoms, settings: Settings) -> Plan:
    """Decide what the settings leave open.

    Raises:
        InputError: the settings do not fit the structure.
    """
    from .dynamics.integrators import degrees_of_freedom

    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    check_masses(atoms)
    _check_constraints(atoms, settings)
    if settings.ensemble == "npt" and not atoms.pbc.all():
        kind = "a molecule" if not atoms.pbc.any() else "not periodic along all three axes"
        raise InputError(
            f"ensemble=npt needs a structure periodic along three axes; this one is {kind}"
        )
    if settings.keep_velocities and not atoms.has("momenta"):
        raise InputError("keep_velocities: the structure has no velocities")
    thermostat, barostat = settings.methods
    degrees = degrees_of_freedom(atoms, thermostat)
    if degrees < 1:
        raise InputError(
            f"{len(atoms)} atom(s) have no degree of freedom left at zero total momentum; "
            "free more atoms"
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


def check_uncertainty(potential: PotentialLike, settings: Settings) -> None:
    """Raise InputError for options that need an uncertainty, if the model has none."""
    if settings.needs_uncertainty and rigidity_of(potential) is None:
        name = "novelty_keep" if settings.novelty_keep is not None else "novelty_stop"
        raise InputError(f"option {name} needs an uncertainty of the model: --uncertainty FILE")


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    n, berendsen = len(atoms), settings.methods[1] == "berendsen"
    # That barostat scales the cell before each step, which takes another evaluation.
    times = settings.steps * (2 if berendsen else 1) + 1
    note = "" if settings.max_hours is None else f"fewer if {settings.max_hours:g} h end earlier"
    steps = Stage("steps", [n] * settings.replicas, atoms, (times, times), note=note)
    bulk_modulus = Stage("bulk modulus, for the barostat", [n, n], atoms)
    return [bulk_modulus, steps] if berendsen else [steps]


def _check_constraints(atoms: Atoms, settings: Settings) -> None:
    for constraint in atoms.constraints:
        name = type(constraint).__name__
        if name not in CONSTRAINTS:
            raise InputError(f"constraint {name}: molecular dynamics supports only FixAtoms")
    if atoms.constraints and settings.ensemble == "npt":
        raise InputError("ensemble=npt cannot have fixed atoms; remove the constraints")


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
        atoms: the start structure; its FixAtoms constraints are honoured.
        potential: the resident model, or one like it.
        settings: options, defaults where None.
        progress: called a few times a second.
        recorder: stores trajectory, table and state, and the run continues from its state if it
            has one; everything stays in memory where None.
        stop: asked after every step; if it returns True, the run saves its state and ends.
        began: when ``max_hours`` began, by ``time.monotonic()``; now where None.

    Raises:
        InputError: the settings do not fit the structure, or the structure has no energy.
        UnphysicalError: the simulation exploded; the message names step and quantity.
        KeyboardInterrupt: ``stop`` returned True; the state is saved.
    """
    from .dynamics.recorders import MemoryRecorder
    from .dynamics.replicas import Simulation
    from .dynamics.summary import summarise

    began = time.monotonic() if began is None else began
    settings = settings or Settings()
    check_uncertainty(potential, settings)
    plan = check(atoms, settings)
    recorder = MemoryRecorder() if recorder is None else recorder
    simulation = Simulation(atoms, potential, plan, recorder, progress or silent, stop, began)
    reason = simulation.run()
    if simulation.interrupted:
        raise KeyboardInterrupt
    return summarise(simulation, reason)
