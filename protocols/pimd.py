"""Path integral molecular dynamics: nuclei as ring polymers, moved by i-PI.

i-PI integrates in a process of its own with the model inside, all beads of a step in one batch.
This module writes its input, follows it, and averages its output. A run that was stopped or killed
continues exactly as if nothing had happened (:mod:`dpa3sim.clients.ipi.simulate`).

Sources: M. Ceriotti et al., J. Chem. Phys. 133, 124104 (2010) (PILE); M. Ceriotti and
D. E. Manolopoulos, Phys. Rev. Lett. 109, 100604 (2012) (PIGLET); M. Rossi et al., J. Chem. Phys.
140, 234116 (2014) (TRPMD); Y. Litman et al., J. Chem. Phys. 161, 062504 (2024) (i-PI 3).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option

from .base import Progress, Stage, silent
from .crystals.isotopes import check_masses
from .dynamics.path_integrals import Result, summarise
from .dynamics.plan import check_time, equilibration_steps
from .dynamics.ring_polymers import QUANTUM, Plan, model_options, read_gle, runs, simulate

# ASE takes most of a second to import; `dpa3sim pimd --help` needs only the settings.
if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

__all__ = ["Result", "Settings", "check", "run", "stages"]
METHODS = ("pile", "piglet", "trpmd")
ENSEMBLES = ("nvt", "npt")
# Time steps, fs: with atoms lighter than this (u), which are hydrogen, and without.
LIGHT_MASS, LIGHT_TIMESTEP, TIMESTEP = 2.5, 0.25, 0.5
FRAME_TIME = 10.0  # fs between frames


@dataclass(frozen=True)
class Settings:
    """Options of path integral molecular dynamics."""

    beads: int = option(32, "beads of each ring polymer; 1 is classical", minimum=1)
    temperature: float = option(300.0, "temperature", unit="K", minimum=1e-3)
    ensemble: str = option("nvt", "what is kept; npt scales the cell", choices=ENSEMBLES)
    method: str = option(
        "pile",
        "pile: white noise on the normal modes; piglet: coloured noise, for which 6 beads are "
        "about enough, needs gle_file; trpmd: for vibrational spectra",
        choices=METHODS,
    )
    pressure: float = option(0.0, "pressure of npt", unit="GPa")
    steps: int = option(
        10000, "total number of steps; more of them continue a finished run", minimum=1
    )
    timestep: float | None = option(
        None, "time step [0.5; 0.25 with hydrogen]", unit="fs", minimum=1e-3
    )
    thermostat_time: float = option(100.0, "time constant of the centroids", unit="fs")
    barostat_time: float = option(200.0, "time constant of the barostat", unit="fs")
    gle_file: str | None = option(None, "piglet: file with the matrices A and C, as i-PI's XML")
    constrain: str | None = option(
        None, "atoms that do not move: elements, or indices from 0 as in 0-3,8 [those of the file]"
    )
    classical: bool = option(False, "also run one bead, and compare")
    equilibration: int | None = option(
        None, "first steps, left out of averages [a fifth]", minimum=0
    )
    interval: int | None = option(
        None, "steps between frames of the trajectories [about 10 fs]", minimum=1
    )
    table_interval: int = option(1, "steps between rows of the table", minimum=1)
    seed: int = option(31415, "of the random numbers", minimum=0)

    def __post_init__(self) -> None:
        options_of.validate(self)
        if self.method == "piglet" and self.gle_file is None:
            raise InputError(
                "method=piglet needs gle_file: the matrices are fitted for each number of beads "
                "and temperature, and published as tables; GLE4MD (gle4md.org, Automatic input "
                "generator, PIGLET, output i-PI) writes them. method=pile needs none"
            )
        if self.method != "piglet" and self.gle_file is not None:
            raise InputError(f"method={self.method} does not use gle_file, which is for piglet")
        if self.pressure and self.ensemble != "npt":
            raise InputError("a pressure has an effect only with ensemble=npt")
        if self.method == "trpmd" and self.ensemble == "npt":
            raise InputError("method=trpmd is dynamics at constant volume; use ensemble=nvt")

    def equilibrated(self, steps: int) -> int:
        """The step from which a run of ``steps`` is averaged."""
        return equilibration_steps(self.equilibration, steps)


def check(atoms: Atoms, settings: Settings) -> Plan:
    """Decide what the settings leave open.

    Raises:
        InputError: the settings do not fit the structure.
    """
    from dpa3sim.clients.ipi.inputs import fixed_atoms

    check_masses(atoms)
    fixed = fixed_atoms(atoms, settings.constrain)
    if settings.ensemble == "npt":
        if not atoms.pbc.all():
            raise InputError("ensemble=npt needs a structure that is periodic along three axes")
        if fixed:
            raise InputError("ensemble=npt scales all atoms with the cell: none can be constrained")
    light = atoms.get_masses().min() < LIGHT_MASS
    timestep = settings.timestep or (LIGHT_TIMESTEP if light else TIMESTEP)
    for name in ("thermostat_time", "barostat_time"):
        check_time(name, getattr(settings, name), timestep)
    if settings.gle_file is not None:
        read_gle(Path(settings.gle_file), settings)
    interval = settings.interval or max(1, round(FRAME_TIME / timestep))
    return Plan(settings, timestep, interval, tuple(fixed))


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    times = settings.steps + 1
    return [
        Stage("steps" if prefix == QUANTUM else prefix, [len(atoms)] * beads, atoms, (times, times))
        for prefix, beads in runs(settings)
    ]


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Result:
    """Run path integral molecular dynamics, and the classical run if asked for.

    Args:
        atoms: start structure; its fixed atoms are kept where they are.
        potential: the model, which i-PI's process loads again.
        settings: options, defaults where None.
        progress: called with every :class:`Event`.
        folder: of i-PI's files, from which a run that was stopped continues; a temporary one
            where None.

    Raises:
        InputError: the settings do not fit the structure.
        NonFiniteError, ConnectionLostError, KeyboardInterrupt: see
            :func:`dpa3sim.clients.ipi.process.simulate`.
    """
    from dpa3sim.clients.ipi.inputs import STRUCTURE, direct_forcefield, pes_file

    settings = settings or Settings()
    plan = check(atoms, settings)
    potential.check(atoms)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="dpa3sim-pimd-") as temporary:
            return run(atoms, potential, settings, progress=progress, folder=Path(temporary))
    values = {"structure": STRUCTURE, **model_options(potential)}
    for prefix, beads in runs(settings):
        forcefield = direct_forcefield(pes_file(), beads, values)
        simulate(folder, atoms, plan, prefix, beads, forcefield, progress or silent)
    return summarise(folder, atoms, plan, potential)
