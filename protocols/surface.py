"""Energies of surfaces, from slabs that are cut out of the relaxed crystal.

    gamma = (E_slab - n e_bulk) / 2 A

for a slab of n atoms with two equal faces of area A. A slab consists of whole primitive cells, so
that it has the composition of the crystal and e_bulk is the energy per atom of the same relaxed
crystal (docs/methods.md#vacancies-and-surfaces). The fit E_slab(n) = n e_bulk + 2 gamma A of
Fiorentini and Methfessel, J. Phys.: Condens. Matter 8, 6525 (1996), which needs no bulk energy,
checks that this reference is consistent.

A slab is periodic along its two vectors only: it does not interact across the vacuum, whatever
the width of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option
from dpa3sim.common.units import J_PER_M2

from .base import Event, Progress, Stage, relaxation, silent
from .crystals import guards, prepare
from .crystals.cells import Cells
from .crystals.prepare import PropertyResult, PropertySettings
from .crystals.slabs import Cut, Miller, cuts_of, distinct_faces, face_area, face_name, parse_miller

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Terminations whose energies differ by less (eV/Å^2) are equal.
SAME = 1e-6
# A warning is given if the two thickest slabs, or the fit and the thickest, differ by more, J/m^2.
THICKNESS_CHANGE = 0.01


@dataclass(frozen=True)
class Settings(PropertySettings):
    """Options of surface energies."""

    miller: str = option(
        "auto",
        "Miller indices in the conventional cell, such as 1,1,1 (--miller=-1,1,0 for a negative "
        "first one); auto is all different ones of 0 and 1",
        repeatable=True,
    )
    thickness: float = option(
        15.0,
        "least thickness of the thinnest slab: lattice planes times their distance",
        unit="Å",
        minimum=0,
    )
    sizes: int = option(3, "how many thicknesses, each at least 4 Å more", minimum=1)
    terminations: int = option(
        1, "how many cuts are relaxed for each index, those of lowest unrelaxed energy", minimum=1
    )
    vacuum: float = option(
        15.0, "vacuum in the files of slabs; it has no effect on energies", unit="Å", minimum=0
    )
    fmax: float = option(1e-3, "largest force of a relaxed structure", unit="eV/Å", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_miller(self.miller)


@dataclass(frozen=True)
class Slab:
    """A slab of one thickness.

    Attributes:
        atoms: the relaxed slab with energy and forces. start: its unrelaxed energy, eV.
        area: of one face, Å^2. periods: number of lattice planes of the primitive cell.
        bulk: energy of the crystal, eV/atom.
        displacement: largest displacement of an atom in the relaxation, Å.
        steps: number of steps of the relaxation.
    """

    atoms: Atoms
    start: float
    area: float
    periods: int
    bulk: float
    displacement: float
    steps: int

    @property
    def energy(self) -> float:
        """Relaxed energy, eV."""
        return float(self.atoms.get_potential_energy())

    @property
    def gamma(self) -> float:
        """Surface energy, eV/Å^2."""
        return (self.energy - len(self.atoms) * self.bulk) / (2 * self.area)

    @property
    def gamma_unrelaxed(self) -> float:
        """Surface energy before relaxation, eV/Å^2."""
        return (self.start - len(self.atoms) * self.bulk) / (2 * self.area)

    @property
    def thickness(self) -> float:
        """Distance from the lowest to the highest atom, Å."""
        return float(np.ptp(self.atoms.positions[:, 2]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; keys end in their units."""
        return {
            "n_atoms_slab": len(self.atoms),
            "n_layers": self.periods,
            "thickness_A": self.thickness,
            "area_A2": self.area,
            "energy_slab_eV": self.energy,
            **_both("surface_energy", self.gamma),
            **_both("surface_energy_unrelaxed", self.gamma_unrelaxed),
            "largest_displacement_A": self.displacement,
            "n_steps": self.steps,
        }


@dataclass(frozen=True)
class Fit:
    """E_slab(n) = n e_bulk + 2 gamma A.

    Attributes:
        bulk: eV/atom. gamma: eV/Å^2. rms: root mean square residual, eV.
    """

    bulk: float
    gamma: float
    rms: float


@dataclass(frozen=True)
class Surface:
    """A face of the crystal.

    Attributes:
        miller: indices in the conventional cell.
        termination: number of the cut, in the order of unrelaxed energies.
        terminations: number of different cuts. symmetric: whether both faces are equal.
        slabs: from the thinnest to the thickest. fit: to these; None for fewer than three.
    """

    miller: Miller
    termination: int
    terminations: int
    symmetric: bool
    slabs: tuple[Slab, ...]
    fit: Fit | None

    @property
    def gamma(self) -> float:
        """Surface energy of the thickest slab, eV/Å^2."""
        return self.slabs[-1].gamma

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the thickest slab, the fit, and all thicknesses."""
        slabs = self.slabs
        fit: dict[str, Any] = {}
        if self.fit:
            fit = {
                **_both("surface_energy_fit", self.fit.gamma),
                "bulk_energy_fit_per_atom_eV": self.fit.bulk,
                "fit_rms_eV": self.fit.rms,
            }
        change = (slabs[-1].gamma - slabs[-2].gamma) * J_PER_M2 if len(slabs) > 1 else None
        return {
            "miller": list(self.miller),
            "termination": self.termination,
            "n_terminations": self.terminations,
            "equal_faces": self.symmetric,
            **slabs[-1].to_dict(),
            **fit,
            "thickness_change_J_per_m2": change,
            "by_thickness": [slab.to_dict() for slab in slabs],
        }


@dataclass(frozen=True, kw_only=True)
class Result(PropertyResult[Settings]):
    """Surfaces of a crystal, those of lowest energy first.

    Attributes:
        skipped: Miller indices without a surface energy, and the reasons.
    """

    reasons: tuple[str, ...] = ("all slabs are relaxed below the threshold",)
    energy_per_atom: float
    surfaces: tuple[Surface, ...]
    skipped: tuple[tuple[Miller, str], ...]

    def _values(self) -> dict[str, Any]:
        return {
            **super()._values(),
            "energy_per_atom_eV": self.energy_per_atom,
            "surfaces": [surface.to_dict() for surface in self.surfaces],
            "skipped": [{"miller": list(m), "reason": reason} for m, reason in self.skipped],
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError unless ``atoms`` is a crystal with faces that can be computed."""
    _all_cuts(prepare.check(atoms, settings, "surfaces"), settings)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    cells = prepare.starting_cells(atoms, settings)
    crystal = cells.primitive.atoms
    cuts, _ = _all_cuts(cells, settings)
    # Energies decide which cuts of a face are relaxed, but all of them have the same sizes.
    chosen: list[Cut] = []
    for cut in cuts:
        if sum(c.miller == cut.miller for c in chosen) < settings.terminations:
            chosen.append(cut)
    sure = not settings.relax
    note = "" if sure else "unless the relaxed cell needs other slabs"
    sizes, relaxed = ([len(slab) for cut in some for slab in cut.slabs] for some in (cuts, chosen))
    thinnest = min((slab for cut in cuts for slab in cut.slabs), key=len)
    return [
        *prepare.stages(cells, settings),
        Stage("crystal", [len(crystal)], crystal),
        Stage("slabs of all cuts, not relaxed", sizes, thinnest, certain=sure, note=note),
        relaxation("slabs", relaxed, thinnest, settings.steps),
        guards.stage(crystal),
    ]


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Energies of surfaces of a crystal.

    Args:
        atoms: any cell of the crystal. potential: the model. settings: options.
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal, or a face has no slab with two equal faces.
        NotConvergedError: a relaxation did not converge.
    """
    settings, progress = settings or Settings(), progress or silent
    prepared = prepare.prepare(atoms, potential, settings, "surfaces", progress)
    cells, potential = prepared.cells, prepared.potential
    cuts, skipped = _all_cuts(cells, settings)
    crystal = potential.evaluate([cells.primitive.atoms])[0]
    bulk = crystal.energy / len(cells.primitive.atoms)
    candidates = [slab for cut in cuts for slab in cut.slabs]
    evaluations = iter(potential.evaluate(candidates))
    energies = [[next(evaluations).energy for _ in cut.slabs] for cut in cuts]
    chosen = _chosen(cuts, energies, bulk, settings.terminations)
    n = sum(len(cut.slabs) for _, _, cut, _ in chosen)
    progress(Event("surface", f"{len(cuts)} cuts compared; {n} slabs to relax"))
    surfaces = _surfaces(chosen, bulk, potential, settings, progress)
    largest = max(slab.displacement for surface in surfaces for slab in surface.slabs)
    warnings = [
        *prepared.warnings,
        *guards.afterwards(guards.check, cells.primitive.atoms, potential, displacement=largest),
        *(f"{face_name(miller)} was left out: {reason}" for miller, reason in skipped),
        *(warning for surface in surfaces for warning in _warnings(surface)),
    ]
    return Result(
        settings=settings,
        prepared=prepared,
        energy_per_atom=bulk,
        surfaces=tuple(sorted(surfaces, key=lambda s: s.gamma)),
        skipped=tuple(skipped),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _all_cuts(cells: Cells, settings: Settings) -> tuple[list[Cut], list[tuple[Miller, str]]]:
    """Every cut of every face, and the faces that have none.

    Raises:
        InputError: a requested face has no cut, or no face has one.
    """
    asked = parse_miller(settings.miller)
    cuts: list[Cut] = []
    skipped: list[tuple[Miller, str]] = []
    for miller in asked or distinct_faces(cells):
        found = cuts_of(cells, miller, settings.thickness, settings.sizes, settings.vacuum)
        cuts += found
        if not found:
            formula = cells.primitive.atoms.get_chemical_formula(empirical=True)
            reason = (
                f"no slab of whole {formula} units has two equal faces there: it is polar, or its "
                "faces differ, so that a surface energy is not defined"
            )
            if asked:
                raise InputError(f"{face_name(miller)}: {reason}")
            skipped.append((miller, reason))
    if not cuts:
        names = ", ".join(face_name(miller) for miller, _ in skipped)
        raise InputError(f"{names}: {skipped[0][1]}; try other --miller")
    return cuts, skipped


def _chosen(
    cuts: list[Cut], energies: list[list[float]], bulk: float, most: int
) -> list[tuple[int, int, Cut, list[float]]]:
    """For each face its different cuts of lowest unrelaxed energy, with number and count."""

    def gamma(index: int) -> float:
        slab = cuts[index].slabs[-1]
        return (energies[index][-1] - len(slab) * bulk) / (2 * face_area(slab))

    chosen = []
    for miller in dict.fromkeys(cut.miller for cut in cuts):
        different: list[int] = []
        mine = [i for i, cut in enumerate(cuts) if cut.miller == miller]
        for index in sorted(mine, key=gamma):
            if not different or gamma(index) - gamma(different[-1]) > SAME:
                different.append(index)
        for number, index in enumerate(different[:most]):
            chosen.append((number, len(different), cuts[index], energies[index]))
    return chosen


def _surfaces(
    chosen: list[tuple[int, int, Cut, list[float]]],
    bulk: float,
    potential: BatchPotential,
    settings: Settings,
    progress: Progress,
) -> list[Surface]:
    """All slabs, relaxed in lockstep."""
    starts = [slab for _, _, cut, _ in chosen for slab in cut.slabs]
    fixed = prepare.relax_settings(settings, "fixed", symmetric=False)
    relaxed = iter(prepare.relax_together(starts, potential, fixed, "surface", progress))
    surfaces = []
    for number, count, cut, energies in chosen:
        slabs = []
        for start, energy, periods in zip(cut.slabs, energies, cut.periods, strict=True):
            result = next(relaxed)
            moved = np.linalg.norm(result.atoms.positions - start.positions, axis=1)
            steps = result.steps[-1].index
            slabs.append(
                Slab(
                    result.atoms, energy, face_area(start), periods, bulk, float(moved.max()), steps
                )
            )
        surfaces.append(
            Surface(cut.miller, number, count, cut.symmetric, tuple(slabs), _fit(slabs))
        )
    return surfaces


def _fit(slabs: list[Slab]) -> Fit | None:
    if len(slabs) < 3:
        return None
    n = np.array([len(slab.atoms) for slab in slabs], dtype=float)
    # The reference is subtracted, so that small numbers are fitted.
    excess = np.array([slab.energy for slab in slabs]) - n * slabs[0].bulk
    slope, rest = np.polyfit(n, excess, 1)
    rms = float(np.sqrt(np.mean((excess - slope * n - rest) ** 2)))
    return Fit(slabs[0].bulk + float(slope), float(rest) / (2 * slabs[0].area), rms)


def _both(name: str, gamma: float) -> dict[str, float]:
    """A surface energy in both units."""
    return {f"{name}_J_per_m2": gamma * J_PER_M2, f"{name}_eV_per_A2": gamma}


def _warnings(surface: Surface) -> list[str]:
    """Warnings about a surface energy, from the thicknesses and the faces of its slabs."""
    name, slabs = face_name(surface.miller), surface.slabs
    warnings = []
    if not surface.symmetric:
        warnings.append(f"{name}: the faces of the slab differ; the energy is their mean")
    if len(slabs) < 2:
        warnings.append(f"{name}: convergence with the thickness was not checked (sizes = 1)")
    else:
        change = (slabs[-1].gamma - slabs[-2].gamma) * J_PER_M2
        if abs(change) > THICKNESS_CHANGE:
            warnings.append(
                f"{name}: the surface energy changes by {change:+.3f} J/m^2 between the two "
                "thickest slabs; use a larger --thickness"
            )
    if surface.fit:
        off = (surface.fit.gamma - surface.gamma) * J_PER_M2
        if abs(off) > THICKNESS_CHANGE:
            warnings.append(
                f"{name}: the fit over the thicknesses differs by {off:+.3f} J/m^2 from the "
                "energy relative to the bulk reference"
            )
    return warnings
