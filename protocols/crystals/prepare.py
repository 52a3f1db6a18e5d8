"""What property protocols share: common options, a tight relaxation first, and their results."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import NotConvergedError
from dpa3sim.common.settings import option

from ..base import Event, Progress, Result, SettingsT, Stage, relaxation, silent
from . import relaxation as relax
from .cells import Cells, check_crystal, conventional_cell, symmetrized

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Space groups whose point groups, 6/mmm and m-3m, are subgroups of none.
MOST_SYMMETRIC = frozenset([*range(191, 195), *range(221, 231)])
# Forces that fix_symmetry hides are reported where they are this many times fmax.
HIDDEN_FORCE = 10.0


def dtype_option() -> Any:
    """The precision of every protocol whose results are small differences."""
    return option(
        "float64",
        "arithmetic; auto is that of the potential, or the checkpoint's own",
        choices=("auto", "float32", "float64"),
    )


@dataclass(frozen=True)
class PropertySettings:
    """Options of every protocol that computes a property of a crystal at its minimum."""

    relax: bool = option(True, "relax atoms and cell first; --no-relax takes them as they are")
    fmax: float = option(1e-4, "largest force of a relaxed structure", unit="eV/Å", minimum=0)
    smax: float = option(
        0.005, "largest stress component of a relaxed structure", unit="GPa", minimum=0
    )
    steps: int = option(1000, "largest number of optimizer steps of a relaxation", minimum=0)
    fix_symmetry: bool = option(True, "keep the space group of the structure while relaxing")
    symprec: float = option(0.01, "tolerance for finding symmetry", unit="Å", minimum=1e-8)
    dtype: str = dtype_option()

    def __post_init__(self) -> None:
        options_of.validate(self)


@dataclass(frozen=True)
class Prepared:
    """A crystal at its minimum, ready to have a property computed.

    Attributes:
        cells: the cells of the relaxed crystal; its input cell is the given one, relaxed.
        potential: the model in the precision of the settings.
        relaxation: how the primitive cell (with fix_symmetry) or the input cell was relaxed;
            None without relaxation.
        warnings: what impairs results.
    """

    cells: Cells
    potential: BatchPotential
    relaxation: relax.Result | None
    warnings: tuple[str, ...]

    @property
    def atoms(self) -> Atoms:
        """The relaxed input cell."""
        return self.cells.input.atoms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready keys that the results of all property protocols have."""
        atoms = self.atoms
        parameters = atoms.cell.cellpar().tolist()
        conventional = conventional_cell(atoms, self.cells.symprec) or ()
        last = self.relaxation.steps[-1] if self.relaxation else None
        return {
            "formula": atoms.get_chemical_formula(),
            "n_atoms": len(atoms),
            "n_atoms_primitive": len(self.cells.primitive.atoms),
            "formula_units_per_cell": self.cells.formula_units,
            "spacegroup": self.cells.label(),
            "cell_lengths_A": parameters[:3],
            "cell_angles_deg": parameters[3:],
            "conventional_lengths_A": list(conventional[:3]),
            "conventional_angles_deg": list(conventional[3:]),
            "relaxed": last is not None,
            "relaxation_n_steps": last and last.index,
            "relaxation_fmax_eV_per_A": last and last.fmax_eV_per_A,
            "relaxation_smax_GPa": last and last.smax_GPa,
        }


@dataclass(frozen=True, kw_only=True)
class PropertyResult(Result[SettingsT]):
    """The result of a protocol that computes a property of a crystal at its minimum.

    Attributes:
        prepared: the relaxed crystal in its cells.
    """

    prepared: Prepared

    def _values(self) -> dict[str, Any]:
        return self.prepared.to_dict()


def check(atoms: Atoms, settings: PropertySettings, what: str) -> Cells:
    """Find the cells of a crystal, if a property can be computed for it; cheap.

    Args:
        atoms: any structure.
        settings: those of the protocol.
        what: the property, for the message, in the plural: ``"elastic constants"``.

    Raises:
        InputError: the structure is not a crystal, or its symmetry is ambiguous.
    """
    check_crystal(atoms, what)
    if settings.fix_symmetry:
        symmetric = symmetrized(atoms, settings.symprec)
        if settings.relax:  # then the relaxation starts from it
            atoms = symmetric
    return Cells.of(atoms, settings.symprec)


def prepare(
    atoms: Atoms,
    potential: BatchPotential,
    settings: PropertySettings,
    what: str,
    progress: Progress = silent,
) -> Prepared:
    """Check a crystal, relax it tightly, and find its cells.

    With ``fix_symmetry`` the structure is first made exactly symmetric (within ``symprec``), and
    its primitive cell is relaxed, so that all cells of a crystal give the same results.

    Raises:
        InputError: the structure is not a crystal.
        NotConvergedError: the relaxation did not converge.
    """
    check_crystal(atoms, what)
    potential = potential.in_precision(settings.dtype)  # type: ignore[arg-type]
    potential.check(atoms)
    warnings = []
    if atoms.constraints:
        warnings.append("constraints of the structure are ignored: the whole crystal relaxes")
    cells = starting_cells(atoms, settings)
    relaxed = None
    if settings.relax:
        atoms, relaxed = _relax(cells, potential, settings, progress)
        warnings += relaxed.warnings
        if relaxed.steps and (hidden := _hidden_force(relaxed, settings)):
            warnings.append(hidden)
        cells = Cells.of(atoms, settings.symprec)
    if potential.dtype != "float64":
        warnings.append(
            f"computed in {potential.dtype}, whose rounding errors spoil small differences; "
            "use dtype=float64"
        )
    return Prepared(cells, potential, relaxed, tuple(warnings))


def starting_cells(atoms: Atoms, settings: PropertySettings) -> Cells:
    """The cells of a crystal before its relaxation, exactly symmetric if symmetry is kept.

    Raises:
        InputError: spglib finds no symmetry.
    """
    atoms = atoms.copy()
    atoms.set_constraint()
    if settings.fix_symmetry and settings.relax:
        atoms = symmetrized(atoms, settings.symprec)
    return Cells.of(atoms, settings.symprec)


def stages(cells: Cells, settings: PropertySettings) -> list[Stage]:
    """What :func:`prepare` is going to evaluate, from :func:`starting_cells`."""
    if not settings.relax:
        return []
    start = _start(cells, settings)
    return [relaxation("relax", [len(start)], start, settings.steps)]


def certainty(cells: Cells, settings: PropertySettings) -> tuple[bool, str]:
    """Whether :func:`prepare` surely keeps the symmetry; if not, a note on what depends on it.

    Args:
        cells: from :func:`starting_cells`.
    """
    if not settings.relax:
        return True, ""
    if not settings.fix_symmetry:
        return False, "for the symmetry before relaxing"
    if cells.number in MOST_SYMMETRIC and not _has_free_positions(cells):
        return True, ""
    return False, "fewer if relaxing makes the crystal more symmetric"


def _has_free_positions(cells: Cells) -> bool:
    """Whether atoms of the primitive cell can move without breaking the symmetry."""
    from .space_group import KeepSpaceGroup

    atoms = cells.primitive.atoms
    moves = np.random.default_rng(0).normal(size=(len(atoms), 3))
    KeepSpaceGroup(atoms, cells.symprec).adjust_forces(atoms, moves)
    return bool(np.abs(moves - moves.mean(axis=0)).max() > 1e-6)


def relax_settings(
    settings: PropertySettings, cell: str, *, symmetric: bool = True
) -> relax.Settings:
    """The options of a relaxation; unless ``symmetric``, it does not keep the space group."""
    return relax.Settings(
        cell=cell,
        fmax=settings.fmax,
        smax=settings.smax,
        steps=settings.steps,
        fix_symmetry=settings.fix_symmetry and symmetric,
        symprec=settings.symprec,
    )


def relax_together(
    structures: Sequence[Atoms],
    potential: BatchPotential,
    settings: relax.Settings,
    stage: str,
    progress: Progress = silent,
    strict: bool = True,
) -> list[relax.Result]:
    """Relax many structures at once, the evaluations of each step in one batch.

    Args:
        structures: where the relaxations start.
        potential: evaluates them.
        settings: of each relaxation.
        stage: of the events that count the finished relaxations.
        progress: called after each relaxation, by one thread at a time.
        strict: raise an error if one does not converge; otherwise the caller has to look at
            ``converged`` of each result.

    Raises:
        NotConvergedError: one of them did not converge, if ``strict``.
        NonFiniteError: one of them went astray.
    """
    from dpa3sim.clients.engine import Engine

    lock = threading.Lock()
    done = 0

    def one(atoms: Atoms) -> relax.Result:
        nonlocal done
        result = relax.run(atoms, atoms.calc.potential, settings)
        with lock:
            done += 1
            message = f"{done} of {len(structures)} relaxed, {result.steps[-1].index} steps"
            progress(Event(stage, message, done, len(structures)))
        return result

    results: list[Any] = Engine(potential).map(structures, one)
    for index, result in enumerate(results):
        if strict and not result.converged:
            raise NotConvergedError(
                f"{stage}: relaxation {index} of {len(results)} did not converge in "
                f"{result.steps[-1].index} steps: {'; '.join(result.reasons)}"
            )
    return results


def _relax(
    cells: Cells, potential: BatchPotential, settings: PropertySettings, progress: Progress
) -> tuple[Atoms, relax.Result]:
    """The relaxed input cell, and the relaxation: of the primitive cell if symmetry is kept."""

    def report(step: relax.Step, _: Atoms) -> None:
        smax = "" if step.smax_GPa is None else f", largest stress {step.smax_GPa:.4f} GPa"
        message = (
            f"step {step.index}: energy {step.energy_eV:.6f} eV, "
            f"largest force {step.fmax_eV_per_A:.5f} eV/Å{smax}"
        )
        progress(Event("relax", message))

    start = _start(cells, settings)
    result = relax.run(start, potential, relax_settings(settings, "full"), progress=report)
    if not result.converged:
        raise NotConvergedError(
            f"the initial relaxation did not converge in {result.steps[-1].index} steps "
            f"({'; '.join(result.reasons)}); use more --steps, a looser --fmax and --smax, or "
            "--no-relax"
        )
    atoms = cells.primitive.expand(result.atoms) if settings.fix_symmetry else result.atoms.copy()
    return atoms, result


def _start(cells: Cells, settings: PropertySettings) -> Atoms:
    return cells.primitive.atoms if settings.fix_symmetry else cells.input.atoms


def _hidden_force(result: relax.Result, settings: PropertySettings) -> str | None:
    """A warning if the symmetry that was kept hides forces of the model."""
    largest = float(np.linalg.norm(result.atoms.calc.results["forces"], axis=1).max())
    if not settings.fix_symmetry or largest <= HIDDEN_FORCE * settings.fmax:
        return None
    return (
        f"forces up to {largest:.2g} eV/Å break the symmetry of the structure and were projected "
        "out: the model is not exactly symmetric here, or the structure is not at a minimum; "
        "compare with fix_symmetry off"
    )
