"""A simulation with everything decided, and what its settings have to satisfy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from ..md import Settings

# Smallest time constant of a thermostat or barostat, in time steps.
MIN_STEPS_OF_TIME = 10
# Highest frequencies, THz, of structures whose lightest element has at most this mass (u).
HIGHEST_FREQUENCIES = ((1.5, 125.0), (2.5, 95.0), (20.5, 75.0), (math.inf, 50.0))
# Share of the steps that averages leave out where the settings do not say how many.
EQUILIBRATION_SHARE = 0.2


@dataclass(frozen=True)
class Plan:
    """The settings with everything decided for a structure.

    Attributes:
        timestep, thermostat_time, barostat_time: fs.
        thermostat, barostat: names, ``"none"`` where there is none.
        interval, table_interval: steps between frames, and between rows of the table.
        degrees: thermal degrees of freedom.
        periodic: whether all three axes are periodic, so that a pressure is defined.
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
        """Columns of the table; their names end in their units."""
        energies = ("potential_eV", "kinetic_eV", "total_eV", "conserved_eV", "temperature_K")
        cell = (
            "pressure_GPa",
            "volume_A3",
            *(f"{name}_A" for name in "abc"),
            *(f"{name}_deg" for name in ("alpha", "beta", "gamma")),
        )
        return ("step", "time_ps", *energies, *(cell if self.periodic else ()))

    def equilibration(self, steps: int) -> int:
        """How many of the first ``steps`` averages leave out."""
        return equilibration_steps(self.settings.equilibration, steps)

    def time(self, step: int) -> float:
        """Simulated time, ps."""
        return step * self.timestep / 1000

    def target(self, step: int, ramp: int) -> float:
        """Temperature of the thermostat in a step, K, with a ramp of so many steps."""
        start, end = self.settings.temperature, self.settings.temperature_end
        if end is None:
            return start
        return start + (end - start) * min(1.0, step / max(1, ramp))


def check_time(name: str, value: float, timestep: float) -> None:
    """Raise InputError for a time constant (fs) that is too short for this time step (fs)."""
    if value < MIN_STEPS_OF_TIME * timestep:
        raise InputError(
            f"{name} = {value:g} fs must be at least {MIN_STEPS_OF_TIME} time steps of "
            f"{timestep:g} fs"
        )


def equilibration_steps(given: int | None, steps: int) -> int:
    """How many of ``steps`` averages leave out: the given number, or a share."""
    return int(EQUILIBRATION_SHARE * steps) if given is None else given


def highest_frequency(atoms: Atoms) -> float:
    """An upper bound of the vibrational frequencies of such atoms, THz."""
    lightest = float(atoms.get_masses().min())
    return next(nu for mass, nu in HIGHEST_FREQUENCIES if lightest <= mass)
