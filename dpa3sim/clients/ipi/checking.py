"""Send frames through a real i-PI and back, and compare the results with the model.

Energies, forces and virials of known frames must come out of i-PI unchanged. Otherwise units, the
order of atoms, the cell or the sign of the virial are wrong somewhere
(docs/ipi.md#units-and-layout).
"""

from __future__ import annotations

import copy
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.clients.ipi import inputs
from dpa3sim.clients.ipi.process import Server
from dpa3sim.clients.ipi.serving import Settings, make_client
from dpa3sim.clients.ipi.tables import read_table
from dpa3sim.clients.ipi.wire import Address
from dpa3sim.common.errors import ConnectionLostError, InputError

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.potential import Potential

PREFIX, FRAMES = "check", "frames.extxyz"
# For the frames: displacements, Å; strains; number of lattice vectors by which atoms are moved.
RATTLE, STRAIN, FAR = 0.05, 0.02, 100
# For the finite differences.
DELTA = 1e-5
# Allowed effect of precision and of i-PI's own constants (1e-7): eV/atom, eV/Å, eV/atom.
TOLERANCES = {"float64": (1e-6, 1e-5, 1e-5), "float32": (1e-5, 5e-4, 5e-4)}
RELATIVE_ENERGY = 2e-7
VIRIAL_TOLERANCE = 1e-5
# i-PI's order of the components of a tensor.
VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class FrameCheck:
    """Largest differences between i-PI's output and the model, for one frame.

    Attributes:
        name: name of the frame. energy: eV; forces: eV/Å; virial: eV.
        passed: whether they are within the tolerances.
    """

    name: str
    energy: float
    forces: float
    virial: float
    passed: bool


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        frames: results for i-PI's output. strain: largest difference of a virial component from
            finite differences, eV, None for a molecule; virial: largest component, eV.
        passed: whether everything is within the tolerances.
    """

    frames: tuple[FrameCheck, ...]
    strain: float | None
    virial: float
    passed: bool


def check(atoms: Atoms, potential: Potential, forcefield: ET.Element | None = None) -> Report:
    """Send frames of a structure through i-PI and compare the results.

    Args:
        atoms: the structure. potential: the model.
        forcefield: the ``<ffsocket>`` or ``<ffdirect>`` of an input; None for a default one.

    Raises:
        InputError: the structure cannot be evaluated, or the forcefield cannot be used; others as
            :meth:`IPIClient.run` and :meth:`Server.finish`.
    """
    ready = inputs.standardized(atoms)
    potential.check(ready)
    frames = make_frames(ready)
    with tempfile.TemporaryDirectory(prefix="dpa3sim-ipi-") as folder:
        found = _replay(Path(folder), frames, potential, forcefield)
    tolerances = TOLERANCES[potential.dtype]
    checks = [
        _compare(name, frame, result, potential, tolerances)
        for (name, frame), result in zip(frames.items(), found, strict=True)
    ]
    strain, virial = None, 0.0
    passed = all(c.passed for c in checks)
    if atoms.pbc.any():
        strain, virial = virial_error(frames["rattled"], potential)
        passed &= strain <= VIRIAL_TOLERANCE * max(virial, 1.0)
    return Report(tuple(checks), strain, virial, passed)


def make_frames(atoms: Atoms) -> dict[str, Atoms]:
    """The structure and its variants, in i-PI's orientation, by name."""
    from ase.geometry import wrap_positions

    rng = np.random.default_rng(1)
    frames = {"as it is": atoms.copy()}
    rattled = atoms.copy()
    rattled.positions += rng.normal(scale=RATTLE, size=(len(atoms), 3))
    frames["rattled"] = rattled
    if not atoms.pbc.any():
        return frames
    # As i-PI sends it after a long time, and as it does with pbc='true'.
    far = rattled.copy()
    shifts = rng.integers(-FAR, FAR, size=(len(atoms), 3)) * atoms.pbc
    far.positions += shifts @ atoms.cell[:]
    frames["far outside the cell"] = far
    wrapped = rattled.copy()
    wrapped.positions = wrap_positions(rattled.positions, rattled.cell, rattled.pbc)
    frames["wrapped"] = wrapped
    if atoms.pbc.all():
        strained = rattled.copy()
        strain = rng.uniform(-STRAIN, STRAIN, (3, 3))
        strained.set_cell(strained.cell @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        frames["strained"] = inputs.standardized(strained)
    return frames


def _replay(
    folder: Path, frames: dict[str, Atoms], potential: Potential, forcefield: ET.Element | None
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Energy (eV), forces (eV/Å) and virial (eV) of each frame, from i-PI's output files."""
    from ase.io import write

    first = next(iter(frames.values()))
    others = list(frames.values())[1:]
    inputs.write_structure(folder / inputs.STRUCTURE, first)
    write(folder / FRAMES, others, format="extxyz", columns=["symbols", "positions"])
    forces, address = _forcefield(folder, first, forcefield)
    replay = inputs.element("file", FRAMES, mode="ase", units="angstrom")
    root = inputs.simulation(
        len(others),
        forces,
        [
            inputs.properties(("step", "potential{ase}", "volume{ase}", "virial_md{ase}")),
            inputs.trajectory("forces", "frc", 1),
        ],
        [
            inputs.initialize(1, inputs.STRUCTURE, None),
            inputs.motion("replay", replay),
        ],
        seed=1,
        prefix=PREFIX,
    )
    (folder / f"{PREFIX}.xml").write_text(inputs.to_xml(root), encoding="utf-8")
    with Server(folder, PREFIX, len(others)) as server:
        if address is not None:
            client = make_client(potential, first, address, Settings(wait=30.0))
            try:
                client.run()
            except ConnectionLostError:
                if server.running:
                    raise
        server.finish()
    return _outputs(folder)


def _outputs(folder: Path) -> list[tuple[float, np.ndarray, np.ndarray]]:
    from ase.io import iread

    table = read_table(folder / f"{PREFIX}.out")
    trajectory = iread(folder / f"{PREFIX}.frc_0.extxyz", index=":", format="extxyz")
    results = []
    for energy, volume, six, frame in zip(
        table["potential{ase}"], table["volume{ase}"], table["virial_md{ase}"], trajectory,
        strict=True,
    ):  # fmt: skip
        virial = np.empty((3, 3))
        for component, (a, b) in zip(six, VOIGT, strict=True):
            virial[a, b] = virial[b, a] = component * volume
        results.append((float(energy), frame.get_forces(), virial))
    return results


def _forcefield(
    folder: Path, atoms: Atoms, given: ET.Element | None
) -> tuple[ET.Element, Address | None]:
    """The forcefield with its own socket, and the address; None without a socket."""
    name = f"dpa3sim_{folder.name}"
    if given is None:
        return inputs.socket_forcefield("unix", name, None, atoms.numbers, 1), Address.unix(name)
    made = copy.deepcopy(given)
    if made.tag == "ffdirect":
        parameters = made.find("parameters")
        # Relative paths in the input refer to another folder.
        if parameters is not None and parameters.text:
            values = inputs.read_parameters(parameters.text)
            if "structure" in values:
                values["structure"] = inputs.STRUCTURE
            made.remove(parameters)
            made.append(inputs.parameters(values))
        _set(made, "batch_size", "1")  # otherwise one frame waits for others
        return made, None
    if made.get("mode", "inet") == "inet":
        port = inputs.free_port()
        _set(made, "address", "localhost")
        _set(made, "port", str(port))
        return made, Address(host="localhost", port=port)
    _set(made, "address", name)
    return made, Address.unix(name)


def _set(parent: ET.Element, tag: str, text: str) -> None:
    child = parent.find(tag)
    if child is None:
        child = ET.SubElement(parent, tag)
    child.text = f" {text} "


def read_input(path: Path) -> tuple[ET.Element, Path | None]:
    """The first forcefield of an input, and its initial structure file, if any.

    Raises:
        InputError: it is not an i-PI input, or has no ffsocket or ffdirect.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ET.ParseError, LookupError, ValueError) as error:  # the latter of encodings
        raise InputError(f"{path}: not valid XML ({error})") from None
    found = next((e for e in root.iter() if e.tag in ("ffsocket", "ffdirect")), None)
    if found is None:
        raise InputError(f"{path}: has neither ffsocket nor ffdirect")
    if found.get("name") is None:
        raise InputError(f"{path}: its {found.tag} has no name")
    start = root.find(".//initialize/file")
    if start is None or not start.text:
        return found, None
    return found, path.parent / start.text.strip()


def _compare(
    name: str,
    frame: Atoms,
    found: tuple[float, np.ndarray, np.ndarray],
    potential: Potential,
    tolerances: tuple[float, float, float],
) -> FrameCheck:
    """Differences from the model itself; the virial of a molecule is not compared."""
    (expected,) = potential.evaluate([frame])
    energy, forces, virial = found
    differences = (
        abs(energy - expected.energy),
        float(np.abs(forces - expected.forces).max()),
        float(np.abs(virial - expected.virial).max()) if frame.pbc.any() else 0.0,
    )
    n = len(frame)
    allowed = (
        tolerances[0] * n + RELATIVE_ENERGY * abs(expected.energy),
        tolerances[1],
        tolerances[2] * n,
    )
    passed = all(d <= a for d, a in zip(differences, allowed, strict=True))
    return FrameCheck(name, *differences, passed)


def virial_error(atoms: Atoms, potential: Potential) -> tuple[float, float]:
    """Largest difference of the virial from -dE/dstrain by finite differences; largest component.

    The calculation is in float64 for any precision of the potential; values in eV. Strains along
    non-periodic axes move the atoms only.
    """
    exact = potential.in_precision("float64")
    strained = []
    for a, b in VOIGT:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * DELTA
            strain[b, a] += 0.5 * sign * DELTA
            changed = atoms.copy()
            changed.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=False)
            changed.positions = atoms.positions @ (np.eye(3) + strain)
            strained.append(changed)
    energies = [e.energy for e in exact.evaluate(strained)]
    (here,) = exact.evaluate([atoms])
    differences = [
        -(energies[2 * k] - energies[2 * k + 1]) / (2 * DELTA) - here.virial[a, b]
        for k, (a, b) in enumerate(VOIGT)
    ]
    return float(np.abs(differences).max()), float(np.abs(here.virial).max())
