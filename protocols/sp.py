"""Single points: energy, forces and stress of a structure as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA

from . import base
from .base import Progress, Stage
from .crystals.optimization import largest_force

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import PotentialLike


@dataclass(frozen=True)
class Settings:
    """Options of a single point."""

    arrays: bool = option(True, "put forces and atomic energies into the result, not only energies")

    def __post_init__(self) -> None:
        options_of.validate(self)


@dataclass(frozen=True, kw_only=True)
class Result(base.Result[Settings]):
    """A structure that carries its energy, forces and, if periodic, stress.

    Attributes:
        energies_eV: ``(n,)`` atomic energies. virial_eV: ``(3, 3)``, -dE/dstrain.
        n_edges, n_angles: pairs within the cutoff, and pairs of pairs within that of angles.
    """

    reasons: tuple[str, ...] = ("a single evaluation",)
    atoms: Atoms
    energies_eV: np.ndarray
    virial_eV: np.ndarray
    n_edges: int
    n_angles: int

    def _values(self) -> dict[str, Any]:
        energy, natoms = float(self.atoms.get_potential_energy()), len(self.atoms)
        stress = None
        if "stress" in self.atoms.calc.results:
            stress = self.atoms.get_stress(voigt=False, apply_constraint=False) / GPA
        volume = float(self.atoms.get_volume()) if self.atoms.cell.rank == 3 else None
        result: dict[str, Any] = {
            "n_atoms": natoms,
            "formula": self.atoms.get_chemical_formula(),
            "energy_eV": energy,
            "energy_per_atom_eV": energy / natoms,
            "fmax_eV_per_A": largest_force(self.atoms),
            "stress_GPa": None if stress is None else stress.tolist(),
            "pressure_GPa": None if stress is None else -float(np.trace(stress)) / 3,
            "virial_eV": self.virial_eV.tolist(),
            "volume_A3": volume,
            "n_edges": self.n_edges,
            "n_angles": self.n_angles,
        }
        if self.settings.arrays:
            result["forces_eV_per_A"] = self.atoms.get_forces(apply_constraint=False).tolist()
            result["energies_eV"] = self.energies_eV.tolist()
        return result


def check(atoms: Atoms, settings: Settings) -> None:
    """Accept every structure; the model itself refuses what it cannot evaluate."""


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    return [Stage("evaluation", [len(atoms)], atoms)]


def run(
    atoms: Atoms,
    potential: PotentialLike,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Evaluate ``atoms``; the argument itself is not changed.

    Args:
        atoms: any structure.
        potential: the resident model, or a client of an engine.
        settings: options, defaults where None.
        progress: never called: a single point is one evaluation.

    Raises:
        InputError, NonFiniteError, OutOfMemoryError: see :meth:`Potential.evaluate`.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    from dpa3sim.clients.ase import DPA3Calculator

    calculator = DPA3Calculator(potential)
    final = atoms.copy()
    found = potential.evaluate([final])[0]
    calculator.take(final, found)
    known = ("energy", "energies", "forces", "stress")
    results = {k: v for k, v in calculator.results.items() if k in known}
    final.calc = SinglePointCalculator(final, **results)
    return Result(
        settings=settings or Settings(),
        atoms=final,
        energies_eV=found.energies,
        virial_eV=found.virial,
        n_edges=found.n_edges,
        n_angles=found.n_angles,
        warnings=found.warnings,
    )
