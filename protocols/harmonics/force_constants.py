"""Force constants of crystals: displaced supercells or Hessians in, phonopy objects out.

Many crystals, such as the volumes of a quasi-harmonic calculation, are one request.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import HESSIAN, Event, Progress, Stage, silent
from ..crystals.isotopes import symbols
from .hessians import analytic_force_constants, hessian_sizes

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy import Phonopy

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential

    from .properties import HarmonicSettings

# Number of rounds in which translation and permutation symmetry are imposed in turn.
SYMMETRIZE_ROUNDS = 10
# Rounding error of forces, eV/Å (docs/validation.md).
ROUNDING = {"float32": 1e-5, "float64": 1e-13}


@dataclass(frozen=True)
class Residuals:
    """How much the force constants broke symmetry before it was imposed.

    Attributes:
        force: largest force on an atom of the undisplaced crystal, subtracted, eV/Å.
        drift: largest mean force of a displaced supercell, subtracted, eV/Å.
        asr: largest sum of the force constants of an atom, which translation forbids, eV/Å^2.
        permutation: largest difference of a force constant and its transpose, eV/Å^2.
        acoustic: largest frequency of an acoustic mode at Γ, THz.
        eigenvalue: uncertainty of any squared frequency, THz^2: the largest change of one when
            symmetry was imposed, or what the above and rounding can change of the lightest atom's.
    """

    force: float
    drift: float
    asr: float
    permutation: float
    acoustic: float
    eigenvalue: float

    def to_dict(self) -> dict[str, float]:
        """JSON-ready keys."""
        return {
            "residual_force_eV_per_A": self.force,
            "residual_drift_eV_per_A": self.drift,
            "residual_translation_eV_per_A2": self.asr,
            "residual_permutation_eV_per_A2": self.permutation,
            "residual_acoustic_gamma_THz": self.acoustic,
        }


@dataclass(frozen=True)
class Harmonic:
    """A crystal with its force constants.

    Attributes:
        atoms: the primitive cell.
        phonon: phonopy's object, symmetrized force constants included; its unit cell is
            ``atoms``.
        residuals: how much they broke symmetry before.
        n_displacements: supercells that were evaluated; 0 for analytic force constants.
    """

    atoms: Atoms
    phonon: Phonopy
    residuals: Residuals
    n_displacements: int

    def commensurate(self) -> tuple[np.ndarray, np.ndarray]:
        """Wave vectors that fit the supercell, ``(n, 3)``; frequencies ``(n, bands)``, THz."""
        points = commensurate_points(self.phonon)
        return points, np.asarray(self.phonon.run_qpoints(points).frequencies)


def force_stages(
    atoms: Atoms,
    matrix: np.ndarray,
    count: int,
    settings: HarmonicSettings,
    certain: bool,
    note: str,
) -> list[Stage]:
    """What :func:`harmonic` is going to evaluate for ``count`` crystals like ``atoms``.

    Args:
        atoms: the primitive cell. matrix, settings: see :func:`harmonic`.
        certain, note: see :class:`Stage`.
    """
    phonon = new_phonopy(atoms, matrix, settings.symprec)
    rest = Stage("undisplaced crystal", [len(atoms)] * count, atoms, certain=certain)
    if settings.method == "analytic":
        sizes = hessian_sizes(phonon, atoms) * count
        what = Stage("second derivatives", sizes, atoms, certain=certain, note=note, kind=HESSIAN)
    else:
        phonon.generate_displacements(distance=settings.distance)
        displaced = len(phonon.supercells_with_displacements or ())
        sizes = [len(phonon.supercell)] * displaced * count
        what = Stage("displaced supercells", sizes, atoms, certain=certain, note=note)
    return [rest, what]


def harmonic(
    structures: Sequence[Atoms],
    matrix: np.ndarray,
    potential: BatchPotential,
    settings: HarmonicSettings,
    nac: Sequence[Any] = (),
    progress: Progress = silent,
) -> list[Harmonic]:
    """Force constants of primitive cells.

    Args:
        structures: the cells, at or near minima of their energy.
        matrix: ``(3, 3)``, vectors of the supercells in those of the cells.
        potential: evaluates all displaced supercells as one request.
        settings: with method and length of displacements, and tolerance of symmetry.
        nac: phonopy's parameters of the non-analytical correction of each cell; empty without.
        progress: called with what is going to be computed.
    """
    phonons = [new_phonopy(atoms, matrix, settings.symprec) for atoms in structures]
    if settings.method == "analytic":
        results = _analytic(phonons, structures, potential, progress)
    else:
        results = _finite(phonons, structures, potential, settings.distance, progress)
    for result, parameters in zip(results, nac, strict=bool(nac)):
        result.phonon.nac_params = parameters
    return results


def new_phonopy(atoms: Atoms, matrix: np.ndarray, symprec: float) -> Phonopy:
    """A phonopy object without force constants, with phonopy's masses unless ``atoms`` has some."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=symbols(atoms),
        masses=atoms.get_masses() if atoms.has("masses") else None,
        cell=atoms.cell[:],
        scaled_positions=atoms.get_scaled_positions(wrap=False),
    )
    with warnings.catch_warnings():
        # The choice of a supercell already warns of a lower symmetry.
        warnings.simplefilter("ignore", UserWarning)
        # phonopy has supercell vectors in columns. The non-Hermitian part of a dynamical matrix
        # measures the noise, until the force constants are symmetrized.
        return Phonopy(
            cell,
            supercell_matrix=matrix.T,
            primitive_matrix="P",
            symprec=symprec,
            hermitianize_dynamical_matrix=False,
            distinguish_symbol_index=True,
        )


def commensurate_points(phonon: Phonopy) -> np.ndarray:
    """Wave vectors that fit the supercell, in reciprocal vectors of the primitive cell."""
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    return np.asarray(get_commensurate_points(phonon.supercell_matrix))


def as_atoms(cell: Any) -> Atoms:
    """A cell of phonopy as ASE atoms."""
    from ase import Atoms

    atoms = Atoms(cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
    if np.abs(cell.masses - atoms.get_masses()).max(initial=0.0) > 1e-3:
        atoms.set_masses(cell.masses)
    return atoms


def _finite(
    phonons: Sequence[Phonopy],
    structures: Sequence[Atoms],
    potential: BatchPotential,
    distance: float,
    progress: Progress,
) -> list[Harmonic]:
    """Finite displacements, only the symmetry-independent ones, all in one request."""
    requests: list[Atoms] = list(structures)
    for phonon in phonons:
        phonon.generate_displacements(distance=distance)
        requests += [as_atoms(cell) for cell in phonon.supercells_with_displacements or ()]
    count = len(requests) - len(structures)
    size, s = len(phonons[0].supercell), "" if count == 1 else "s"
    progress(Event("displacements", f"{count} supercell{s} of {size} atoms"))
    answers = iter(potential.evaluate(requests))
    rests = [next(answers) for _ in structures]
    results = []
    rounding = ROUNDING[potential.dtype] / distance
    for phonon, atoms, rest in zip(phonons, structures, rests, strict=True):
        n = len(phonon.supercells_with_displacements or ())
        drift = _set_forces(phonon, [next(answers) for _ in range(n)], rest)
        phonon.produce_force_constants(calculate_full_force_constants=False)
        force = float(np.linalg.norm(rest.forces, axis=1).max())
        residuals = _symmetrize(phonon, force, drift, rounding)
        results.append(Harmonic(atoms, phonon, residuals, n))
    return results


def _set_forces(phonon: Phonopy, answers: Sequence[Evaluation], rest: Evaluation) -> float:
    """Set the forces less those of the undisplaced crystal and the drift; return the latter."""
    unit_atom = [phonon.supercell.u2u_map[u] for u in phonon.supercell.s2u_map]
    forces = np.array([answer.forces - rest.forces[unit_atom] for answer in answers])
    drift = forces.mean(axis=1, keepdims=True)
    phonon.forces = forces - drift
    return float(np.abs(drift).max())


def _analytic(
    phonons: Sequence[Phonopy],
    structures: Sequence[Atoms],
    potential: BatchPotential,
    progress: Progress,
) -> list[Harmonic]:
    results = []
    rests = potential.evaluate(list(structures))
    for phonon, atoms, rest in zip(phonons, structures, rests, strict=True):

        def report(done: int, total: int) -> None:
            message = f"{done} of {total} wave vectors"
            progress(Event("second derivatives", message, done, total))

        phonon.force_constants = analytic_force_constants(phonon, atoms, potential, report)
        force = float(np.linalg.norm(rest.forces, axis=1).max())
        results.append(Harmonic(atoms, phonon, _symmetrize(phonon, force, 0.0, 0.0), 0))
    return results


def _symmetrize(phonon: Phonopy, force: float, drift: float, rounding: float) -> Residuals:
    """Impose translation and permutation symmetry; return how much was broken before."""
    from phonopy.harmonic.force_constants import compact_fc_to_full_fc

    constants = np.asarray(phonon.force_constants)
    full = np.asarray(compact_fc_to_full_fc(phonon.primitive, constants))
    points = commensurate_points(phonon)
    before = phonon.run_qpoints(points, with_dynamical_matrices=True)
    matrices = np.asarray(before.dynamical_matrices)
    gamma = np.abs(points).max(axis=1).argmin()
    acoustic = np.sort(np.abs(before.frequencies[gamma]))[:3].max()
    phonon.symmetrize_force_constants(level=SYMMETRIZE_ROUNDS)
    after = phonon.run_qpoints(points, with_dynamical_matrices=True)
    moved = np.linalg.norm(np.asarray(after.dynamical_matrices) - matrices, ord=2, axis=(1, 2))
    asr = float(np.abs(constants.sum(axis=1)).max())
    permutation = float(np.abs(full - full.transpose(1, 0, 3, 2)).max())
    possible = (asr + permutation + rounding) / min(phonon.primitive.masses)
    eigenvalue = max(float(moved.max()), possible) * phonon.unit_conversion_factor**2
    return Residuals(force, drift, asr, permutation, float(acoustic), eigenvalue)
