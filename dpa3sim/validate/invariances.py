"""Whether a model respects the symmetries of space, and whether forces are derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.protocols.base import Event, Progress, Stage
from dpa3sim.validate.check import Findings
from dpa3sim.validate.probes import probes, rattled

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.validate.settings import ValidateSettings

# Deviations up to these are rounding: meV/atom and eV/Å in float64, of one part in 10^7 of the
# energies in float32.
ROUNDING = {"float64": (1e-5, 1e-6), "float32": (0.1, 1e-3)}
# Displacement for the derivative of the energy, Å, and by how much it may miss, eV/Å: its error of
# second order, and what rounding of energies does to it.
STEP = 1e-3
DERIVATIVE = {"float64": 1e-3, "float32": 0.1}
KINDS = ("rotation", "order", "translation", "cell", "size")


def structures(elements: Sequence[str]) -> dict[str, Atoms]:
    """What is tried: each probe as it is, where distances are equal, and with moved atoms."""
    found = {}
    for name, atoms in probes(elements).items():
        found[name] = atoms
        found[f"{name}, rattled"] = rattled(atoms)
    return found


def stages(elements: Sequence[str], settings: ValidateSettings, cutoff: float) -> list[Stage]:
    """See :class:`~dpa3sim.validate.check.Check`."""
    tried = list(structures(elements).values())
    sizes = [len(atoms) * (len(KINDS) + 4) for atoms in tried]
    return [Stage("invariances", sizes, tried[0])] if tried else []


def run(potential: BatchPotential, settings: ValidateSettings, progress: Progress) -> Findings:
    """See :class:`~dpa3sim.validate.check.Check`."""
    rows, warnings = [], []
    tried = structures(potential.model.elements)
    energy_limit, force_limit = ROUNDING[potential.dtype]
    for done, (name, atoms) in enumerate(tried.items()):
        row = _compared(atoms, potential)
        rows.append({"structure": name, **row})
        progress(Event("invariances", name, done + 1, len(tried)))
        for kind in KINDS:
            energy = row[f"{kind}_energy_meV_per_atom"]
            force = row[f"{kind}_force_eV_per_A"]
            if energy > energy_limit or force > force_limit:
                warnings.append(
                    f"{name}: the energy changes by {energy:.2g} meV/atom and forces by "
                    f"{force:.2g} eV/Å with {_WORDS[kind]}, which changes nothing of the physics"
                )
        if row["derivative_error_eV_per_A"] > DERIVATIVE[potential.dtype]:
            warnings.append(
                f"{name}: forces differ from the slope of the energy by "
                f"{row['derivative_error_eV_per_A']:.2g} eV/Å"
            )
    return Findings({"invariances": rows}, tuple(warnings))


_WORDS = {
    "rotation": "a rotation",
    "order": "the order of the atoms",
    "translation": "a shift of all atoms",
    "cell": "the choice of the cell",
    "size": "a doubled cell",
}


def _compared(atoms: Atoms, potential: BatchPotential) -> dict[str, Any]:
    """Deviations of equivalent structures from the given one, and of forces from slopes."""
    rng = np.random.default_rng(0)
    n = len(atoms)
    turned, rotation = _turned(atoms, rng)
    order = rng.permutation(n)
    moved = atoms.copy()
    moved.positions += rng.uniform(-5, 5, size=3)
    other = atoms.copy()
    other.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell[:])
    direction = rng.normal(size=(n, 3))
    direction /= np.linalg.norm(direction)
    sides = []
    for sign in (1, -1):
        side = atoms.copy()
        side.positions += sign * STEP * direction
        sides.append(side)
    variants = [turned, atoms[order], moved, other, atoms * (1, 1, 2)]
    start, *found = potential.evaluate([atoms, *variants, *sides])
    back = (
        lambda forces: forces @ rotation,
        lambda forces: forces[np.argsort(order)],
        lambda forces: forces,
        lambda forces: forces,
        lambda forces: forces[:n],
    )
    row: dict[str, Any] = {}
    for kind, out, undo in zip(KINDS, found, back, strict=False):
        row[f"{kind}_energy_meV_per_atom"] = 1e3 * abs(_per_atom(out) - _per_atom(start))
        row[f"{kind}_force_eV_per_A"] = float(np.abs(undo(out.forces) - start.forces).max())
    slope = (found[-2].energy - found[-1].energy) / (2 * STEP)
    row["derivative_error_eV_per_A"] = abs(slope + float((start.forces * direction).sum()))
    return row


def _per_atom(out: Evaluation) -> float:
    return out.energy / len(out.energies)


def _turned(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
    """The structure in another orientation, and the rotation of its vectors (rows)."""
    from scipy.spatial.transform import Rotation

    rotation: np.ndarray = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    return turned, rotation
