"""Mode Grüneisen parameters: how frequencies change with the volume (phonopy).

γ = -(V / ω) dω/dV, from the dynamical matrices at two volumes about the minimum, with ions and
shape relaxed at each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.settings import option
from dpa3sim.common.units import KELVIN_PER_THZ

from .base import Event, Progress, Stage, silent
from .crystals.volumes import at_volumes
from .harmonics import imaginary
from .harmonics.bands import BandPath
from .harmonics.force_constants import Harmonic
from .harmonics.imaginary import Verdict
from .harmonics.properties import HarmonicResult, HarmonicRun, HarmonicSettings, check, stages_of

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

__all__ = ["Result", "Settings", "averages", "check", "run", "stages"]
# Modes below this (THz) are left out: translations, and modes near Γ that phonopy regards as
# degenerate and exchanges.
LOWEST = 0.2


@dataclass(frozen=True)
class Settings(HarmonicSettings):
    """Options of a calculation of Grüneisen parameters."""

    strain: float = option(0.01, "relative change of the volume, to either side", minimum=1e-5)


@dataclass(frozen=True, kw_only=True)
class Result(HarmonicResult[Settings]):
    """Mode Grüneisen parameters of a crystal.

    Attributes:
        crystals: with force constants: at the relaxed volume, a smaller and a larger one.
        path: of the bands.
        distances: along the path, of each line. bands: ``(n, modes)`` THz of each line.
        band_parameters: Grüneisen parameters of the bands, NaN for translations.
        mesh: numbers of points. frequencies, parameters: ``(n, modes)`` on the mesh.
        weights: ``(n,)``.
        temperatures: K. averages: ``(n,)``, mean over the modes weighted by their heat capacity.
        gamma_frequencies, gamma_parameters: of the optical modes at Γ.
    """

    crystals: tuple[Harmonic, Harmonic, Harmonic]
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

    @property
    def reference(self) -> Harmonic:
        """The crystal whose supercell the result describes."""
        return self.crystals[0]

    def _values(self) -> dict[str, Any]:
        crystal, cells = self.crystals[0], self.prepared.cells
        counted = np.isfinite(self.parameters)
        return {
            **super()._values(),
            **crystal.residuals.to_dict(),
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
        }


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    return stages_of(atoms, settings, cutoff, 3, strained=2)


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
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal, or a supercell does not fit it.
        NotConvergedError: a relaxation did not converge.
        UnphysicalError: the crystal is dynamically unstable.
    """
    settings, progress = settings or Settings(), progress or silent
    begun = HarmonicRun.begin(atoms, potential, settings, progress, strain=settings.strain / 3)
    prepared, changes = begun.prepared, (-settings.strain, settings.strain)
    strained, _ = at_volumes(prepared, changes, settings, progress)
    crystals, n_batches = begun.force_constants([prepared.cells.primitive.atoms, *strained])
    verdicts = []
    for crystal, name in zip(crystals, ("relaxed", "smaller", "larger"), strict=True):
        crystal.phonon.run_mesh(settings.mesh)
        verdicts.append(imaginary.judge(crystal))
        imaginary.refuse_unstable(verdicts[-1], f"the crystal at the {name} volume")
    verdict = verdicts[0]
    warnings = (*begun.warnings, *imaginary.warnings_of(verdict, crystals[0].phonon))
    progress(Event("gruneisen", "derivatives of the frequencies"))
    return Result(
        settings=settings,
        prepared=prepared,
        matrix=begun.matrix,
        charges=begun.charges,
        n_batches=n_batches,
        verdict=verdict,
        reasons=("the force constants at all volumes are complete",),
        warnings=warnings,
        **_parameters(crystals, settings),
    )


def _parameters(crystals: list[Harmonic], settings: Settings) -> dict[str, Any]:
    """The fields of :class:`Result` that follow from the force constants."""
    from phonopy import PhonopyGruneisen

    start, smaller, larger = crystals
    path = BandPath.of(start.atoms, settings.symprec)
    mesh = tuple(np.asarray(start.phonon.mesh_numbers).tolist())
    found: Any = PhonopyGruneisen(start.phonon, larger.phonon, smaller.phonon)
    with np.errstate(divide="ignore", invalid="ignore"):
        found.set_mesh(mesh, is_gamma_center=True)
        found.set_band_structure(path.lines(start.phonon.primitive.cell))
    _, weights, frequencies, _, parameters = found.get_mesh()
    _, distances, bands, _, band_parameters = found.get_band_structure()
    weights, frequencies = np.asarray(weights), np.asarray(frequencies)
    gamma_frequencies, gamma_parameters = _at_gamma(crystals)
    parameters, t = _masked(frequencies, parameters), settings.temperatures
    return {
        "crystals": (start, smaller, larger),
        "path": path,
        "distances": [np.asarray(d) for d in distances],
        "bands": [np.asarray(f) for f in bands],
        "band_parameters": [_masked(f, p) for f, p in zip(bands, band_parameters, strict=True)],
        "mesh": mesh,
        "frequencies": frequencies,
        "parameters": parameters,
        "weights": weights,
        "temperatures": t,
        "averages": averages(t, frequencies, parameters, weights),
        "gamma_frequencies": gamma_frequencies,
        "gamma_parameters": gamma_parameters,
    }


def _at_gamma(crystals: list[Harmonic]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, THz, and Grüneisen parameters of the optical modes at Γ."""
    from phonopy.gruneisen.core import GruneisenBase

    start, smaller, larger = (crystal.phonon for crystal in crystals)
    matrices: list[Any] = [p.dynamical_matrix for p in (start, larger, smaller)]
    gamma = np.zeros((1, 3))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = GruneisenBase(matrices[0], matrices[1], matrices[2], qpoints=gamma)
    squares = np.asarray(found.get_eigenvalues())[0]
    frequencies = np.sign(squares) * np.sqrt(np.abs(squares)) * start.unit_conversion_factor
    optical = np.sort(np.argsort(np.abs(frequencies))[3:])
    return frequencies[optical], np.asarray(found.get_gruneisen())[0][optical]


def _masked(frequencies: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """The parameters, NaN for translations, modes near them, and imaginary modes."""
    return np.where(np.asarray(frequencies) > LOWEST, parameters, np.nan)


def averages(
    temperatures: np.ndarray, frequencies: np.ndarray, parameters: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean Grüneisen parameter ``(n,)``, modes weighted by their heat capacities.

    At 0 K, where these vanish, it is the value at the next temperature.
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
