"""Path integral molecular dynamics: nuclei as ring polymers, moved by i-PI.

i-PI integrates, in a process of its own with the model inside, all beads of a step in one batch;
this module says what it is to do, follows it, and averages what it wrote. A run that was stopped or
killed goes on exactly as if nothing had happened (:mod:`dpa3sim.clients.ipi.simulate`).

Sources: M. Ceriotti et al., J. Chem. Phys. 133, 124104 (2010) (PILE); M. Ceriotti and
D. E. Manolopoulos, Phys. Rev. Lett. 109, 100604 (2012) (PIGLET); M. Rossi et al., J. Chem. Phys.
140, 234116 (2014) (TRPMD); Y. Litman et al., J. Chem. Phys. 161, 062504 (2024) (i-PI 3).
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option

from .base import Stage
from .md import check_time, equilibration_steps

# ASE takes most of a second to import; `dpa3sim pimd --help` needs only the settings.
if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.clients.ipi.process import Status
    from dpa3sim.potential.interface import BatchPotential

    from .crystals.prepare import Progress
    from .dynamics.path_integrals import Result

METHODS = ("pile", "piglet", "trpmd")
ENSEMBLES = ("nvt", "npt")
QUANTUM, CLASSICAL = "pimd", "classical"
# Steps, fs: with hydrogen (lighter than this, u) and without.
LIGHT_MASS, LIGHT_TIMESTEP, TIMESTEP = 2.5, 0.25, 0.5
FRAME_TIME = 10.0  # fs between frames
# A ring polymer resolves vibrations up to about this times the temperature (K): beads * T should
# be above h nu / k of the fastest one: 3600 cm^-1 with hydrogen of this mass (u), and as much less
# with a heavier isotope as the root of the masses says.
HYDROGEN_TEMPERATURE, HYDROGEN_FREQUENCY, HYDROGEN_MASS = 5200.0, 3600.0, 1.008


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
    steps: int = option(10000, "steps in all; more of them continue a finished run", minimum=1)
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
            raise InputError(f"gle_file has no use in method={self.method}; it is for piglet")
        if self.pressure and self.ensemble != "npt":
            raise InputError("a pressure has an effect only with ensemble=npt")
        if self.method == "trpmd" and self.ensemble == "npt":
            raise InputError("method=trpmd is dynamics at constant volume; use ensemble=nvt")

    def equilibrated(self, steps: int) -> int:
        """The step from which on averages are taken in a run of ``steps``."""
        return equilibration_steps(self.equilibration, steps)


@dataclass(frozen=True)
class Plan:
    """Settings, with everything that they leave open decided.

    Attributes:
        timestep: fs. interval: steps between frames. fixed: indices of atoms that do not move.
    """

    settings: Settings
    timestep: float
    interval: int
    fixed: tuple[int, ...]


def check(atoms: Atoms, settings: Settings) -> Plan:
    """Decide what the settings leave open.

    Raises:
        InputError: they cannot be applied to the structure.
    """
    from dpa3sim.clients.ipi.inputs import fixed_atoms

    from .crystals.isotopes import check_masses

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
        potential: the model, which the process of i-PI loads again.
        settings: options, defaults where None.
        progress: called with every :class:`Event`.
        folder: where i-PI's files are written, and a run that was stopped continues from; None is
            a temporary one.

    Raises:
        InputError: settings and structure do not fit. NonFiniteError, ConnectionLostError,
            KeyboardInterrupt: see :func:`dpa3sim.clients.ipi.process.simulate`.
    """
    from dpa3sim.clients.ipi.inputs import STRUCTURE, direct_forcefield, pes_file

    from .dynamics.path_integrals import summarise

    settings = settings or Settings()
    plan = check(atoms, settings)
    potential.check(atoms)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="dpa3sim-pimd-") as temporary:
            return run(atoms, potential, settings, progress=progress, folder=Path(temporary))
    values = {"structure": STRUCTURE, **model_options(potential)}
    for prefix, beads in runs(settings):
        forcefield = direct_forcefield(pes_file(), beads, values)
        simulate(folder, atoms, plan, prefix, beads, forcefield, progress)
    return summarise(folder, atoms, plan, potential)


def runs(settings: Settings) -> list[tuple[str, int]]:
    """Prefix and beads of the runs to be made."""
    classical = [(CLASSICAL, 1)] if settings.classical else []
    return [(QUANTUM, settings.beads), *classical]


def simulate(
    folder: Path,
    atoms: Atoms,
    plan: Plan,
    prefix: str,
    beads: int,
    forcefield: ET.Element,
    progress: Progress | None = None,
) -> None:
    """One run of i-PI, from its beginning or from where it was.

    Args:
        folder: with all files. atoms, plan: what is simulated.
        prefix: of the files. beads: of the ring polymers.
        forcefield: where the forces come from.
        progress: called with every :class:`Event`.

    Raises:
        See :func:`dpa3sim.clients.ipi.process.simulate`.
    """
    from dpa3sim.clients.ipi import process
    from dpa3sim.clients.ipi.inputs import STRUCTURE, standardized, to_xml, write_structure
    from dpa3sim.clients.ipi.simulate import saved_step
    from dpa3sim.common.files import atomic_write

    from .crystals.prepare import Event

    steps = plan.settings.steps
    start = saved_step(folder, prefix)
    if start == 0:
        ready = standardized(atoms)
        write_structure(folder / STRUCTURE, ready)
        root = make_input(ready, plan, prefix, beads, forcefield)
        atomic_write(folder / f"{prefix}.xml", to_xml(root))
    elif progress and start < steps:
        progress(Event(prefix, f"continuing after step {start}", start, steps))

    def follow(status: Status) -> None:
        if progress:
            progress(Event(prefix, describe(status, plan.timestep), status.step, status.steps))

    process.simulate(folder, prefix, steps, follow)


def make_input(
    atoms: Atoms, plan: Plan, prefix: str, beads: int, forcefield: ET.Element
) -> ET.Element:
    """The input of i-PI for a structure that :func:`inputs.standardized` returned."""
    from dpa3sim.clients.ipi import inputs

    settings = plan.settings
    npt = settings.ensemble == "npt"
    # The noise of path integrals has no classical limit that i-PI knows under the same name.
    thermostat = inputs.pile("pile_l", settings.thermostat_time)
    if settings.method == "trpmd":
        thermostat = inputs.pile("pile_g", settings.thermostat_time)
    elif settings.method == "piglet" and beads > 1:
        thermostat = read_gle(Path(settings.gle_file or ""), settings)
    barostat = [inputs.barostat(settings.barostat_time)] if npt else []
    move = inputs.dynamics(settings.ensemble, plan.timestep, *barostat, thermostat)
    names = columns(atoms, beads)
    return inputs.simulation(
        settings.steps,
        forcefield,
        [
            inputs.properties(names, settings.table_interval, flush=0),
            inputs.trajectory("positions", "pos", plan.interval, flush=0),
            inputs.trajectory("x_centroid", "centroid", plan.interval, flush=0),
        ],
        [
            inputs.initialize(beads, inputs.STRUCTURE, settings.temperature),
            inputs.motion("dynamics", move, plan.fixed),
            inputs.ensemble(settings.temperature, settings.pressure if npt else None),
        ],
        seed=settings.seed,
        prefix=prefix,
    )


def columns(atoms: Atoms, beads: int) -> list[str]:
    """Properties that the table has, in order."""
    from dpa3sim.clients.ipi import inputs

    names = [*inputs.PROPERTIES]
    if beads > 1:
        names += inputs.QUANTUM_PROPERTIES
        for element in sorted(set(atoms.symbols)):
            names += [f"kinetic_cv{{ase}}({element})", f"r_gyration{{angstrom}}({element})"]
    if atoms.pbc.all():
        names += inputs.CELL_PROPERTIES
    return names


def describe(status: Status, timestep: float) -> str:
    """One line about how far a run is."""
    pace = status.seconds / max(status.done, 1)
    left = round(pace * (status.steps - status.step))
    speed = 86400 / pace * timestep * 1e-6
    temperature, energy = status.row[3], status.row[4]
    return (
        f"step {status.step} of {status.steps}  T {temperature:.1f} K  E {energy:.4f} eV  "
        f"{speed:.3g} ns/day, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
    )


def model_options(potential: BatchPotential) -> dict[str, Any]:
    """What makes the PES of i-PI the same model as ``potential``."""
    from dpa3sim.checkpoints.registry import reference

    options: dict[str, Any] = {
        "model": reference(potential.model),
        "head": potential.model.head,
        "device": str(potential.device),
        "dtype": potential.dtype,
    }
    for name, usual in (("truncate", "deepmd"), ("matmul", "full"), ("smooth_cutoff", None)):
        value = getattr(potential, name, usual)
        if value and value != usual:
            options[name] = value
    return options


def read_gle(path: Path, settings: Settings) -> ET.Element:
    """The thermostat of PIGLET from a file with ``<A>`` and ``<C>``, as GLE4MD writes for i-PI.

    Raises:
        InputError: no such matrices, or for other beads or another temperature.
    """
    import numpy as np

    try:
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text if text.lstrip().startswith("<sim") else f"<x>{text}</x>")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no XML ({error})") from None
    found = {name: root.find(f".//{name}") for name in ("A", "C")}
    arrays = {}
    for name, matrix in found.items():
        if matrix is None or not matrix.text:
            raise InputError(f"{path}: has no <{name}>; GLE4MD's output for i-PI has A and C")
        try:
            shape = [int(n) for n in matrix.get("shape", "").strip("() ").split(",")]
            values = [float(x) for x in matrix.text.strip(" \n\t[]").replace(",", " ").split()]
            arrays[name] = np.array(values).reshape(shape)
        except ValueError as error:
            raise InputError(f"{path}: <{name}> cannot be read ({error})") from None
        if len(shape) != 3 or shape[0] != settings.beads or shape[1] != shape[2]:
            raise InputError(
                f"{path}: <{name}> has the shape {tuple(shape)}; {settings.beads} beads need "
                f"({settings.beads}, n, n)"
            )
    # The centroids are thermostatted as classical particles at beads * T.
    wanted, unit = settings.beads * settings.temperature, found["C"].get("units")  # type: ignore[union-attr]
    given = float(arrays["C"][0, 0, 0])
    if unit == "kelvin" and abs(given / wanted - 1) > 1e-6:
        raise InputError(
            f"{path}: is for {given / settings.beads:g} K, not for {settings.temperature:g} K"
        )
    made = ET.Element("thermostat", {"mode": "nm_gle"})
    made.extend(matrix for matrix in found.values() if matrix is not None)
    return made
