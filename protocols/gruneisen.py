"""Mode Grüneisen parameters: how frequencies change with the volume (phonopy).

γ = -(V / ω) dω/dV, from the dynamical matrices at two volumes about the minimum, ions and shape
relaxed at each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import UnphysicalError
from dpa3sim.common.settings import option
from dpa3sim.common.units import KELVIN_PER_THZ

from . import phonon
from .base import Stage
from .crystals import prepare
from .crystals.prepare import Event, Prepared, Progress
from .crystals.volumes import at_volumes
from .harmonics import imaginary
from .harmonics.bands import BandPath
from .harmonics.force_constants import Harmonic
from .harmonics.imaginary import Verdict
from .phonon import HarmonicSettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

WHAT = "Grüneisen parameters"
# Modes below this (THz) are left out: translations, and those near Γ that phonopy takes for
# degenerate and exchanges.
LOWEST = 0.2
# h / k_B, K per THz.
check = phonon.check


@dataclass(frozen=True)
class Settings(HarmonicSettings):
    """Options of a calculation of Grüneisen parameters."""

    strain: float = option(0.01, "relative change of the volume, to either side", minimum=1e-5)


@dataclass(frozen=True)
class Result:
    """Mode Grüneisen parameters of a crystal.

    Attributes:
        prepared: the relaxed crystal. crystals: it, smaller, and larger, with force constants.
        path: of the bands.
        distances: along the path, of each line. bands: ``(n, modes)`` THz of each line.
        band_parameters: of the same, NaN for translations.
        mesh: numbers of points. frequencies, parameters: ``(n, modes)`` on the mesh.
        weights: ``(n,)``.
        temperatures: K. averages: ``(n,)``, mean over the modes weighted by their heat capacity.
        gamma_frequencies, gamma_parameters: of the optical modes at Γ.
    """

    settings: Settings
    prepared: Prepared
    crystals: tuple[Harmonic, Harmonic, Harmonic]
    matrix: np.ndarray
    path: BandPath
    distances: list[np.ndarray]
    bands: list[np.ndarray]
    band_parameters: list[np.ndarray]
    mesh: tuple[int, ...]
    frequencies: np.ndarray
    parameters: np.ndarray
    weights: np.ndarray
    temperatures: np.ndarray
    averages: np.ndarray
    gamma_frequencies: np.ndarray
    gamma_parameters: np.ndarray
    verdict: Verdict
    n_batches: int
    converged: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        crystal, cells = self.crystals[0], self.prepared.cells
        counted = np.isfinite(self.parameters)
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.prepared.to_dict(),
            **phonon.supercell_keys(crystal, self.matrix, cells),
            "n_batches": self.n_batches,
            **phonon.residual_keys(crystal),
            **self.verdict.to_dict(),
            "volume_strains": [0.0, -self.settings.strain, self.settings.strain],
            "frequencies_gamma_optical_THz": self.gamma_frequencies.tolist(),
            "gruneisen_gamma_optical": self.gamma_parameters.tolist(),
            "gruneisen_lowest": float(self.parameters[counted].min()),
            "gruneisen_highest": float(self.parameters[counted].max()),
            "temperatures_K": self.temperatures.tolist(),
            "gruneisen_average": self.averages.tolist(),
            "mesh": list(self.mesh),
            **self.path.to_dict(cells.input.atoms.cell[:], crystal.phonon.primitive.cell),
            "settings": options_of.to_dict(self.settings),
        }


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    return phonon.harmonic_stages(atoms, settings, cutoff, 3, strained=2)


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Relax a crystal and compute its mode Grüneisen parameters.

    Args:
        atoms: any cell of the crystal; not changed.
        potential: the model. settings: options, defaults where None.
        progress: called with what happens.

    Raises:
        InputError: no crystal, or a supercell that does not fit it.
        NotConvergedError: a relaxation did not converge.
        UnphysicalError: the crystal is dynamically unstable.
    """
    settings = settings or Settings()
    check(atoms, settings)
    charges = phonon.born_charges(atoms, settings)
    prepared = prepare.prepare(atoms, potential, settings, WHAT, progress)
    matrix, warnings = phonon.preflight(prepared, settings, charges, strain=settings.strain / 3)
    strained, _ = at_volumes(prepared, (-settings.strain, settings.strain), settings, progress)
    crystals, n_batches = phonon.force_constants(
        [prepared.cells.primitive.atoms, *strained], matrix, prepared, settings, charges, progress
    )
    verdicts = []
    for crystal, name in zip(crystals, ("relaxed", "smaller", "larger"), strict=True):
        crystal.phonon.run_mesh(settings.mesh)
        verdicts.append(phonon.verdict_of(crystal))
        refuse_unstable(verdicts[-1], f"the crystal at the {name} volume")
    verdict = verdicts[0]
    warnings += phonon.verdict_warnings(verdict, crystals[0].phonon)
    if progress:
        progress(Event("gruneisen", "derivatives of the frequencies"))
    path = BandPath.of(crystals[0].atoms, settings.symprec)
    return _result(settings, prepared, crystals, matrix, path, verdict, n_batches, warnings)


def refuse_unstable(verdict: Verdict, what: str) -> None:
    """Raise UnphysicalError for an unstable crystal: nothing can be built on it."""
    if verdict.state == imaginary.UNSTABLE:
        raise UnphysicalError(
            f"{what} is dynamically unstable ({verdict.reason}); "
            "dpa3sim phonon --imaginary follow finds a lower one"
        )


def _result(
    settings: Settings,
    prepared: Prepared,
    crystals: list[Harmonic],
    matrix: np.ndarray,
    path: BandPath,
    verdict: Verdict,
    n_batches: int,
    warnings: list[str],
) -> Result:
    from phonopy import PhonopyGruneisen

    start, smaller, larger = crystals
    mesh = tuple(np.asarray(start.phonon.mesh_numbers).tolist())
    found: Any = PhonopyGruneisen(start.phonon, larger.phonon, smaller.phonon)
    with np.errstate(divide="ignore", invalid="ignore"):
        found.set_mesh(mesh, is_gamma_center=True)
        found.set_band_structure(path.lines(start.phonon.primitive.cell))
    _, weights, frequencies, _, parameters = found.get_mesh()
    _, distances, bands, _, band_parameters = found.get_band_structure()
    gamma_frequencies, gamma_parameters = _at_gamma(crystals)
    t = phonon.temperatures(settings)
    parameters = _masked(frequencies, parameters)
    return Result(
        settings=settings,
        prepared=prepared,
        crystals=(start, smaller, larger),
        matrix=matrix,
        path=path,
        distances=[np.asarray(d) for d in distances],
        bands=[np.asarray(f) for f in bands],
        band_parameters=[_masked(f, p) for f, p in zip(bands, band_parameters, strict=True)],
        mesh=mesh,
        frequencies=np.asarray(frequencies),
        parameters=parameters,
        weights=np.asarray(weights),
        temperatures=t,
        averages=averages(t, np.asarray(frequencies), parameters, np.asarray(weights)),
        gamma_frequencies=gamma_frequencies,
        gamma_parameters=gamma_parameters,
        verdict=verdict,
        n_batches=n_batches,
        converged=True,
        reasons=("the force constants at all volumes are complete",),
        warnings=(*prepared.warnings, *warnings),
    )


def _at_gamma(crystals: list[Harmonic]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, THz, and parameters of the optical modes at Γ."""
    from phonopy.gruneisen.core import GruneisenBase

    start, smaller, larger = (crystal.phonon for crystal in crystals)
    matrices: list[Any] = [phonon.dynamical_matrix for phonon in (start, larger, smaller)]
    gamma = np.zeros((1, 3))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = GruneisenBase(matrices[0], matrices[1], matrices[2], qpoints=gamma)
    squares = np.asarray(found.get_eigenvalues())[0]
    frequencies = np.sign(squares) * np.sqrt(np.abs(squares)) * start.unit_conversion_factor
    optical = np.sort(np.argsort(np.abs(frequencies))[3:])
    return frequencies[optical], np.asarray(found.get_gruneisen())[0][optical]


def _masked(frequencies: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """The parameters, NaN for translations, what is near them, and imaginary modes."""
    return np.where(np.asarray(frequencies) > LOWEST, parameters, np.nan)


def averages(
    temperatures: np.ndarray, frequencies: np.ndarray, parameters: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean Grüneisen parameter ``(n,)``, modes weighted by their heat capacities.

    At 0 K, where these vanish, it is the value of the lowest temperature above.
    """
    counted = np.isfinite(parameters)
    f, p = frequencies[counted], parameters[counted]
    w = np.broadcast_to(weights[:, None], frequencies.shape)[counted]
    means = []
    for t in temperatures:
        x = KELVIN_PER_THZ * f / max(t, 1.0)
        capacity = w * (x / 2 / np.sinh(np.minimum(x / 2, 300))) ** 2
        means.append((capacity * p).sum() / capacity.sum())
    if len(means) > 1 and temperatures[0] == 0:
        means[0] = means[1]
    return np.array(means)
