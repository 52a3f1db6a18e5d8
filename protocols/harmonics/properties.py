"""What phonons, Grüneisen parameters and quasi-harmonic properties share.

All three relax a crystal, choose its supercell, and compute the force constants of one or several
volumes in one request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.settings import option

from ..base import Progress, SettingsT, Stage, silent
from ..crystals import guards, prepare, volumes
from ..crystals.cells import Cells, Extensive
from ..crystals.isotopes import check_masses
from ..crystals.prepare import Prepared, PropertyResult, PropertySettings
from ..crystals.supercells import parse, widths
from ..crystals.symmetric_supercells import choose
from . import born
from .force_constants import Harmonic, force_stages, harmonic, new_phonopy

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

WHAT = "phonons"
# Compounds of these elements are polar: without Born charges their optical modes are not split.
ANIONS = frozenset("N O F P S Cl As Se Br Te I".split())


@dataclass(frozen=True)
class HarmonicSettings(PropertySettings):
    """Options of every protocol that needs force constants."""

    supercell: str = option(
        "auto",
        "auto (faces 15 Å and twice the cutoff apart), a width such as 20A, max-atoms=200, or "
        "its vectors in those of the input cell: 2,2,2 or nine whole numbers",
    )
    method: str = option(
        "fd",
        "force constants from finite displacements (fd), or from analytic second derivatives",
        choices=("fd", "analytic"),
    )
    distance: float = option(0.01, "length of the finite displacements", unit="Å", minimum=1e-6)
    born: str | None = option(
        None, "file with Born charges and dielectric tensor, in phonopy's BORN format"
    )
    mesh: float = option(
        100.0, "fineness of the mesh of wave vectors: points times length", unit="Å", minimum=1
    )
    t_max: float = option(1000.0, "highest temperature", unit="K", minimum=0)
    t_step: float = option(10.0, "step of the temperatures", unit="K", minimum=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse(self.supercell)

    @property
    def temperatures(self) -> np.ndarray:
        """From 0 K to the highest temperature, K."""
        return np.arange(0.0, self.t_max + 1e-6 * self.t_step, self.t_step)


@dataclass(frozen=True, kw_only=True)
class HarmonicResult(PropertyResult[SettingsT]):
    """The result of a protocol that needs force constants.

    Attributes:
        matrix: ``(3, 3)``, the supercell in vectors of the primitive cell.
        n_batches: batches in which the supercells were evaluated.
        charges: Born charges, if there is a file of them.
    """

    matrix: np.ndarray
    n_batches: int
    charges: born.Born | None = None

    @property
    def reference(self) -> Harmonic:
        """The crystal whose supercell the result describes."""
        raise NotImplementedError

    def _values(self) -> dict[str, Any]:
        cells, crystal = self.prepared.cells, self.reference
        return {
            **super()._values(),
            "supercell_matrix_primitive": self.matrix.tolist(),
            "supercell_matrix_input": (self.matrix @ cells.primitive.matrix).round(6).tolist(),
            "supercell_widths_A": widths(self.matrix @ crystal.atoms.cell[:]).tolist(),
            "n_atoms_supercell": len(crystal.phonon.supercell),
            "n_displacements": crystal.n_displacements,
            "n_batches": self.n_batches,
            **(self.charges.to_dict() if self.charges else {}),
        }


@dataclass(frozen=True)
class HarmonicRun:
    """A relaxed crystal with the supercell of its force constants.

    Attributes:
        matrix: ``(3, 3)``, the supercell in vectors of the primitive cell.
        charges: Born charges, if there is a file of them.
        warnings: what impairs results, as far as it is known before any force constants.
    """

    settings: HarmonicSettings
    prepared: Prepared
    matrix: np.ndarray
    charges: born.Born | None
    warnings: tuple[str, ...]
    progress: Progress

    @classmethod
    def begin(
        cls,
        atoms: Atoms,
        potential: BatchPotential,
        settings: HarmonicSettings,
        progress: Progress = silent,
        strain: float = 0.0,
        displacement: Callable[[Atoms, BatchPotential], float] | None = None,
    ) -> HarmonicRun:
        """Check and relax a crystal, and choose its supercell.

        Args:
            atoms: any cell of the crystal. potential: the model. settings: of the protocol.
            progress: called as the relaxation goes on.
            strain: largest relative change of a length that is going to follow.
            displacement: of the relaxed primitive cell, the largest one that is going to follow, Å,
                where that is larger than those of the settings.

        Raises:
            InputError: a crystal without phonons, or a supercell or Born charges that do not fit.
            NotConvergedError: the relaxation did not converge.
        """
        check(atoms, settings)
        charges = None
        if settings.born is not None:  # they belong to the crystal as it was given
            charges = _born(Cells.of(atoms, settings.symprec), settings)
        prepared = prepare.prepare(atoms, potential, settings, WHAT, progress)
        cells, potential = prepared.cells, prepared.potential
        cutoff = potential.model.config.descriptor.e_rcut
        matrix, warnings = choose(cells, parse(settings.supercell), cutoff)
        primitive = cells.primitive.atoms
        longest = settings.distance if settings.method == "fd" else 0.0
        if displacement is not None:
            longest = max(longest, displacement(primitive, potential))
        warnings += guards.check(primitive, potential, strain=strain, displacement=longest)
        warnings += charges.warnings if charges else ()
        symbols = set(primitive.get_chemical_symbols())
        if charges is None and len(symbols) > 1 and symbols & ANIONS:
            warnings.append(
                "without Born charges the longitudinal and transverse optical modes of a polar "
                "insulator are not split at Γ; --born FILE adds the splitting"
            )
        found = (*prepared.warnings, *warnings)
        return cls(settings, prepared, matrix, charges, found, progress)

    def force_constants(self, structures: list[Atoms]) -> tuple[list[Harmonic], int]:
        """Force constants of primitive cells, and the number of batches that they took."""
        potential, unit = self.prepared.potential, self.prepared.cells.primitive
        nac = []
        if self.charges is not None:
            symprec = self.settings.symprec
            cell = new_phonopy(unit.atoms, np.eye(3, dtype=int), symprec).primitive
            nac = [self.charges.parameters(unit, cell, symprec)] * len(structures)
        before = potential.batches
        crystals = harmonic(structures, self.matrix, potential, self.settings, nac, self.progress)
        return crystals, potential.batches - before


def check(atoms: Atoms, settings: HarmonicSettings) -> None:
    """Raise InputError if ``atoms`` have no phonons with these settings; cheap."""
    check_masses(atoms)
    cells = prepare.check(atoms, settings, WHAT)
    choose(cells, parse(settings.supercell), 0.0)
    if settings.born is not None:
        _born(cells, settings)


def stages_of(
    atoms: Atoms, settings: HarmonicSettings, cutoff: float, crystals: int, strained: int = 0
) -> list[Stage]:
    """What a protocol that needs force constants is going to evaluate.

    Args:
        atoms: any cell of the crystal. settings: of the protocol. cutoff: of the model, Å.
        crystals: number of crystals with force constants.
        strained: how many of them are at other volumes.
    """
    cells = prepare.starting_cells(atoms, settings)
    start, request = cells.primitive.atoms, parse(settings.supercell)
    matrix, _ = choose(cells, request, cutoff)
    # Only a supercell given by its vectors does not depend on their lengths in the end.
    fixed = request.matrix is not None or not settings.relax
    sure, note = prepare.certainty(cells, settings)
    return [
        *prepare.stages(cells, settings),
        guards.stage(start),
        *([volumes.stage(start, strained, settings)] if strained else []),
        *force_stages(
            start,
            matrix,
            crystals,
            settings,
            certain=fixed and sure,
            note=note if fixed else "unless the relaxed cell needs another supercell",
        ),
    ]


def series(
    values: np.ndarray, n_atoms: int, name: str, unit: str, cells: Cells
) -> dict[str, list[float]]:
    """:meth:`Extensive.keys` for an array of values."""
    factors = Extensive(1.0, n_atoms).keys(name, unit, cells)
    return {key: (factor * values).tolist() for key, factor in factors.items()}


def _born(cells: Cells, settings: HarmonicSettings) -> born.Born:
    """The Born charges of a crystal from the file of the settings."""
    assert settings.born is not None
    unit = new_phonopy(cells.primitive.atoms, np.eye(3, dtype=int), settings.symprec)
    return born.read(settings.born, cells.primitive, unit.primitive, settings.symprec)
