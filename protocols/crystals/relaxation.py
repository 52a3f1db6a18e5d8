"""Relax atoms and cell to a minimum of energy (or of enthalpy, under pressure).

A relaxation has converged when the largest force and the largest stress that the cell could
still give way to are both below their thresholds (docs/methods.md#relaxation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import Dpa3simError, EngineError, InputError, NonFiniteError
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA

from .. import base
from .cells import conventional_cell, spacegroup
from .optimization import OPTIMIZERS, largest_force, optimize

# ASE takes most of a second to import; `dpa3sim relax --help` needs only the settings.
if TYPE_CHECKING:
    from ase import Atoms
    from ase.filters import Filter

    from dpa3sim.clients.ase import DPA3Calculator
    from dpa3sim.potential.interface import PotentialLike

CELL_MODES = ("fixed", "full", "shape", "volume", "iso")
# Moves of the cell, Å, are strains times this times the root of its volume (Å^3). Along them the
# enthalpy of a cell of any size is equally stiff: a few times less than the 70 eV/Å^2 that L-BFGS
# starts from. ASE's factor, the number of atoms, leaves L-BFGS to find how soft large cells are.
CELL_FACTOR = 0.26


@dataclass(frozen=True)
class Settings:
    """Options of a relaxation."""

    cell: str = option(
        "fixed",
        "what of the cell may change: nothing (fixed), everything (full), the shape at constant "
        "volume (shape), or the volume at constant shape (volume, also called iso)",
        choices=CELL_MODES,
    )
    pressure: float = option(0.0, "external pressure", unit="GPa")
    fmax: float = option(0.01, "largest force of a converged structure", unit="eV/Å", minimum=0)
    smax: float = option(
        0.05, "largest stress component, less the pressure, of one", unit="GPa", minimum=0
    )
    steps: int = option(1000, "largest number of optimizer steps", minimum=0)
    optimizer: str = option(
        "auto",
        "ASE optimizer; auto is FIRE while a force exceeds 1 eV/Å, then LBFGS",
        choices=OPTIMIZERS,
    )
    fix_symmetry: bool = option(False, "keep the space group of the initial structure")
    symprec: float = option(0.01, "tolerance for finding symmetry", unit="Å", minimum=1e-8)

    def __post_init__(self) -> None:
        options_of.validate(self)
        if self.pressure and self.cell in ("fixed", "shape"):
            raise InputError(
                f"a pressure has no effect with cell={self.cell}; use cell=full or iso"
            )


@dataclass(frozen=True)
class Step:
    """One point of the optimizer's path.

    Attributes:
        index: number of steps before it.
        energy_eV: potential energy.
        enthalpy_eV: energy plus pressure times volume; the energy for a fixed cell.
        fmax_eV_per_A: largest force on an atom, constraints applied.
        smax_GPa: largest component of the stress that the cell may relax; None for a fixed cell.
        volume_A3: cell volume; None for a structure without three cell vectors.
    """

    index: int
    energy_eV: float
    enthalpy_eV: float
    fmax_eV_per_A: float
    smax_GPa: float | None
    volume_A3: float | None


Progress = Callable[[Step, "Atoms"], None]


@dataclass(frozen=True, kw_only=True)
class Result(base.Result[Settings]):
    """A relaxed structure and how it was reached. ``atoms`` carries its energy and forces."""

    atoms: Atoms
    initial: Atoms
    steps: tuple[Step, ...]
    stress_GPa: np.ndarray | None

    @property
    def spacegroup_initial(self) -> str | None:
        """Symbol and number of :func:`spacegroup` before relaxing."""
        return spacegroup(self.initial, self.settings.symprec)

    @property
    def spacegroup_final(self) -> str | None:
        """Symbol and number of :func:`spacegroup` after relaxing."""
        return spacegroup(self.atoms, self.settings.symprec)

    @property
    def conventional_cell(self) -> tuple[float, ...] | None:
        """Lengths (Å) and angles (degrees) of :func:`conventional_cell` after relaxing."""
        return conventional_cell(self.atoms, self.settings.symprec)

    def _values(self) -> dict[str, Any]:
        last, natoms = self.steps[-1], len(self.atoms)
        initial, final = self.initial.cell.cellpar(), self.atoms.cell.cellpar()
        has_cell = self.atoms.cell.rank == 3
        conventional = self.conventional_cell
        return {
            "n_atoms": natoms,
            "formula": self.atoms.get_chemical_formula(),
            "n_steps": last.index,
            "energy_eV": last.energy_eV,
            "energy_per_atom_eV": last.energy_eV / natoms,
            "energy_initial_eV": self.steps[0].energy_eV,
            "enthalpy_eV": last.enthalpy_eV,
            "fmax_eV_per_A": last.fmax_eV_per_A,
            "smax_GPa": last.smax_GPa,
            "stress_GPa": None if self.stress_GPa is None else self.stress_GPa.tolist(),
            "volume_A3": last.volume_A3,
            "volume_initial_A3": self.steps[0].volume_A3,
            "cell_lengths_A": final[:3].tolist() if has_cell else None,
            "cell_angles_deg": final[3:].tolist() if has_cell else None,
            "cell_lengths_initial_A": initial[:3].tolist() if has_cell else None,
            "cell_angles_initial_deg": initial[3:].tolist() if has_cell else None,
            "conventional_lengths_A": _part(conventional, 0, 3),
            "conventional_angles_deg": _part(conventional, 3, 6),
            "spacegroup_initial": self.spacegroup_initial,
            "spacegroup_final": self.spacegroup_final,
        }


def run(
    atoms: Atoms,
    potential: PotentialLike,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    initial: Atoms | None = None,
    history: Sequence[Step] = (),
) -> Result:
    """Relax ``atoms``; the argument itself is not changed.

    Args:
        atoms: start structure; its constraints are honoured.
        potential: the resident model, or a client of an engine.
        settings: options, defaults where None.
        progress: called after every step with the step and the structure at that moment.
        initial, history: to continue an earlier run: the structure it started from, and its
            steps so far, the last of which belongs to ``atoms``.

    Raises:
        InputError: the settings do not fit the structure, or the structure has no energy.
        NonFiniteError: the optimizer left the region where the model is defined.
    """
    from dpa3sim.clients.ase import DPA3Calculator

    settings = settings or Settings()
    start = atoms.copy()
    initial = start if initial is None else initial.copy()
    atoms = atoms.copy()
    check(atoms, settings)
    free = _free_strains(atoms, settings)
    calculator = DPA3Calculator(potential)
    atoms.calc = calculator
    if settings.fix_symmetry:
        _fix_symmetry(atoms, initial, settings, begun=bool(history))

    steps = list(history)
    path = _path(atoms, settings, free, steps[-1].index if steps else None)
    try:
        for step in path:
            steps.append(step)
            if progress:
                progress(step, atoms)
    except EngineError:  # not caused by the structure
        raise
    except Dpa3simError as error:
        if not steps:
            raise
        raise NonFiniteError(
            f"the relaxation went astray after step {steps[-1].index}: {error}"
        ) from None
    final = start.copy()  # without the symmetry constraint
    final.positions, final.cell = atoms.positions, atoms.cell
    return _result(final, initial, calculator, steps, settings)


def _result(
    final: Atoms,
    initial: Atoms,
    calculator: DPA3Calculator,
    steps: Sequence[Step],
    settings: Settings,
) -> Result:
    """The result with the last evaluation of ``calculator`` attached to ``final``."""
    from ase.calculators.singlepoint import SinglePointCalculator

    reasons = unmet(steps[-1], settings)
    done = "forces are below" if settings.cell == "fixed" else "forces and stress are below"
    stress = calculator.results.get("stress")
    known = ("energy", "forces", "energies", "stress")  # the order of columns in files
    results = {k: calculator.results[k] for k in known if k in calculator.results}
    final.calc = SinglePointCalculator(final, **results)
    return Result(
        settings=settings,
        atoms=final,
        initial=initial,
        converged=not reasons,
        reasons=tuple(reasons) or (f"{done} the threshold",),
        steps=tuple(steps),
        stress_GPa=None if stress is None else stress / GPA,
        warnings=calculator.warnings,
    )


def _path(
    atoms: Atoms, settings: Settings, free: np.ndarray | None, done: int | None
) -> Iterator[Step]:
    """Optimize ``atoms`` in place, yielding every step until one has converged.

    ``done`` is the index of the step that ``atoms`` belongs to; None before the first one.
    """
    target = _filter(atoms, settings, free)
    step = _measure(atoms, settings, free, done or 0)
    if done is None:
        yield step

    def converged() -> bool:
        return not unmet(step, settings)

    for _ in optimize(target, settings.optimizer, converged, settings.steps - step.index):
        step = _measure(atoms, settings, free, step.index + 1)
        yield step


def _measure(atoms: Atoms, settings: Settings, free: np.ndarray | None, index: int) -> Step:
    energy = float(atoms.get_potential_energy())
    volume = float(atoms.get_volume()) if atoms.cell.rank == 3 else None
    enthalpy, smax = energy, None
    if free is not None and volume is not None:
        enthalpy += settings.pressure * GPA * volume
        stress = atoms.get_stress(voigt=False) + settings.pressure * GPA * np.eye(3)
        smax = float(np.abs(_relevant(stress, settings.cell)[free]).max() / GPA)
    return Step(index, energy, enthalpy, largest_force(atoms), smax, volume)


def _relevant(stress: np.ndarray, cell: str) -> np.ndarray:
    """The part of the stress, ``(3, 3)``, that the cell may relax."""
    mean = np.trace(stress) / 3 * np.eye(3)
    if cell == "shape":
        return stress - mean
    return mean if cell in ("volume", "iso") else stress


def unmet(step: Step, settings: Settings) -> list[str]:
    """The criteria of convergence that a step does not meet; empty when it has converged."""
    reasons = []
    if step.fmax_eV_per_A > settings.fmax:
        reasons.append(f"largest force {step.fmax_eV_per_A:.3g} > {settings.fmax:g} eV/Å")
    if step.smax_GPa is not None and step.smax_GPa > settings.smax:
        reasons.append(f"largest stress {step.smax_GPa:.3g} > {settings.smax:g} GPa")
    return reasons


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if ``settings`` cannot be applied to ``atoms``."""
    _free_strains(atoms, settings)
    if settings.fix_symmetry and not atoms.pbc.all():
        raise InputError("fix_symmetry needs a structure that is periodic along all three axes")


def _free_strains(atoms: Atoms, settings: Settings) -> np.ndarray | None:
    """Which strain components may change, ``(3, 3)`` bool; None for a fixed cell.

    Raises:
        InputError: the cell cannot be relaxed in this way.
    """
    if settings.cell == "fixed":
        return None
    pbc = np.asarray(atoms.pbc)
    if not pbc.any():
        raise InputError(f"cell={settings.cell} needs a periodic structure; this one is a molecule")
    if atoms.cell.rank < 3:
        raise InputError(
            f"cell={settings.cell} needs three cell vectors, also along non-periodic axes"
        )
    if pbc.all():
        return np.ones((3, 3), dtype=bool)
    if settings.cell != "full":
        raise InputError(
            f"cell={settings.cell} needs three periodic axes; use cell=full, which relaxes the "
            "periodic ones"
        )
    # Only strains within the periodic vectors, which must then span coordinate axes.
    normal = atoms.cell.complete()[~pbc]
    periodic = atoms.cell[pbc]
    spanned = np.abs(periodic).max(axis=0) > 1e-8
    if spanned.sum() != pbc.sum() or np.abs(normal[:, spanned]).max() > 1e-8:
        raise InputError(
            "to relax the cell of a partly periodic structure, its periodic vectors must lie "
            "along coordinate axes or planes, and the other vectors across them"
        )
    return np.outer(spanned, spanned)


def _filter(atoms: Atoms, settings: Settings, free: np.ndarray | None) -> Atoms | Filter:
    """The degrees of freedom that the optimizer moves: those of the atoms, or also of the cell."""
    if free is None:
        return atoms
    from .cell_filter import CellFilter

    return CellFilter(
        atoms,
        mask=free.astype(float),
        hydrostatic_strain=settings.cell in ("volume", "iso"),
        constant_volume=settings.cell == "shape",
        scalar_pressure=settings.pressure * GPA,
        exp_cell_factor=CELL_FACTOR * np.sqrt(abs(atoms.cell.volume)),
    )


def _fix_symmetry(atoms: Atoms, initial: Atoms, settings: Settings, *, begun: bool) -> None:
    """Constrain ``atoms`` to the space group of ``initial``, made exact unless it has ``begun``.

    Otherwise an atom that is off its site by less than ``symprec`` would stay there, and the
    symmetry would hide the force on it.
    """
    from .space_group import KeepSpaceGroup

    constraint = KeepSpaceGroup(initial, settings.symprec)
    if not begun:
        exact = constraint.exact()
        atoms.positions, atoms.cell = exact.positions, exact.cell
    atoms.set_constraint([*atoms.constraints, constraint])


def _part(values: tuple[float, ...] | None, start: int, stop: int) -> list[float] | None:
    return None if values is None else list(values[start:stop])
