"""Energies of surfaces, from slabs that are cut out of the relaxed crystal.

    gamma = (E_slab - n e_bulk) / 2 A

for a slab of n atoms with two equal faces of area A. Slabs are whole numbers of primitive cells,
so that they have the composition of the crystal and e_bulk is that of the same relaxed crystal
(docs/methods.md#vacancies-and-surfaces). That the reference is consistent is tested by the fit
E_slab(n) = n e_bulk + 2 gamma A of Fiorentini and Methfessel, J. Phys.: Condens. Matter 8, 6525
(1996), which needs no bulk energy.

A slab is periodic along its two vectors only: nothing is seen across the vacuum, whatever its
width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option
from dpa3sim.common.units import J_PER_M2

from .base import Stage, relaxation
from .crystals import guards, prepare
from .crystals.cells import Cells, symmetry
from .crystals.prepare import Event, Prepared, Progress, PropertySettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# A thicker slab of the series is thicker by at least this, Å.
THICKER = 4.0
# Atoms whose heights differ by less (Å) are one plane, between which no cut is made.
PLANE = 0.3
# Energies of terminations that differ by less (eV/Å^2) are those of equal ones.
SAME = 1e-6
# Changes from the two thickest slabs, and of the fit, that are worth a warning, J/m^2.
THICKNESS_CHANGE = 0.01

Miller = tuple[int, int, int]


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
        atoms: relaxed, with energy and forces. start: its unrelaxed energy, eV.
        area: of one face, Å^2. periods: lattice planes of the primitive cell.
        bulk: energy of an atom of the crystal, eV.
        displacement: largest one of an atom in the relaxation, Å. steps: of the relaxation.
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
        """From the lowest to the highest atom, Å."""
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
        bulk: eV/atom. gamma: eV/Å^2. rms: what the fit leaves, eV.
    """

    bulk: float
    gamma: float
    rms: float


@dataclass(frozen=True)
class Surface:
    """A face of the crystal.

    Attributes:
        miller: in the conventional cell. termination: number of the cut, by unrelaxed energy.
        terminations: different possible cuts. symmetric: whether both faces are equal.
        slabs: from the thinnest to the thickest. fit: over them; None for fewer than three.
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


@dataclass(frozen=True)
class Result:
    """Surfaces of a crystal, those of lowest energy first.

    Attributes:
        skipped: Miller indices without a surface energy, and why.
    """

    settings: Settings
    prepared: Prepared
    energy_per_atom: float
    surfaces: tuple[Surface, ...]
    skipped: tuple[tuple[Miller, str], ...]
    warnings: tuple[str, ...]
    converged: bool = True
    reasons: tuple[str, ...] = ("all slabs are relaxed below the threshold",)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.prepared.to_dict(),
            "energy_per_atom_eV": self.energy_per_atom,
            "surfaces": [surface.to_dict() for surface in self.surfaces],
            "skipped": [{"miller": list(m), "reason": reason} for m, reason in self.skipped],
            "settings": options_of.to_dict(self.settings),
        }


def parse_miller(text: str) -> list[Miller]:
    """Read a ``miller`` option: indices separated by commas, faces by spaces; empty for auto.

    Raises:
        InputError: it is something else, or no face.
    """
    if text.strip().lower() == "auto":
        return []
    faces: list[Miller] = []
    for word in text.split():
        match = re.fullmatch(r"\(?(-?\d+),(-?\d+),(-?\d+)\)?", word)
        match = match or re.fullmatch(r"(-?\d)(-?\d)(-?\d)", word)
        if not match:
            raise InputError(f"miller = {word!r} is not three whole numbers, such as 1,1,1")
        h, k, l = (int(n) for n in match.groups())  # noqa: E741 - their names everywhere
        divisor = math.gcd(h, k, l)
        if not divisor:
            raise InputError("miller = 0,0,0 is no face")
        face = (h // divisor, k // divisor, l // divisor)
        if face not in faces:
            faces.append(face)
    if not faces:
        raise InputError("miller is empty; write it as 1,1,1, or auto")
    return faces


def face_name(miller: Miller) -> str:
    """Such as ``(1 1 1)``."""
    return "(" + " ".join(str(n) for n in miller) + ")"


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if there is no crystal, or none of its faces can be computed."""
    _all_cuts(prepare.check(atoms, settings, "surfaces"), settings)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    cells = prepare.starting_cells(atoms, settings)
    crystal = cells.primitive.atoms
    cuts, _ = _all_cuts(cells, settings)
    # Which cuts of a face are relaxed is for their energies to say; they have the same sizes.
    chosen: list[_Cut] = []
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
        progress: called with what happens.

    Raises:
        InputError: no crystal, or a face without a slab of two equal faces.
        NotConvergedError: a relaxation did not converge.
    """
    settings = settings or Settings()
    prepared = prepare.prepare(atoms, potential, settings, "surfaces", progress)
    cells, potential = prepared.cells, prepared.potential
    cuts, skipped = _all_cuts(cells, settings)
    crystal = potential.evaluate([cells.primitive.atoms])[0]
    bulk = crystal.energy / len(cells.primitive.atoms)
    candidates = [slab for cut in cuts for slab in cut.slabs]
    evaluations = iter(potential.evaluate(candidates))
    energies = [[next(evaluations).energy for _ in cut.slabs] for cut in cuts]
    chosen = _chosen(cuts, energies, bulk, settings.terminations)
    if progress:
        n = sum(len(cut.slabs) for _, _, cut, _ in chosen)
        progress(Event("surface", f"{len(cuts)} cuts looked at; {n} slabs to relax"))
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


def distinct_faces(cells: Cells, largest: int = 1) -> list[Miller]:
    """Faces with indices up to ``largest`` that no symmetry of the crystal makes equal."""
    reciprocal = np.linalg.inv(cells.conventional.atoms.cell[:]).T
    seen: set[Miller] = set()
    faces: list[Miller] = []
    values = range(largest, -largest - 1, -1)
    every = [(h, k, m) for h in values for k in values for m in values]
    for face in sorted(every, key=lambda m: sum(map(abs, m))):
        if math.gcd(*face) != 1 or face in seen:
            continue
        faces.append(face)
        normals = cells.rotations @ (np.array(face) @ reciprocal)
        equal = np.rint(normals @ np.linalg.inv(reciprocal)).astype(int)
        # A slab has both faces, so that the opposite one is the same question.
        for m in (*equal.tolist(), *(-equal).tolist()):
            seen.add((m[0], m[1], m[2]))
    return faces


@dataclass(frozen=True)
class _Cut:
    """A face and where the crystal is cut, with slabs of all thicknesses."""

    miller: Miller
    slabs: tuple[Atoms, ...]
    periods: tuple[int, ...]
    symmetric: bool


def _all_cuts(cells: Cells, settings: Settings) -> tuple[list[_Cut], list[tuple[Miller, str]]]:
    """Every cut of every face, and the faces that have none.

    Raises:
        InputError: a face that was asked for has none, or all have none.
    """
    asked = parse_miller(settings.miller)
    cuts: list[_Cut] = []
    skipped: list[tuple[Miller, str]] = []
    for miller in asked or distinct_faces(cells):
        found = _cuts(cells, miller, settings)
        cuts += found
        if not found:
            formula = cells.primitive.atoms.get_chemical_formula(empirical=True)
            reason = (
                f"no slab of whole {formula} units has two equal faces there: it is polar, or its "
                "faces differ, so that no surface energy follows from it"
            )
            if asked:
                raise InputError(f"{face_name(miller)}: {reason}")
            skipped.append((miller, reason))
    if not cuts:
        names = ", ".join(face_name(miller) for miller, _ in skipped)
        raise InputError(f"{names}: {skipped[0][1]}; try other --miller")
    return cuts, skipped


def _cuts(cells: Cells, miller: Miller, settings: Settings) -> list[_Cut]:
    """All cuts of a face whose slabs have equal faces, or, of an element, any faces."""
    primitive = cells.primitive.atoms
    element = len(set(primitive.numbers.tolist())) == 1
    indices = _primitive_indices(cells, miller)
    height = float(1 / np.linalg.norm(_normal(primitive, indices)))
    first = max(1, math.ceil(settings.thickness / height - 1e-6))
    step = max(1, math.ceil(THICKER / height - 1e-6))
    periods = tuple(first + n * step for n in range(settings.sizes))
    cuts = []
    for shift in _shifts(primitive, indices, height):
        slabs = tuple(_slab(primitive, indices, n, shift, settings.vacuum) for n in periods)
        symmetric = all(has_equal_faces(slab, cells.symprec) for slab in slabs)
        if symmetric or element:
            cuts.append(_Cut(miller, slabs, periods, symmetric))
    # Of an element too, where some cut has equal faces the others are of no interest.
    return [cut for cut in cuts if cut.symmetric] or cuts


def _primitive_indices(cells: Cells, miller: Miller) -> Miller:
    """The indices of a face in the primitive cell."""
    change = cells.primitive.matrix @ np.linalg.inv(cells.conventional.matrix)
    # Of a lattice vector in a centred cell they may be fractions with a common denominator.
    scaled = np.rint(24 * change @ miller).astype(int)
    h, k, l = (scaled // np.gcd.reduce(scaled)).tolist()  # noqa: E741
    return h, k, l


def _normal(primitive: Atoms, indices: Miller) -> np.ndarray:
    """The reciprocal vector of a face: along its normal, one over the distance of planes, 1/Å."""
    normal: np.ndarray = np.array(indices) @ np.linalg.inv(primitive.cell[:]).T
    return normal


def _shifts(primitive: Atoms, indices: Miller, height: float) -> list[float]:
    """Heights, Å, in the middle between any two planes of atoms of one period."""
    normal = _normal(primitive, indices)
    heights = np.sort((primitive.positions @ normal / np.linalg.norm(normal)) % height)
    gaps = np.append(np.diff(heights), heights[0] + height - heights[-1])
    wide = [i for i, gap in enumerate(gaps) if gap > PLANE] or [int(np.argmax(gaps))]
    return [float(heights[i] + gaps[i] / 2) for i in wide]


def _slab(primitive: Atoms, indices: Miller, periods: int, shift: float, vacuum: float) -> Atoms:
    """A slab, cut ``shift`` (Å) above the origin, normal to z, with vacuum in its cell."""
    from ase.build import surface

    moved, normal = primitive.copy(), _normal(primitive, indices)
    moved.positions -= shift * normal / np.linalg.norm(normal)
    slab = surface(moved, indices, periods, periodic=True)
    slab.set_tags(None)
    slab.pbc = (True, True, False)
    slab.center(vacuum=vacuum / 2, axis=2)
    return slab


def has_equal_faces(slab: Atoms, symprec: float) -> bool:
    """Whether a symmetry takes one face of a slab, its normal along z, into the other one."""
    periodic = slab.copy()
    # Alone in its cell: with a narrow vacuum the symmetry would be that of a crystal.
    periodic.center(vacuum=10.0, axis=2)
    periodic.pbc = True
    dataset = symmetry(periodic, symprec)
    return dataset is not None and bool((dataset.rotations[:, 2, 2] == -1).any())


def _chosen(
    cuts: list[_Cut], energies: list[list[float]], bulk: float, most: int
) -> list[tuple[int, int, _Cut, list[float]]]:
    """For each face its different cuts of lowest unrelaxed energy, with number and count."""

    def gamma(index: int) -> float:
        slab = cuts[index].slabs[-1]
        return (energies[index][-1] - len(slab) * bulk) / (2 * _area(slab))

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


def _area(slab: Atoms) -> float:
    return float(np.linalg.norm(np.cross(slab.cell[0], slab.cell[1])))


def _surfaces(
    chosen: list[tuple[int, int, _Cut, list[float]]],
    bulk: float,
    potential: BatchPotential,
    settings: Settings,
    progress: Progress | None,
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
                Slab(result.atoms, energy, _area(start), periods, bulk, float(moved.max()), steps)
            )
        surfaces.append(
            Surface(cut.miller, number, count, cut.symmetric, tuple(slabs), _fit(slabs))
        )
    return surfaces


def _fit(slabs: list[Slab]) -> Fit | None:
    if len(slabs) < 3:
        return None
    n = np.array([len(slab.atoms) for slab in slabs], dtype=float)
    # Less the reference, so that small numbers are fitted.
    excess = np.array([slab.energy for slab in slabs]) - n * slabs[0].bulk
    slope, rest = np.polyfit(n, excess, 1)
    rms = float(np.sqrt(np.mean((excess - slope * n - rest) ** 2)))
    return Fit(slabs[0].bulk + float(slope), float(rest) / (2 * slabs[0].area), rms)


def _both(name: str, gamma: float) -> dict[str, float]:
    """A surface energy in both units."""
    return {f"{name}_J_per_m2": gamma * J_PER_M2, f"{name}_eV_per_A2": gamma}


def _warnings(surface: Surface) -> list[str]:
    """What the thicknesses and the faces of the slabs say of a surface energy."""
    name, slabs = face_name(surface.miller), surface.slabs
    warnings = []
    if not surface.symmetric:
        warnings.append(f"{name}: the faces of the slab differ; the energy is their mean")
    if len(slabs) < 2:
        warnings.append(f"{name}: convergence with the thickness was not looked at (sizes = 1)")
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
                "energy that the bulk reference gives"
            )
    return warnings
