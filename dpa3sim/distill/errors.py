"""How far a student is from its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.distill.frames import TEMPERATURE
from dpa3sim.potential.interface import BatchPotential

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Errors:
    """Labels and what a model says, of some frames.

    Attributes:
        temperatures: ``(n_frames,)`` K. frame: ``(n_atoms,)`` the frame of each atom.
        energies: ``(2, n_frames)`` eV/atom: label, model.
        forces: ``(2, n_atoms, 3)`` eV/Å.
    """

    temperatures: np.ndarray
    frame: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    @classmethod
    def of(cls, frames: Sequence[Atoms], potential: BatchPotential) -> Errors:
        """Evaluate labelled frames.

        Raises:
            InputError, NonFiniteError: the model cannot compute one of them.
        """
        outcomes = potential.evaluate(frames)
        sizes = np.array([len(atoms) for atoms in frames])
        labels = [atoms.get_potential_energy() for atoms in frames]
        return cls(
            temperatures=np.array([float(atoms.info[TEMPERATURE]) for atoms in frames]),
            frame=np.repeat(np.arange(len(frames)), sizes),
            energies=np.array([labels, [out.energy for out in outcomes]]) / sizes,
            forces=np.stack(
                [
                    np.concatenate([atoms.get_forces() for atoms in frames]),
                    np.concatenate([out.forces for out in outcomes]),
                ]
            ),
        )

    @property
    def of_frames(self) -> np.ndarray:
        """``(n_frames,)``: RMSE of the forces of each frame, eV/Å."""
        squares = np.square(self.forces[1] - self.forces[0]).mean(axis=1)
        sizes = np.bincount(self.frame)
        found: np.ndarray = np.sqrt(np.bincount(self.frame, squares) / sizes)
        return found

    @property
    def worst(self) -> float:
        """The largest RMSE of forces of a temperature, eV/Å."""
        return max(float(row["forces_rmse_eV_per_A"]) for row in self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The errors at each temperature, JSON-ready."""
        return [self._row(t) for t in np.unique(self.temperatures).tolist()]

    def _row(self, temperature: float) -> dict[str, Any]:
        frames = self.temperatures == temperature
        labels, found = self.forces[:, frames[self.frame]]
        energies = self.energies[:, frames]
        return {
            "temperature_K": temperature,
            "frames": int(frames.sum()),
            "forces_rmse_eV_per_A": _rms(found - labels),
            "forces_rms_eV_per_A": _rms(labels),
            "energy_rmse_per_atom_eV": _rms(energies[1] - energies[0]),
        }


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
