"""Input files of i-PI: the atoms, the motion, and the source of the forces.

All elements are documented by i-PI. Numbers in all files that i-PI writes have 17 digits, which a
float64 needs to be read back exactly from a checkpoint.
"""

from __future__ import annotations

import hashlib
import re
import socket
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.clients.ipi import wire
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, validate

if TYPE_CHECKING:
    from ase import Atoms

INPUT, STRUCTURE, RUN_SCRIPT = "input.xml", "init.extxyz", "run.sh"
PREFIX = "sim"
FORCEFIELD = "dpa3"
FLOAT_FORMAT = "%25.16e"
TRANSPORTS = ("unix", "inet", "shm", "ffdirect")
MOTIONS = ("nve", "nvt", "pimd", "trpmd", "npt", "minimize", "phonons")
ONE_BEAD = ("nvt", "minimize", "phonons")

# i-PI's poll loop takes what has arrived; with much to send it must wait for all beads, or a
# batch is split (docs/ipi.md#batches).
LATENCY, LONG_LATENCY, LARGE_BATCH = 1e-4, 5e-3, 2000
# Space around atoms along non-periodic axes, Å: i-PI needs a cell, which has no effect.
MARGIN = 10.0
# Damping of TRPMD, and nearly optimal for PILE: Rossi et al., J. Chem. Phys. 140, 234116 (2014).
PILE_LAMBDA = 0.5

# Energies in eV with the constants of ASE, which the forces use as well; those of i-PI differ by
# 1e-7.
PROPERTIES = (
    "step",
    "time{picosecond}",
    "conserved{ase}",
    "temperature{kelvin}",
    "potential{ase}",
)
QUANTUM_PROPERTIES = ("kinetic_cv{ase}", "kinetic_td{ase}")
CELL_PROPERTIES = ("pressure_cv{gigapascal}", "volume{angstrom3}")


@dataclass(frozen=True)
class InputSettings:
    """What i-PI should do, for :func:`write_inputs`."""

    motion: str = option("pimd", "how the atoms move", choices=MOTIONS)
    nbeads: int = option(1, "number of beads of the ring polymers; 1 is classical", minimum=1)
    temperature: float = option(300.0, "temperature", unit="K", minimum=0.0)
    pressure: float = option(0.0, "pressure, for npt", unit="GPa")
    timestep: float = option(0.25, "time step", unit="fs", minimum=1e-3)
    steps: int = option(1000, "total number of steps", minimum=1)
    transport: str = option("unix", "how i-PI receives the forces", choices=TRANSPORTS)
    address: str | None = option(None, "name of the unix socket, or host for inet")
    port: int | None = option(None, "port for inet [a free port]", minimum=1)
    thermostat_time: float = option(
        100.0, "time constant of the thermostat", unit="fs", minimum=1e-3
    )
    barostat_time: float = option(200.0, "time constant of the barostat", unit="fs", minimum=1e-3)
    constrain: str | None = option(
        None, "atoms that do not move: elements, or indices from 0 such as 0-3,8 [as in the file]"
    )
    seed: int = option(31415, "seed of the random numbers", minimum=0)

    def __post_init__(self) -> None:
        validate(self)
        if self.nbeads > 1 and self.motion in ONE_BEAD:
            hint = "; use --motion pimd for beads" if self.motion == "nvt" else ""
            raise InputError(f"motion {self.motion} has one bead, not {self.nbeads}{hint}")
        if self.motion != "minimize" and self.motion != "phonons" and self.temperature <= 0:
            raise InputError(f"temperature = {self.temperature:g} K must be positive")


# -- elements ------------------------------------------------------------------------------------


def element(tag: str, /, *content: ET.Element | str | float, **attributes: Any) -> ET.Element:
    """An XML element; anything in ``content`` that is not an element becomes its text."""
    made = ET.Element(tag, {key: str(value) for key, value in attributes.items()})
    for item in content:
        if isinstance(item, ET.Element):
            made.append(item)
        else:
            made.text = f" {item:.17g} " if isinstance(item, float) else f" {item} "
    return made


def to_xml(root: ET.Element) -> str:
    """The text of an input file."""
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def parameters(values: Mapping[str, Any]) -> ET.Element:
    """The ``<parameters>`` of a forcefield; values of None are left out.

    Raises:
        InputError: a value with a comma or a brace, which i-PI cannot read.
    """
    for name, value in values.items():
        if value is not None and re.search(r"[,{}\n]", str(value)):
            raise InputError(
                f"{name} = {str(value)!r}: i-PI's inputs do not allow , {{ or }} there"
            )
    text = ", ".join(f"{name}: {value}" for name, value in values.items() if value is not None)
    return element("parameters", f"{{ {text} }}")


def read_parameters(text: str) -> dict[str, str]:
    """The values in a ``<parameters>``."""
    return wire.parse_parameters(text.strip().strip("{}"))


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def socket_forcefield(
    transport: str, address: str, port: int | None, numbers: np.ndarray, nbeads: int
) -> ET.Element:
    """Forces from clients that connect; one message has all beads and the order of the atoms."""
    made = element("ffsocket", name=FORCEFIELD, mode=transport, pbc="false")
    made.append(element("address", address))
    if transport == "inet":
        made.append(element("port", str(port)))
    if nbeads > 1:
        made.append(element("batch_size", str(nbeads)))
    large = len(numbers) * nbeads >= LARGE_BATCH
    made.append(element("latency", LONG_LATENCY if large else LATENCY))
    made.append(element("timeout", "0"))
    made.append(parameters({wire.ORDER_PARAMETER: wire.order_hash(numbers)}))
    return made


def pes_file() -> Path:
    """The file of our potential for ``<ffdirect>``; it is not loaded."""
    spec = find_spec("dpa3sim.clients.ipi.pes")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve()


def direct_forcefield(pes: Path, nbeads: int, values: Mapping[str, Any]) -> ET.Element:
    """Forces from a potential in i-PI's own process, all beads in one call."""
    return element(
        "ffdirect",
        element("pes", "custom"),
        element("pes_path", str(pes)),
        element("batch_size", str(nbeads)),
        parameters(values),
        name=FORCEFIELD,
        pbc="false",
    )


def thermostat(mode: str, tau: float, *content: ET.Element) -> ET.Element:
    """A thermostat with its time constant, fs."""
    return element("thermostat", element("tau", tau, units="femtosecond"), *content, mode=mode)


def pile(mode: str, tau: float, pile_lambda: float = PILE_LAMBDA) -> ET.Element:
    """PILE: ``pile_l`` has local thermostats, ``pile_g`` a global one for the centroids."""
    return thermostat(mode, tau, element("pile_lambda", pile_lambda))


def barostat(tau: float) -> ET.Element:
    """Isotropic barostat of Bussi, Zykova-Timan and Parrinello; its thermostat is twice as fast."""
    time = element("tau", tau, units="femtosecond")
    return element("barostat", time, thermostat("langevin", tau / 2), mode="isotropic")


def dynamics(mode: str, timestep: float, *content: ET.Element) -> ET.Element:
    """The ``<dynamics>`` of a motion, time step in fs."""
    return element(
        "dynamics", *content, element("timestep", timestep, units="femtosecond"), mode=mode
    )


def motion(kind: str, content: ET.Element, fixed: Sequence[int] = ()) -> ET.Element:
    """A ``<motion>``; with fixed atoms, the centre of mass is not fixed."""
    made = element("motion", mode=kind)
    if fixed:
        made.append(element("fixcom", "False"))
        made.append(element("fixatoms", str(list(fixed))))
    made.append(content)
    return made


def initialize(nbeads: int, structure: str, temperature: float | None) -> ET.Element:
    """Positions and cell from a file; thermal velocities at a temperature in K, or none."""
    file = element("file", structure, mode="ase", units="angstrom")
    made = element("initialize", file, nbeads=nbeads)
    if temperature is not None:
        made.append(element("velocities", temperature, mode="thermal", units="kelvin"))
    return made


def ensemble(temperature: float, pressure: float | None = None) -> ET.Element:
    """Temperature, K, and pressure, GPa."""
    made = element("ensemble", element("temperature", temperature, units="kelvin"))
    if pressure is not None:
        made.append(element("pressure", pressure, units="gigapascal"))
    return made


def properties(names: Sequence[str], stride: int = 1, **attributes: Any) -> ET.Element:
    """The table of properties, ``PREFIX.out``."""
    text = f"[ {', '.join(names)} ]"
    return element("properties", text, filename="out", stride=stride, **attributes)


def trajectory(what: str, filename: str, stride: int, **attributes: Any) -> ET.Element:
    """A trajectory in extxyz, which has ASE's units."""
    return element("trajectory", what, filename=filename, stride=stride, format="ase", **attributes)


def simulation(
    steps: int,
    forcefield: ET.Element,
    outputs: Sequence[ET.Element],
    system: Sequence[ET.Element],
    *,
    seed: int,
    prefix: str = PREFIX,
    mode: str = "md",
) -> ET.Element:
    """A complete input with one system.

    i-PI's threads are off: with one system they bring no advantage, and they would call a potential
    in the same process from changing threads.
    """
    forces = element("forces", element("force", forcefield=forcefield.get("name")))
    return element(
        "simulation",
        element("output", *outputs, prefix=prefix),
        element("total_steps", str(steps)),
        element("prng", element("seed", str(seed))),
        forcefield,
        element("system", system[0], forces, *system[1:]),
        mode=mode,
        verbosity="medium",
        threading="False",
        floatformat=FLOAT_FORMAT,
    )


# -- atoms ---------------------------------------------------------------------------------------


def standardized(atoms: Atoms) -> Atoms:
    """The structure in i-PI's orientation: a along x, b in the xy plane, right-handed, with a cell.

    i-PI's cells are triangular and have three dimensions. Positions rotate with the cell; axes
    without periodicity get vectors that enclose the atoms. Masses and the extra inputs of models
    are kept, constraints are not (see :func:`fixed_atoms`).
    """
    from ase import Atoms as AseAtoms

    cell = _full_cell(atoms)
    triangular, rotation = cell.standard_form()
    made = AseAtoms(
        atoms.numbers, atoms.positions @ rotation.T, cell=triangular[:], pbc=atoms.pbc.copy()
    )
    if atoms.has("masses"):
        made.set_masses(atoms.get_masses())
    for key in ("charge", "spin", "charge_spin", "fparam", "aparam"):
        if key in atoms.info:
            made.info[key] = atoms.info[key]
    if "aparam" in atoms.arrays:
        made.set_array("aparam", atoms.arrays["aparam"])
    return made


def _full_cell(atoms: Atoms) -> Any:
    """Three right-handed lattice vectors; those along non-periodic axes are chosen freely."""
    from ase.cell import Cell

    vectors = np.array(atoms.cell.complete())
    for axis in np.flatnonzero(~np.asarray(atoms.pbc)):
        others = vectors[(axis + 1) % 3], vectors[(axis + 2) % 3]
        normal = np.cross(*others)
        normal /= np.linalg.norm(normal)
        heights = atoms.positions @ normal
        height = max(np.ptp(heights) + 2 * MARGIN, float(abs(atoms.cell[axis] @ normal)))
        vectors[axis] = height * normal
    if np.linalg.det(vectors) < 0:
        vectors = -vectors  # the same lattice, right-handed
    return Cell(vectors)


def fixed_atoms(atoms: Atoms, constrain: str | None) -> list[int]:
    """Indices of the atoms that do not move, ascending.

    Args:
        atoms: the structure, whose ``FixAtoms`` are used if ``constrain`` is None.
        constrain: elements or indices from 0, ranges inclusive, separated by commas or blanks;
            ``none`` frees all atoms.

    Raises:
        InputError: a word is not valid, an element is not there, an index is out of range, all
            atoms are fixed, or i-PI does not support a constraint of the structure.
    """
    if constrain is None:
        found = _fixed_in(atoms)
    elif constrain.strip().lower() == "none":
        found = set()
    else:
        found = set()
        for word in re.split(r"[,\s]+", constrain.strip()):
            found |= _named(atoms, word)
    if found and len(found) == len(atoms):
        raise InputError("all atoms are constrained; nothing would move")
    return sorted(found)


def _fixed_in(atoms: Atoms) -> set[int]:
    from ase.constraints import FixAtoms

    found: set[int] = set()
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise InputError(
                f"the structure has a constraint {type(constraint).__name__}; i-PI can only fix "
                "whole atoms: select them with --constrain, or use --constrain none"
            )
        found |= {int(i) for i in constraint.get_indices()}
    return found


def _named(atoms: Atoms, word: str) -> set[int]:
    """The indices that one word of ``constrain`` selects."""
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < len(atoms):
            raise InputError(f"constrain: {word} is not within 0 ... {len(atoms) - 1}")
        return set(range(first, last + 1))
    found = {i for i, symbol in enumerate(atoms.symbols) if symbol == word}
    if not found:
        known = ", ".join(sorted(set(atoms.symbols)))
        raise InputError(f"constrain: {word!r} is neither an index nor one of the elements {known}")
    return found


def write_structure(path: Path, atoms: Atoms) -> None:
    """Write the file that i-PI and the client both read."""
    from ase.io import write

    columns = ["symbols", "positions"]
    columns += [name for name in ("masses", "aparam") if atoms.has(name)]
    write(path, atoms, format="extxyz", columns=columns, write_results=False)


# -- whole calculations --------------------------------------------------------------------------


def write_inputs(
    folder: Path, atoms: Atoms, settings: InputSettings, model: Mapping[str, Any]
) -> None:
    """Write ``input.xml``, ``init.extxyz`` and ``run.sh``.

    Args:
        folder: the output folder; created if it does not exist.
        atoms: the structure.
        settings: what i-PI should do.
        model: options of the model that are not the default: model, head, device, dtype ...

    Raises:
        InputError: npt lacks three periodic axes, or the input cannot express a setting.
    """
    if settings.motion == "npt" and not all(atoms.pbc):
        raise InputError("npt needs a structure that is periodic along all three axes")
    fixed = fixed_atoms(atoms, settings.constrain)
    if fixed and settings.motion == "npt":
        raise InputError("npt scales all atoms with the cell; atoms cannot be constrained")
    folder.mkdir(parents=True, exist_ok=True)
    ready = standardized(atoms)
    if settings.transport == "ffdirect":
        values = {"structure": STRUCTURE, **model}
        forcefield = direct_forcefield(pes_file(), settings.nbeads, values)
        address, port = "", None
    else:
        address, port = _address(folder, settings)
        forcefield = socket_forcefield(
            settings.transport, address, port, ready.numbers, settings.nbeads
        )
    root = _simulation(settings, forcefield, len(ready), fixed)
    write_structure(folder / STRUCTURE, ready)
    (folder / INPUT).write_text(to_xml(root), encoding="utf-8")
    script = folder / RUN_SCRIPT
    script.write_text(_run_script(settings, address, port, model), encoding="utf-8")
    script.chmod(0o755)


def _simulation(
    settings: InputSettings, forcefield: ET.Element, natoms: int, fixed: Sequence[int]
) -> ET.Element:
    """The input for one of the motions."""
    s = settings
    moves = s.motion not in ("minimize", "phonons")
    start = initialize(s.nbeads, STRUCTURE, s.temperature if moves else None)
    names = PROPERTIES + (QUANTUM_PROPERTIES if s.nbeads > 1 else ()) + CELL_PROPERTIES
    outputs = [properties(names), trajectory("x_centroid", "centroid", 10)]
    outputs += [trajectory("positions", "pos", 10)] if s.nbeads > 1 else []
    pressure = s.pressure if s.motion == "npt" else None
    system = [start, motion("dynamics", _dynamics(s), fixed), ensemble(s.temperature, pressure)]
    steps, mode = s.steps, "md"
    if not moves:
        mode = "static"
        outputs = [properties(("step", "potential{ase}"))]
        outputs += [trajectory(what, what[:3], 1) for what in ("positions", "forces")]
        system = [start, _static(s.motion, fixed)]
    if s.motion == "phonons":
        steps = max(s.steps, 6 * natoms + 10)  # it ends by itself, after 6 N + 1
        outputs = outputs[:1]
    outputs.append(element("checkpoint", filename="checkpoint", stride=100, overwrite="True"))
    return simulation(steps, forcefield, outputs, system, seed=s.seed, mode=mode)


def _dynamics(s: InputSettings) -> ET.Element:
    classical = s.nbeads == 1
    if s.motion == "nve":
        return dynamics("nve", s.timestep)
    if s.motion == "trpmd":
        return dynamics("nvt", s.timestep, pile("pile_g", s.thermostat_time))
    local = thermostat("svr", s.thermostat_time) if classical else pile("pile_l", s.thermostat_time)
    if s.motion == "npt":
        return dynamics("npt", s.timestep, barostat(s.barostat_time), local)
    return dynamics("nvt", s.timestep, local)


def _static(kind: str, fixed: Sequence[int]) -> ET.Element:
    """Minimisation to 1e-3 eV/Å, or phonons by finite differences of 0.01 bohr.

    BFGS with a trust radius: the line searches of i-PI's other minimizers get stuck with an
    uphill direction (measured with lbfgs, on water).
    """
    if kind == "minimize":
        tolerances = element(
            "tolerances",
            element("energy", 1e-6, units="electronvolt"),
            element("force", 1e-3, units="ev/ang"),
            element("position", 1e-3, units="angstrom"),
        )
        return motion("minimize", element("optimizer", tolerances, mode="bfgstrm"), fixed)
    content = element(
        "vibrations",
        element("pos_shift", 0.01),
        element("energy_shift", 0.00095),
        element("prefix", "phonons"),
        element("asr", "crystal" if not fixed else "none"),
        mode="fd",
    )
    return motion("vibrations", content, fixed)


def _address(folder: Path, settings: InputSettings) -> tuple[str, int | None]:
    """Socket name, or host and port, that no other calculation uses.

    The name of a unix socket is derived from the folder, so that two calculations never share one,
    and the same calculation finds its own again.
    """
    if settings.transport != "inet":
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        return settings.address or f"dpa3sim_{name}", None
    host = settings.address or "localhost"
    if settings.port is not None:
        return host, settings.port
    return host, free_port()


_SCRIPT = """\
#!/bin/sh
# Runs i-PI on input.xml, or continues from RESTART if it exists{comment}
cd "$(dirname "$0")" || exit 2
input={input}
if [ -f RESTART ]; then input=RESTART; fi
"""
_SCRIPT_DIRECT = """\
exec ${{IPI:-i-pi}} "$input"
"""
_SCRIPT_SOCKET = """\
${{IPI:-i-pi}} "$input" > ipi.log 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null' INT TERM
${{DPA3SIM:-dpa3sim}} ipi {arguments}
code=$?
# i-PI would wait for another client.
if [ "$code" -ne 0 ]; then kill "$server" 2> /dev/null; fi
wait "$server"
server_code=$?
if [ "$code" -eq 0 ]; then code=$server_code; fi
exit "$code"
"""


def _run_script(
    settings: InputSettings, address: str, port: int | None, model: Mapping[str, Any]
) -> str:
    """The script that starts i-PI, and the client, which waits for i-PI's socket itself."""
    import shlex

    direct = settings.transport == "ffdirect"
    where = [] if port is None else ["-p", str(port)]
    arguments = [*(["-u"] if port is None else []), "-a", address, *where]
    arguments += ["--structure", STRUCTURE]
    arguments += ["--batch", str(settings.nbeads)] if settings.nbeads > 1 else []
    for name, value in model.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    comment = "." if direct else ", and the client,\n# which waits for i-PI's socket."
    script = _SCRIPT + (_SCRIPT_DIRECT if direct else _SCRIPT_SOCKET)
    return script.format(comment=comment, input=INPUT, arguments=shlex.join(arguments))
