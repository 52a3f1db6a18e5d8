"""Phonons: bands, densities of states, thermal properties, stability (phonopy).

The unit cell is the primitive one of the relaxed crystal, whatever cell was given: results do not
depend on that, and are given for the input cell, an atom and a formula unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.settings import option
from dpa3sim.common.units import KJ_PER_MOL, KM_PER_S

from .base import Stage
from .crystals import guards, prepare, volumes
from .crystals.cells import Cells, Extensive
from .crystals.isotopes import check_masses
from .crystals.prepare import Event, Prepared, Progress, PropertySettings
from .crystals.supercells import parse, widths
from .crystals.symmetric_supercells import choose
from .harmonics import born, imaginary
from .harmonics.bands import BandPath
from .harmonics.force_constants import Harmonic, force_stages, harmonic, new_phonopy
from .harmonics.imaginary import Child, Verdict

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy import Phonopy
    from phonopy.structure.symmetry import Symmetry

    from dpa3sim.potential.interface import BatchPotential

WHAT = "phonons"
# Frequencies at which densities of states are given.
DOS_POINTS = 201
# Elements whose compounds are polar: without Born charges the optical modes are not split.
ANIONS = ("N", "O", "F", "P", "S", "Cl", "As", "Se", "Br", "Te", "I")


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


@dataclass(frozen=True)
class Settings(HarmonicSettings):
    """Options of a phonon calculation."""

    imaginary: str = option(
        "report",
        "what to do where the crystal is unstable: report it, end with exit code 4 (error), or "
        "follow the softest mode to a lower minimum",
        choices=("report", "error", "follow"),
    )


@dataclass(frozen=True)
class Thermal:
    """Thermal properties of a primitive cell in the harmonic approximation.

    Attributes:
        temperatures: ``(n,)``, K. free_energy: ``(n,)``, kJ/mol.
        entropy, heat_capacity: ``(n,)``, J/K/mol, at constant volume.
        zero_point: kJ/mol. n_atoms: of the primitive cell.
    """

    temperatures: np.ndarray
    free_energy: np.ndarray
    entropy: np.ndarray
    heat_capacity: np.ndarray
    zero_point: float
    n_atoms: int

    @classmethod
    def of(cls, phonon: Phonopy, temperatures: np.ndarray) -> Thermal:
        """From the mesh of a phonopy object; imaginary and acoustic modes at Γ do not count."""
        found = phonon.run_thermal_properties(
            temperatures=temperatures, exclude_gamma_acoustic=True
        )
        return cls(
            np.asarray(found.temperatures),
            np.asarray(found.free_energy),
            np.asarray(found.entropy),
            np.asarray(found.heat_capacity),
            float(found.zero_point_energy or 0.0),
            len(phonon.primitive),
        )

    def to_dict(self, cells: Cells) -> dict[str, Any]:
        """JSON-ready: lists over the temperatures, per cell, atom and formula unit."""
        zero_point = Extensive(self.zero_point / KJ_PER_MOL, self.n_atoms)
        return {
            **zero_point.keys("zero_point_energy", "eV", cells),
            "temperatures_K": self.temperatures.tolist(),
            **series(self.free_energy, self.n_atoms, "free_energy", "kJ_per_mol", cells),
            **series(self.entropy, self.n_atoms, "entropy", "J_per_K_mol", cells),
            **series(self.heat_capacity, self.n_atoms, "heat_capacity", "J_per_K_mol", cells),
        }


@dataclass(frozen=True)
class Dos:
    """Densities of states per primitive cell, by linear tetrahedra.

    Attributes:
        frequencies: ``(n,)``, THz.
        projected: ``(n_atoms, n)``, 1/THz, on each atom of the primitive cell, equivalent ones
            alike.
    """

    frequencies: np.ndarray
    projected: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """``(n,)``, 1/THz; its integral is three times the number of atoms."""
        return self.projected.sum(axis=0)

    @classmethod
    def of(cls, phonon: Phonopy, frequencies: np.ndarray) -> Dos:
        """From the mesh of a phonopy object, with eigenvectors.

        The mean over equivalent atoms is the same at all wave vectors of a star, so that, unlike
        phonopy's own, it needs only the irreducible ones.
        """
        from phonopy.phonon.tetrahedron_method import get_integration_weights

        mesh: Any = phonon.mesh
        n_points, n_bands = mesh.frequencies.shape
        vectors = mesh.eigenvectors.reshape(n_points, -1, 3, n_bands)
        weights = (np.abs(vectors) ** 2).sum(axis=2)  # points, atoms, bands
        first = np.asarray(phonon.primitive_symmetry.get_map_atoms())
        for atom in set(first.tolist()):
            alike = first == atom
            weights[:, alike] = weights[:, alike].mean(axis=1, keepdims=True)
        grid = mesh.bz_grid
        irreducible = np.zeros(int(mesh.ir_grid_points.max()) + 1, dtype=np.int64)
        irreducible[mesh.ir_grid_points] = np.arange(n_points)
        # phonopy's accumulator would integrate them too, in as much time again.
        shares = get_integration_weights(
            frequencies,
            mesh.frequencies,
            grid,
            grid_points=grid.grg2bzg[mesh.ir_grid_points],
            bzgp2irgp_map=irreducible[mesh.grid_mapping_table[grid.bzg2grg]],
        )
        weights *= mesh.weights[:, None, None]
        density = np.einsum("pfb,pab->af", shares, weights, optimize=True)
        return cls(frequencies, density / np.prod(grid.D_diag))


@dataclass(frozen=True)
class Mode:
    """A set of degenerate modes at Γ.

    Attributes:
        frequency: THz. degeneracy: how many. irrep: Mulliken symbol, None where unknown.
        acoustic: whether the crystal moves as a whole.
    """

    frequency: float
    degeneracy: int
    irrep: str | None
    acoustic: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready keys."""
        return {
            "frequency_THz": self.frequency,
            "degeneracy": self.degeneracy,
            "irrep": self.irrep,
            "acoustic": self.acoustic,
        }


@dataclass(frozen=True)
class Result:
    """Phonons of a crystal.

    Attributes:
        prepared: the relaxed crystal in its cells.
        crystal: its primitive cell with phonopy's object, which has bands, mesh and thermal
            properties.
        path: of the bands.
        child: where an unstable crystal goes, if that was asked for.
        n_batches: batches that the supercells took.
    """

    settings: Settings
    prepared: Prepared
    crystal: Harmonic
    matrix: np.ndarray
    path: BandPath
    dos: Dos
    thermal: Thermal
    modes: tuple[Mode, ...]
    verdict: Verdict
    child: Child | None
    n_batches: int
    converged: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def phonon(self) -> Phonopy:
        """The phonopy object of the crystal."""
        return self.crystal.phonon

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        cells, phonon = self.prepared.cells, self.phonon
        bands = phonon.band_structure
        assert bands is not None
        velocities = [np.linalg.norm(v, axis=2).max() for v in bands.group_velocities or ()]
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.prepared.to_dict(),
            **supercell_keys(self.crystal, self.matrix, cells),
            "n_batches": self.n_batches,
            **residual_keys(self.crystal),
            **self.verdict.to_dict(),
            "frequencies_gamma_THz": gamma_frequencies(phonon).tolist(),
            "modes_gamma": [mode.to_dict() for mode in self.modes],
            "highest_frequency_THz": float(max(f.max() for f in bands.frequencies)),
            "highest_group_velocity_km_per_s": float(max(velocities)) * KM_PER_S,
            "nac": phonon.nac_params is not None,
            **self.path.to_dict(cells.input.atoms.cell[:], phonon.primitive.cell),
            "frequencies_special_points_THz": self._special_points(),
            "mesh": np.asarray(phonon.mesh_numbers).tolist(),
            **self.thermal.to_dict(cells),
            **(self.child.to_dict() if self.child else {}),
            "settings": options_of.to_dict(self.settings),
        }

    def _special_points(self) -> dict[str, list[float]]:
        """Frequencies at the labelled points; at Γ without the splitting by a direction."""
        points = self.path.coordinates(self.phonon.primitive.cell)
        found = self.phonon.run_qpoints(np.array(list(points.values()))).frequencies
        return {name: f.tolist() for name, f in zip(points, found, strict=True)}


def check(atoms: Atoms, settings: HarmonicSettings) -> None:
    """Raise InputError if there are no phonons of ``atoms``; cheap."""
    check_masses(atoms)
    cells = prepare.check(atoms, settings, WHAT)
    choose(cells, parse(settings.supercell), 0.0)
    _born(cells, settings)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model.

    Where an unstable mode is to be followed, more of what is not known before.
    """
    return harmonic_stages(atoms, settings, cutoff, 1)


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Relax a crystal and compute its phonons.

    Args:
        atoms: any cell of the crystal; not changed.
        potential: the model. settings: options, defaults where None.
        progress: called with what happens.

    Raises:
        InputError: no crystal, or a supercell or file of Born charges that does not fit it.
        NotConvergedError: a relaxation did not converge.
    """
    settings = settings or Settings()
    check(atoms, settings)
    charges = born_charges(atoms, settings)
    prepared = prepare.prepare(atoms, potential, settings, WHAT, progress)
    matrix, warnings = preflight(prepared, settings, charges)
    (crystal,), n_batches = force_constants(
        [prepared.cells.primitive.atoms], matrix, prepared, settings, charges, progress
    )
    if progress:
        progress(Event("phonons", "bands, densities of states, thermal properties"))
    path, dos, thermal = _spectrum(crystal, settings)
    verdict = verdict_of(crystal)
    warnings += verdict_warnings(verdict, crystal.phonon)
    child = None
    if settings.imaginary == "follow" and verdict.state == imaginary.UNSTABLE:
        child = imaginary.follow(crystal, verdict, prepared.potential, settings, progress)
        if child.gain <= 0:
            warnings.append("following the imaginary mode led to no lower energy")
    return Result(
        settings=settings,
        prepared=prepared,
        crystal=crystal,
        matrix=matrix,
        path=path,
        dos=dos,
        thermal=thermal,
        modes=_gamma_modes(crystal.phonon),
        verdict=verdict,
        child=child,
        n_batches=n_batches,
        converged=True,
        reasons=("the force constants are complete",),
        warnings=(*prepared.warnings, *warnings),
    )


# -- what protocols on top of phonons share -------------------------------------------------------


def preflight(
    prepared: Prepared,
    settings: HarmonicSettings,
    charges: born.Born | None,
    strain: float = 0.0,
) -> tuple[np.ndarray, list[str]]:
    """The supercell ``(3, 3)`` in vectors of the primitive cell, and warnings before any work."""
    cells, potential = prepared.cells, prepared.potential
    cutoff = potential.model.config.descriptor.e_rcut
    matrix, warnings = choose(cells, parse(settings.supercell), cutoff)
    displacement = settings.distance if settings.method == "fd" else 0.0
    warnings += guards.check(
        cells.primitive.atoms, potential, strain=strain, displacement=displacement
    )
    warnings += charges.warnings if charges else ()
    symbols = set(cells.primitive.atoms.get_chemical_symbols())
    if settings.born is None and len(symbols) > 1 and symbols & set(ANIONS):
        warnings.append(
            "without Born charges the longitudinal and transverse optical modes of a polar "
            "insulator are not split at Γ; --born FILE adds that"
        )
    return matrix, warnings


def born_charges(atoms: Atoms, settings: HarmonicSettings) -> born.Born | None:
    """The Born charges of the crystal as it was given, if there is a file of them.

    Raises:
        InputError: it does not fit the crystal.
    """
    if settings.born is None:
        return None
    return _born(Cells.of(atoms, settings.symprec), settings)


def _born(cells: Cells, settings: HarmonicSettings) -> born.Born | None:
    if settings.born is None:
        return None
    unit = new_phonopy(cells.primitive.atoms, np.eye(3, dtype=int), settings.symprec)
    return born.read(settings.born, cells.primitive, unit.primitive, settings.symprec)


def force_constants(
    structures: list[Atoms],
    matrix: np.ndarray,
    prepared: Prepared,
    settings: HarmonicSettings,
    charges: born.Born | None,
    progress: Progress | None,
) -> tuple[list[Harmonic], int]:
    """Force constants of primitive cells, with the options of a protocol, and the batches."""
    potential, unit = prepared.potential, prepared.cells.primitive
    nac = []
    if charges is not None:
        cell = new_phonopy(unit.atoms, np.eye(3, dtype=int), settings.symprec).primitive
        nac = [charges.parameters(unit, cell, settings.symprec)] * len(structures)
    before = potential.batches
    crystals = harmonic(
        structures,
        matrix,
        potential,
        method=settings.method,
        distance=settings.distance,
        symprec=settings.symprec,
        nac=nac,
        progress=progress,
    )
    return crystals, potential.batches - before


def harmonic_stages(
    atoms: Atoms, settings: HarmonicSettings, cutoff: float, crystals: int, strained: int = 0
) -> list[Stage]:
    """What protocols on top of phonons are going to evaluate.

    Args:
        atoms: any cell of the crystal. settings: of the protocol. cutoff: of the model, Å.
        crystals: how many have force constants. strained: how many of them are at other volumes.
    """
    cells = prepare.starting_cells(atoms, settings)
    start, request = cells.primitive.atoms, parse(settings.supercell)
    matrix, _ = choose(cells, request, cutoff)
    # Only a supercell by its vectors does not depend on how long these are in the end.
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
            method=settings.method,
            distance=settings.distance,
            symprec=settings.symprec,
            certain=fixed and sure,
            note=note if fixed else "unless the relaxed cell needs another supercell",
        ),
    ]


def temperatures(settings: HarmonicSettings) -> np.ndarray:
    """0 K to the highest temperature, K."""
    return np.arange(0.0, settings.t_max + 1e-6 * settings.t_step, settings.t_step)


def verdict_of(crystal: Harmonic) -> Verdict:
    """Whether a crystal is stable, from whatever bands and mesh its phonopy object has."""
    phonon = crystal.phonon
    others = []
    if phonon.band_structure is not None:
        bands = phonon.band_structure
        others += list(zip(bands.qpoints, bands.frequencies, strict=True))
    mesh: Any = phonon.mesh
    if mesh is not None:
        others.append((np.asarray(mesh.qpoints), np.asarray(mesh.frequencies)))
    return imaginary.judge(crystal, others)


def verdict_warnings(verdict: Verdict, phonon: Phonopy) -> list[str]:
    """What a verdict other than stable means for the results."""
    if verdict.state == imaginary.STABLE:
        return []
    warnings = [f"dynamically {verdict.state}: {verdict.reason}"]
    mesh: Any = phonon.mesh
    share = np.average((np.asarray(mesh.frequencies) < 0).mean(axis=1), weights=mesh.weights)
    if share > 0:
        warnings.append(
            f"imaginary modes, {100 * share:.2g} % of all, are left out of thermal properties"
        )
    return warnings


def supercell_keys(crystal: Harmonic, matrix: np.ndarray, cells: Cells) -> dict[str, Any]:
    """JSON-ready: what was displaced."""
    return {
        "supercell_matrix_primitive": matrix.tolist(),
        "supercell_matrix_input": (matrix @ cells.primitive.matrix).round(6).tolist(),
        "supercell_widths_A": widths(matrix @ crystal.atoms.cell[:]).tolist(),
        "n_atoms_supercell": len(crystal.phonon.supercell),
        "n_displacements": crystal.n_displacements,
    }


def residual_keys(crystal: Harmonic) -> dict[str, Any]:
    """JSON-ready: what symmetry forbids and was there before it was imposed."""
    residuals = crystal.residuals
    return {
        "residual_force_eV_per_A": residuals.force,
        "residual_drift_eV_per_A": residuals.drift,
        "residual_translation_eV_per_A2": residuals.asr,
        "residual_permutation_eV_per_A2": residuals.permutation,
        "residual_acoustic_gamma_THz": residuals.acoustic,
    }


def series(
    values: np.ndarray, n_atoms: int, name: str, unit: str, cells: Cells
) -> dict[str, list[float]]:
    """:meth:`Extensive.keys` for an array of values."""
    factors = Extensive(1.0, n_atoms).keys(name, unit, cells)
    return {key: (factor * values).tolist() for key, factor in factors.items()}


def gamma_frequencies(phonon: Phonopy) -> np.ndarray:
    """Frequencies at Γ ``(3n,)``, THz; imaginary ones negative."""
    return np.asarray(phonon.run_qpoints([[0.0, 0.0, 0.0]]).frequencies[0])


def _spectrum(crystal: Harmonic, settings: Settings) -> tuple[BandPath, Dos, Thermal]:
    """Bands and thermal properties, into the phonopy object, and densities of states."""
    phonon = crystal.phonon
    path = BandPath.of(crystal.atoms, settings.symprec)
    path.run(phonon)
    assert phonon.band_structure is not None
    frequencies = phonon.band_structure.frequencies
    highest = 1.02 * max(f.max() for f in frequencies)
    lowest = min(0.0, 1.02 * min(f.min() for f in frequencies))
    phonon.run_mesh(settings.mesh, with_eigenvectors=True)
    dos = Dos.of(phonon, np.linspace(lowest, highest, DOS_POINTS))
    return path, dos, Thermal.of(phonon, temperatures(settings))


def _symmetries(phonon: Phonopy) -> Iterator[Symmetry]:
    """All operations of the primitive cell, with tolerances from the least that they need.

    phonopy sets translations of 1 - tolerance (of a cell vector, not Å) and more to 0 in place, and
    then misses atoms of cells whose origin is a little off. Where they are a little off symmetry, a
    tolerance that finds the operations may be too tight to find the atoms that these exchange.
    """
    from phonopy.structure.symmetry import Symmetry

    found = phonon.primitive_symmetry
    count = len(found.symmetry_operations["rotations"])
    for tolerance in (1e-5, 1e-4, 1e-3):
        if tolerance < found.tolerance:
            tight = Symmetry(phonon.primitive, symprec=tolerance, distinguish_symbol_index=True)
            if len(tight.symmetry_operations["rotations"]) == count:
                yield tight
    yield found


def _representations(phonon: Phonopy) -> Any:
    """The irreducible representations at Γ that phonopy finds; None where it finds none."""
    from phonopy.phonon.irreps import IrReps

    assert phonon.dynamical_matrix is not None
    for symmetry in _symmetries(phonon):
        with suppress(RuntimeError, AssertionError, ValueError):
            return IrReps(
                phonon.dynamical_matrix,
                [0, 0, 0],
                symmetry,
                factor=phonon.unit_conversion_factor,
                symmetry_adapted=True,
            )
    return None


def _gamma_modes(phonon: Phonopy) -> tuple[Mode, ...]:
    """Degenerate sets at Γ with their irreducible representations, where these are known."""
    found = _representations(phonon)
    if found is None:
        frequencies = gamma_frequencies(phonon)
        acoustic = set(np.argsort(np.abs(frequencies))[:3].tolist())
        return tuple(Mode(float(f), 1, None, k in acoustic) for k, f in enumerate(frequencies))
    # phonopy shows the labels and has no public name for them; None where it knows none.
    labels = getattr(found, "_ir_labels", None) or [None] * len(found.band_indices)
    acoustic = set(np.argsort(np.abs(found.frequencies))[:3].tolist())
    return tuple(
        Mode(
            float(np.mean(found.frequencies[list(bands)])),
            len(bands),
            label,
            set(bands) <= acoustic,
        )
        for bands, label in zip(found.band_indices, labels, strict=True)
    )
