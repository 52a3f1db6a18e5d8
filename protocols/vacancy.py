"""Formation energies of neutral vacancies in a supercell of the relaxed crystal.

    E_f = E(N - 1 atoms) + mu - E(N atoms)

with the ions relaxed in the cell of the perfect crystal. mu is the chemical potential of the
missing element: its energy per atom in a reference, which for an element is the crystal itself
(Zhang and Northrup, Phys. Rev. Lett. 67, 2339 (1991); docs/methods.md#vacancies-and-surfaces).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError, NotConvergedError
from dpa3sim.common.settings import option

from .base import Event, Progress, Stage, relaxation, silent
from .crystals import guards, prepare, supercells
from .crystals import relaxation as relax
from .crystals.cells import Cells, Supercell, connected_dimension
from .crystals.point_defects import (
    Site,
    image_distance,
    rattled,
    shell_displacement,
    sites,
    without,
)
from .crystals.prepare import PropertyResult, PropertySettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Face distance of `supercell=auto`, Å, or twice the cutoff of the model if that is more.
WIDTH = 12.0
# A warning is given if a formation energy changes by more between the two largest supercells, eV,
SIZE_CHANGE = 0.05
# or if the energies of the same crystal in primitive cells and in a supercell differ by more, eV.
SAME_CRYSTAL = 1e-3
# Crystals without any of these elements are metals or alloys, whose vacancies have no charge.
NONMETALS = frozenset("H He B C N O F Ne Si P S Cl Ar Ge As Se Br Kr Sb Te I Xe At Rn".split())


@dataclass(frozen=True)
class Settings(PropertySettings):
    """Options of vacancy formation energies."""

    supercell: str = option(
        "auto",
        f"largest supercell: {supercells.FORMS}; auto is 12 Å or twice the cutoff of the model",
    )
    sizes: int = option(
        2, "how many supercells: that one, and smaller ones of its shape", minimum=1
    )
    rattle: float = option(
        0.05,
        "random displacement of the neighbours of the vacancy, so that it may lose its symmetry",
        unit="Å",
        minimum=0,
    )
    seed: int = option(0, "of the random displacements", minimum=0)
    reference: str | None = option(
        None,
        "files of elements in their reference states, for the chemical potentials in a compound, "
        "separated by commas, such as Mg.cif,O2.xyz",
    )
    fmax: float = option(1e-3, "largest force of a relaxed structure", unit="eV/Å", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        supercells.parse(self.supercell)


@dataclass(frozen=True)
class Vacancy:
    """One vacancy in one supercell.

    Attributes:
        site: the site whose atom is missing.
        n_atoms: of the perfect supercell.
        face_distance: of the supercell, Å. image_distance: to the nearest other vacancy, Å.
        atoms: the relaxed structure with energy and forces.
        perfect: energy of the perfect supercell, eV; start: of the unrelaxed vacancy.
        chemical_potential: of the missing atom, eV; None if unknown.
        displacement: largest displacement of an atom in the relaxation, Å.
        shell: change of the mean distance of the nearest neighbours from the vacancy, Å.
        dipole: ``(3, 3)`` elastic dipole, eV: virial less that of the perfect supercell.
        steps: number of steps of the relaxation.
    """

    site: Site
    n_atoms: int
    face_distance: float
    image_distance: float
    atoms: Atoms
    perfect: float
    start: float
    chemical_potential: float | None
    displacement: float
    shell: float
    dipole: np.ndarray
    steps: int

    @property
    def removal(self) -> float:
        """E(N - 1) - E(N): the formation energy without the chemical potential, eV."""
        return float(self.atoms.get_potential_energy()) - self.perfect

    @property
    def formation(self) -> float | None:
        """Formation energy, eV; None without a chemical potential."""
        mu = self.chemical_potential
        return None if mu is None else self.removal + mu

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; keys end in their units."""
        mu = self.chemical_potential
        return {
            "n_atoms_perfect": self.n_atoms,
            "face_distance_A": self.face_distance,
            "image_distance_A": self.image_distance,
            "formation_energy_eV": self.formation,
            "formation_energy_unrelaxed_eV": None if mu is None else self.start - self.perfect + mu,
            "removal_energy_eV": self.removal,
            "removal_energy_unrelaxed_eV": self.start - self.perfect,
            "relaxation_energy_eV": self.removal - (self.start - self.perfect),
            "largest_displacement_A": self.displacement,
            "neighbour_displacement_A": self.shell,
            "elastic_dipole_eV": self.dipole.tolist(),
            "n_steps": self.steps,
        }


@dataclass(frozen=True, kw_only=True)
class Result(PropertyResult[Settings]):
    """Vacancies at every kind of site, in supercells of increasing size.

    Attributes:
        vacancies: for each site, from the smallest supercell to the largest.
        chemical_potentials: by element, eV, with their references.
    """

    reasons: tuple[str, ...] = ("all vacancies are relaxed below the threshold",)
    energy_per_atom: float
    vacancies: tuple[tuple[Vacancy, ...], ...]
    chemical_potentials: Mapping[str, tuple[float, str]]

    def _values(self) -> dict[str, Any]:
        potentials = {
            element: {"chemical_potential_eV": mu, "reference": origin}
            for element, (mu, origin) in self.chemical_potentials.items()
        }
        return {
            **super()._values(),
            "energy_per_atom_eV": self.energy_per_atom,
            "charge": 0,
            "chemical_potentials": potentials,
            "sites": [_site_dict(vacancies) for vacancies in self.vacancies],
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError unless ``atoms`` is a crystal with a supercell that can lose an atom."""
    _shapes(prepare.check(atoms, settings, "vacancies"), settings, WIDTH)


def stages(
    atoms: Atoms,
    settings: Settings,
    cutoff: float,
    *,
    references: Mapping[str, Atoms] | None = None,
) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    cells = prepare.starting_cells(atoms, settings)
    crystal = cells.primitive.atoms
    shapes = _shapes(cells, settings, _width(cutoff))
    fixed = supercells.parse(settings.supercell).matrix is not None or not settings.relax
    sure, note = prepare.certainty(cells, settings)
    if not fixed:
        sure, note = False, "unless the relaxed cell needs another supercell"
    perfect = [shape.size * len(crystal) for shape in shapes]
    holes = [n - 1 for _ in sites(cells) for n in perfect]
    found = [*prepare.stages(cells, settings), Stage("crystal", [len(crystal)], crystal)]
    for name, reference in (references or {}).items():
        found.append(
            relaxation(f"reference {name}", [len(reference)], reference, settings.steps)
            if settings.relax
            else Stage(f"reference {name}", [len(reference)], reference)
        )
    return [
        *found,
        Stage("perfect supercells", perfect, crystal, certain=sure, note=note),
        Stage("vacancies, not relaxed", holes, crystal, certain=sure, note=note),
        relaxation("vacancies", holes, crystal, settings.steps),
        guards.stage(crystal),
    ]


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    references: Mapping[str, Atoms] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Formation energies of the vacancies of a crystal, one for every kind of site.

    Args:
        atoms: any cell of the crystal. potential: the model. settings: options.
        references: elements in their reference states, by name, for the chemical potentials. They
            are relaxed like the crystal. An element needs none: it is its own reference.
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal, its supercell has a single atom, or a reference
            does not fit.
        NotConvergedError: a relaxation did not converge.
    """
    settings, progress = settings or Settings(), progress or silent
    prepared = prepare.prepare(atoms, potential, settings, "vacancies", progress)
    cells, potential = prepared.cells, prepared.potential
    width = _width(potential.model.config.descriptor.e_rcut)
    shapes = _shapes(cells, settings, width)
    bulk = potential.evaluate([cells.primitive.atoms])[0]
    energy_per_atom = bulk.energy / len(cells.primitive.atoms)
    potentials = _chemical_potentials(
        cells, energy_per_atom, references or {}, potential, settings, progress
    )
    vacancies = _vacancies(cells, shapes, potential, settings, potentials, progress)
    largest = max(v.displacement for site in vacancies for v in site)
    warnings = [
        *prepared.warnings,
        *guards.afterwards(guards.check, cells.primitive.atoms, potential, displacement=largest),
        *_size_warnings(vacancies, len(shapes), settings, width, energy_per_atom),
        *_reference_warnings(vacancies, potentials),
        *(
            f"reference {name} is a molecule; model {potential.model.name} is used regardless of "
            "its training data"
            for name, reference in (references or {}).items()
            if not reference.pbc.any()
        ),
    ]
    return Result(
        settings=settings,
        prepared=prepared,
        energy_per_atom=energy_per_atom,
        vacancies=vacancies,
        chemical_potentials=potentials,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _width(cutoff: float) -> float:
    """Face distance of ``supercell=auto`` for a cutoff, both in Å."""
    return max(WIDTH, 2 * cutoff)


def _shapes(cells: Cells, settings: Settings, width: float) -> list[supercells.Shape]:
    """The supercells, from the smallest to the largest."""
    shape: supercells.Shape | None = supercells.choose(
        cells, supercells.parse(settings.supercell), width
    )
    shapes: list[supercells.Shape] = []
    while shape is not None and len(shapes) < settings.sizes:
        if shape.size * len(cells.primitive.atoms) > 1:
            shapes.insert(0, shape)
        shape = shape.smaller()
    if not shapes:
        raise InputError(
            f"supercell = {settings.supercell} has a single atom, so that nothing would be left"
        )
    return shapes


def _vacancies(
    cells: Cells,
    shapes: list[supercells.Shape],
    potential: BatchPotential,
    settings: Settings,
    potentials: Mapping[str, tuple[float, str]],
    progress: Progress,
) -> tuple[tuple[Vacancy, ...], ...]:
    """All vacancies in all supercells, relaxed in lockstep."""
    perfect = [Supercell.of(cells.primitive, shape.matrix).atoms for shape in shapes]
    kinds = sites(cells)
    pairs = [(kind, box) for kind in kinds for box in range(len(perfect))]
    starts = [without(perfect[box], kind.index) for kind, box in pairs]
    evaluations = potential.evaluate([*perfect, *starts])
    bulks, unrelaxed = evaluations[: len(perfect)], evaluations[len(perfect) :]
    sizes = ", ".join(str(len(box)) for box in perfect)
    progress(Event("vacancy", f"inequivalent sites: {len(kinds)}; supercells of {sizes} atoms"))
    rng = np.random.default_rng(settings.seed)
    moved = [
        rattled(start, perfect[box].positions[kind.index], settings.rattle, rng)
        for (kind, box), start in zip(pairs, starts, strict=True)
    ]
    fixed = prepare.relax_settings(settings, "fixed", symmetric=False)
    relaxed = prepare.relax_together(moved, potential, fixed, "vacancy", progress)
    found: list[list[Vacancy]] = [[] for _ in kinds]
    for number, (kind, box) in enumerate(pairs):
        hole = perfect[box].positions[kind.index]
        atoms, start = relaxed[number].atoms, starts[number]
        moves = np.linalg.norm(atoms.positions - start.positions, axis=1)
        mu = potentials.get(kind.element)
        vacancy = Vacancy(
            site=kind,
            n_atoms=len(perfect[box]),
            face_distance=supercells.face_distance(cells, shapes[box].matrix),
            image_distance=image_distance(perfect[box]),
            atoms=atoms,
            perfect=bulks[box].energy,
            start=unrelaxed[number].energy,
            chemical_potential=None if mu is None else mu[0],
            displacement=float(moves.max()),
            shell=shell_displacement(atoms, start, hole),
            dipole=-atoms.get_volume() * atoms.get_stress(voigt=False) - bulks[box].virial,
            steps=relaxed[number].steps[-1].index,
        )
        found[kinds.index(kind)].append(vacancy)
    return tuple(tuple(vacancies) for vacancies in found)


def _chemical_potentials(
    cells: Cells,
    energy_per_atom: float,
    references: Mapping[str, Atoms],
    potential: BatchPotential,
    settings: Settings,
    progress: Progress,
) -> dict[str, tuple[float, str]]:
    """Energy per atom and name of the reference of every element that has one."""
    elements = sorted(set(cells.primitive.atoms.symbols))
    if len(elements) == 1:
        if references:
            raise InputError(
                f"a crystal of {elements[0]} alone is its own reference; leave out reference"
            )
        return {elements[0]: (energy_per_atom, "the crystal itself")}
    given: dict[str, tuple[str, Atoms]] = {}
    for name, atoms in references.items():
        element = reference_element(name, atoms)
        if element not in elements:
            raise InputError(f"reference {name} is {element}, which the crystal does not contain")
        if element in given:
            raise InputError(f"references {given[element][0]} and {name} are both {element}")
        given[element] = (name, atoms)
    found = {}
    for element, (name, atoms) in given.items():
        energy = _reference_energy(name, atoms, potential, settings)
        found[element] = (energy, name)
        progress(Event("reference", f"{name}: {energy:.6f} eV per atom of {element}"))
    return found


def reference_element(name: str, atoms: Atoms) -> str:
    """The element of a reference structure.

    Raises:
        InputError: it has several elements.
    """
    elements = sorted(set(atoms.symbols))
    if len(elements) != 1:
        raise InputError(f"reference {name} must be of one element, not of {', '.join(elements)}")
    return str(elements[0])


def _reference_energy(
    name: str, atoms: Atoms, potential: BatchPotential, settings: Settings
) -> float:
    """Energy per atom of a reference, relaxed like the crystal; only crystals relax their cell."""
    atoms = atoms.copy()
    atoms.set_constraint()
    if not settings.relax:
        return potential.evaluate([atoms])[0].energy / len(atoms)
    crystal = atoms.pbc.all() and connected_dimension(atoms) == 3
    cell = "full" if crystal else "fixed"
    options = prepare.relax_settings(settings, cell, symmetric=False)
    result = relax.run(atoms, potential, options)
    if not result.converged:
        raise NotConvergedError(
            f"reference {name} did not converge in {result.steps[-1].index} steps: "
            f"{'; '.join(result.reasons)}"
        )
    return result.steps[-1].energy_eV / len(atoms)


def _size_warnings(
    vacancies: tuple[tuple[Vacancy, ...], ...],
    n_sizes: int,
    settings: Settings,
    width: float,
    energy_per_atom: float,
) -> list[str]:
    """Warnings about results that depend on the sizes of the supercells."""
    warnings = []
    largest = vacancies[0][-1]
    if n_sizes < 2:
        why = "sizes = 1" if settings.sizes == 1 else "there is no smaller one"
        warnings.append(f"convergence with the size of the supercell was not checked ({why})")
    if largest.face_distance < width - 1e-6:
        warnings.append(
            f"faces of the largest supercell are {largest.face_distance:.1f} Å apart; below "
            f"{width:g} Å a vacancy interacts with its own images"
        )
    for site in vacancies:
        change = site[-1].removal - site[-2].removal if n_sizes > 1 else 0.0
        if abs(change) > SIZE_CHANGE:
            warnings.append(
                f"the formation energy of {site[0].site.element} ({site[0].site.wyckoff}) changes "
                f"by {change:+.3f} eV from {site[-2].n_atoms} to {site[-1].n_atoms} atoms: use a "
                "larger supercell"
            )
    for vacancy in vacancies[0]:
        off = vacancy.perfect - vacancy.n_atoms * energy_per_atom
        if abs(off) > SAME_CRYSTAL:
            warnings.append(
                f"the energy of the perfect supercell of {vacancy.n_atoms} atoms differs by "
                f"{off:+.4f} eV from that of as many atoms in primitive cells (selection limit of "
                "the model); formation energies are relative to the supercell"
            )
    return warnings


def _reference_warnings(
    vacancies: tuple[tuple[Vacancy, ...], ...], potentials: Mapping[str, tuple[float, str]]
) -> list[str]:
    elements = sorted({site[0].site.element for site in vacancies})
    warnings = []
    missing = [element for element in elements if element not in potentials]
    if missing:
        warnings.append(
            f"there is no reference for {', '.join(missing)}: only the energy without the chemical "
            "potential (removal_energy_eV) is known; add the latter, or use --reference"
        )
    if NONMETALS & set(elements):
        warnings.append(
            "vacancies are neutral; the charged ones of insulators and semiconductors cannot be "
            "described"
        )
    return warnings


def _site_dict(vacancies: tuple[Vacancy, ...]) -> dict[str, Any]:
    """A site, its values in the largest supercell, and all sizes."""
    site, largest = vacancies[0].site, vacancies[-1]
    change = None if len(vacancies) < 2 else largest.removal - vacancies[-2].removal
    return {
        "element": site.element,
        "wyckoff": site.wyckoff,
        "multiplicity_primitive": site.multiplicity,
        "index_input": site.input_index,
        "chemical_potential_eV": largest.chemical_potential,
        **largest.to_dict(),
        "size_change_eV": change,
        "by_size": [vacancy.to_dict() for vacancy in vacancies],
    }
