"""What training further changed: errors before and after, and checks that data do not show."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import Dpa3simError, InputError
from dpa3sim.potential import Potential
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.protocols import md
from dpa3sim.train.data.frames import Frames
from dpa3sim.train.data.statistics import elements

# Frames that are compared, the first of a random order, and how many of the worst are named.
_FRAMES, _WORST = 200, 5
# Elements and pairs of elements that are checked.
_ELEMENTS, _PAIRS = 6, 10
# Lattice constants of a crystal as shares of that from covalent radii; distances of pairs in units
# of the sum of the radii.
_LATTICE = np.linspace(0.8, 1.3, 26)
_DISTANCES = np.linspace(0.5, 1.0, 11)
# Dynamics at constant energy: atoms at most, steps, K.
_ATOMS, _STEPS, _TEMPERATURE = 256, 100, 300.0
_RISE = 1e-3  # eV/atom; smaller bumps of a curve are not told from rounding


@dataclass(frozen=True)
class Comparison:
    """Labels and what two models say, of the same frames.

    Attributes:
        origins: of the frames. numbers: ``(n_atoms,)``; frame: ``(n_atoms,)`` the frame of each.
        energies: ``(3, n_frames)`` eV/atom: label, before, after.
        forces: ``(3, n_atoms, 3)`` eV/Å.
    """

    origins: tuple[str, ...]
    numbers: np.ndarray
    frame: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Errors before and after, by element too, and the worst frames; JSON-ready."""
        symbols = sorted(set(self.numbers.tolist()))
        return {
            "frames": len(self.origins),
            "energy_rmse_per_atom_eV": self._both(self.energies),
            "forces_rmse_eV_per_A": self._both(self.forces),
            "forces_rmse_by_element_eV_per_A": {
                SYMBOLS[z - 1]: self._both(self.forces[:, self.numbers == z]) for z in symbols
            },
            "worst_frames": [
                {"origin": self.origins[k], "forces_rmse_eV_per_A": _number(self.of_frames[1, k])}
                for k in np.argsort(-np.nan_to_num(self.of_frames[1]))[:_WORST]
            ],
        }

    def table(self) -> str:
        """The errors of each frame, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = "energy_error_per_atom_eV", "forces_rmse_eV_per_A"
        writer.writerow(["frame", *(f"{x}_{when}" for x in names for when in ("before", "after"))])
        errors = self.energies[1:] - self.energies[0]
        for k, origin in enumerate(self.origins):
            values = [*errors[:, k], *self.of_frames[:, k]]
            writer.writerow([origin, *(f"{x:.8g}" if np.isfinite(x) else "" for x in values)])
        return text.getvalue()

    @property
    def of_frames(self) -> np.ndarray:
        """``(2, n_frames)``: RMSE of the forces of each frame before and after, eV/Å."""
        squares = np.square(self.forces[1:] - self.forces[0]).mean(axis=2)
        n = len(self.origins)
        atoms = np.bincount(self.frame, minlength=n)
        return np.sqrt([np.bincount(self.frame, x, minlength=n) / atoms for x in squares])

    @staticmethod
    def _both(values: np.ndarray) -> dict[str, float | None]:
        errors = values[1:] - values[0]
        known = np.isfinite(errors[0])
        if not known.any():
            return {"before": None, "after": None}
        before, after = (np.sqrt(np.mean(np.square(x[known]))) for x in errors)
        return {"before": float(before), "after": float(after)}


def compare(
    frames: Frames, before: Potential, after: Potential, seed: int, shift: np.ndarray
) -> Comparison:
    """Evaluate some frames with both models.

    Args:
        frames: with labels.
        before: the model that the training started from; frames with elements that it does not
            know are left out.
        after: the trained one.
        seed: of the choice of 200 frames, if there are more.
        shift: ``(118,)`` eV, added to the energies of the elements in ``before``, so that models
            of other references can be compared.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(frames))[:_FRAMES])
    rows, energies, forces, numbers = [], [], [], []
    kept: list[str] = []
    for index in chosen.tolist():
        frame = frames[index]
        old, new = before.evaluate_each([frame.system])[0], after.evaluate([frame.system])[0]
        if not isinstance(old, Evaluation):
            continue
        n = len(frame.system)
        label = np.nan if frame.energy is None else frame.energy
        moved = old.energy + shift[frame.system.numbers - 1].sum()
        energies.append(np.array([label, moved, new.energy]) / n)
        known = np.full((n, 3), np.nan) if frame.forces is None else frame.forces
        forces.append(np.stack([known, old.forces, new.forces]))
        numbers.append(frame.system.numbers)
        rows.append(np.full(n, len(kept)))
        kept.append(frame.origin)
    if not kept:
        raise InputError("no frame has only elements that the first model knows")
    return Comparison(
        origins=tuple(kept),
        numbers=np.concatenate(numbers),
        frame=np.concatenate(rows),
        energies=np.stack(energies, axis=1),
        forces=np.concatenate(forces, axis=1),
    )


def checks(frames: Frames, potential: Potential, seed: int) -> dict[str, Any]:
    """Whether a model behaves where it has no data; JSON-ready.

    - ``volume_curves``: the energy of an fcc crystal of each element against its lattice constant
      has one minimum.
    - ``repulsion``: the energy of pairs of atoms rises as they come closer than their bond.
    - ``nve``: drift of the total energy at 300 K, in the smallest frame.
    """
    symbols = elements(frames)
    return {
        "volume_curves": {x: _volume_curve(x, potential) for x in symbols[:_ELEMENTS]},
        "repulsion": {
            f"{a}-{b}": _repulsion(a, b, potential)
            for a, b in list(combinations_with_replacement(symbols, 2))[:_PAIRS]
        },
        "nve": _drift(frames, potential, seed),
    }


def doubts(found: dict[str, Any]) -> list[str]:
    """What :func:`checks` found wrong, in words."""
    said = []
    bumpy = [x for x, good in found["volume_curves"].items() if good is False]
    if bumpy:
        said.append(f"the energy of fcc {', '.join(bumpy)} has several minima against the volume")
    soft = [x for x, good in found["repulsion"].items() if good is False]
    if soft:
        said.append(f"close pairs do not repel each other: {', '.join(soft)}")
    if found["nve"].get("error"):
        said.append(f"dynamics at {_TEMPERATURE:g} K failed: {found['nve']['error']}")
    return said


def _volume_curve(symbol: str, potential: Potential) -> bool | None:
    """Whether the energy has one minimum; None if the model cannot compute the crystal."""
    a = 2 * np.sqrt(2) * covalent_radii[atomic_numbers[symbol]]
    energies = _energies([bulk(symbol, "fcc", a=a * x) for x in _LATTICE], potential)
    if energies is None:
        return None
    lowest = int(np.argmin(energies))
    falls, rises = np.diff(energies[: lowest + 1]), np.diff(energies[lowest:])
    return bool((falls < _RISE).all() and (rises > -_RISE).all())


def _repulsion(a: str, b: str, potential: Potential) -> bool | None:
    """Whether the energy rises as the atoms approach; None if the model cannot compute them."""
    bond = sum(covalent_radii[atomic_numbers[x]] for x in (a, b))
    pairs = [Atoms([a, b], [[0, 0, 0], [bond * x, 0, 0]]) for x in _DISTANCES]
    energies = _energies(pairs, potential)
    # Bonds may be shorter than the radii say: only the closer half must repel.
    return None if energies is None else bool((np.diff(energies)[: len(energies) // 2] < 0).all())


def _energies(structures: Sequence[Atoms], potential: Potential) -> np.ndarray | None:
    outcomes = potential.evaluate_each(structures)
    if not all(isinstance(x, Evaluation) for x in outcomes):
        return None
    return np.array([x.energy / len(x.forces) for x in outcomes if isinstance(x, Evaluation)])


def _drift(frames: Frames, potential: Potential, seed: int) -> dict[str, Any]:
    """Drift of the energy without a thermostat, or why there is none."""
    smallest = int(np.argmin(np.where(frames.sizes > 1, frames.sizes, np.iinfo(np.int64).max)))
    if not 1 < frames.sizes[smallest] <= _ATOMS:
        return {"error": f"no frame has 2 to {_ATOMS} atoms"}
    system = frames[smallest].system
    atoms = Atoms(system.numbers, system.positions, cell=system.cell, pbc=system.pbc)
    settings = md.Settings(ensemble="nve", temperature=_TEMPERATURE, steps=_STEPS, seed=seed)
    try:
        result = md.run(atoms, potential, settings)
    except Dpa3simError as error:
        return {"error": str(error)}
    drift, error_of_drift = result.drift or (None, None)
    return {
        "atoms": len(atoms),
        "steps": _STEPS,
        "drift_meV_per_atom_per_ps": drift,
        "drift_error_meV_per_atom_per_ps": error_of_drift,
    }


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
