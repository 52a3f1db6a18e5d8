"""Ring polymers moved by i-PI: its input, its process, and the model inside it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import InputError

from ..base import Event, Progress, silent

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.clients.ipi.process import Status
    from dpa3sim.potential.interface import BatchPotential

    from ..pimd import Settings

QUANTUM, CLASSICAL = "pimd", "classical"


@dataclass(frozen=True)
class Plan:
    """The settings with everything decided for a structure.

    Attributes:
        timestep: fs. interval: steps between frames. fixed: indices of atoms that do not move.
    """

    settings: Settings
    timestep: float
    interval: int
    fixed: tuple[int, ...]


def runs(settings: Settings) -> list[tuple[str, int]]:
    """Prefix of the files and number of beads of each run."""
    classical = [(CLASSICAL, 1)] if settings.classical else []
    return [(QUANTUM, settings.beads), *classical]


def simulate(
    folder: Path,
    atoms: Atoms,
    plan: Plan,
    prefix: str,
    beads: int,
    forcefield: ET.Element,
    progress: Progress = silent,
) -> None:
    """Simulate with i-PI, from the beginning or from where a run was stopped.

    Args:
        folder: of all files. atoms: the structure. plan: the settings with everything decided.
        prefix: of the files. beads: of each ring polymer.
        forcefield: i-PI's element for the source of the forces.
        progress: called with every :class:`Event`.

    Raises:
        See :func:`dpa3sim.clients.ipi.process.simulate`.
    """
    from dpa3sim.clients.ipi import process
    from dpa3sim.clients.ipi.inputs import STRUCTURE, standardized, to_xml, write_structure
    from dpa3sim.clients.ipi.simulate import saved_step
    from dpa3sim.common.files import atomic_write

    steps = plan.settings.steps
    start = saved_step(folder, prefix)
    if start == 0:
        ready = standardized(atoms)
        write_structure(folder / STRUCTURE, ready)
        root = make_input(ready, plan, prefix, beads, forcefield)
        atomic_write(folder / f"{prefix}.xml", to_xml(root))
    elif start < steps:
        progress(Event(prefix, f"continuing after step {start}", start, steps))

    def follow(status: Status) -> None:
        progress(Event(prefix, describe(status, plan.timestep), status.step, status.steps))

    process.simulate(folder, prefix, steps, follow)


def make_input(
    atoms: Atoms, plan: Plan, prefix: str, beads: int, forcefield: ET.Element
) -> ET.Element:
    """The input of i-PI for a structure that :func:`inputs.standardized` returned."""
    from dpa3sim.clients.ipi import inputs

    settings = plan.settings
    npt = settings.ensemble == "npt"
    # i-PI has no classical variant of PIGLET's noise; the classical run uses PILE's.
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
    """The columns of the table, in order; isotopes have their own, since they move differently."""
    from dpa3sim.clients.ipi import inputs
    from dpa3sim.structures import isotopes

    names = [*inputs.PROPERTIES]
    if beads > 1:
        names += inputs.QUANTUM_PROPERTIES
        for name in sorted(set(isotopes.names(list(atoms.symbols), atoms.get_masses()))):
            names += [f"kinetic_cv{{ase}}({name})", f"r_gyration{{angstrom}}({name})"]
    if atoms.pbc.all():
        names += inputs.CELL_PROPERTIES
    return names


def describe(status: Status, timestep: float) -> str:
    """The present step in one line."""
    pace = status.seconds / max(status.done, 1)
    left = round(pace * (status.steps - status.step))
    speed = 86400 / pace * timestep * 1e-6
    temperature, energy = status.row[3], status.row[4]
    return (
        f"step {status.step} of {status.steps}  T {temperature:.1f} K  E {energy:.4f} eV  "
        f"{speed:.3g} ns/day, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
    )


def model_options(potential: BatchPotential) -> dict[str, Any]:
    """Options that make i-PI's PES the same model as ``potential``."""
    from dpa3sim.checkpoints.registry import reference

    options: dict[str, Any] = {
        "model": reference(potential.model),
        "head": potential.model.head,
        "device": str(potential.device),
        "dtype": potential.dtype,
    }
    trained = potential.model.truncate
    for name, usual in (("truncate", trained), ("matmul", "full"), ("smooth_cutoff", None)):
        value = getattr(potential, name, usual)
        if value and value != usual:
            options[name] = value
    return options


def read_gle(path: Path, settings: Settings) -> ET.Element:
    """The thermostat of PIGLET from a file with ``<A>`` and ``<C>``, as GLE4MD writes it for i-PI.

    Raises:
        InputError: the file has no such matrices, or they are for another number of beads or
            another temperature.
    """
    import numpy as np

    try:
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text if text.lstrip().startswith("<sim") else f"<x>{text}</x>")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as XML ({error})") from None
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
            f"{path}: the matrices are for {given / settings.beads:g} K, not for "
            f"{settings.temperature:g} K"
        )
    made = ET.Element("thermostat", {"mode": "nm_gle"})
    made.extend(matrix for matrix in found.values() if matrix is not None)
    return made
