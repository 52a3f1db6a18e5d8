"""Thermal expansion in the quasi-harmonic approximation (phonopy).

Free energies at several volumes, ions and shape relaxed at each, are fitted to an equation of
state at every temperature. Nothing is extrapolated: temperatures whose volume leaves the grid
have no result (docs/methods.md#volumes).
"""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError, UnphysicalError
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA, J_PER_K_MOL

from . import phonon
from .base import Stage
from .crystals import prepare
from .crystals.cells import Extensive
from .crystals.prepare import Event, Prepared, Progress
from .crystals.volumes import at_volumes
from .gruneisen import refuse_unstable
from .harmonics.force_constants import Harmonic
from .phonon import HarmonicSettings, series

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

WHAT = "quasi-harmonic properties"
# phonopy's fits of heat capacities over the volume need these.
FEWEST_VOLUMES = 5
EQUATIONS = ("vinet", "birch_murnaghan", "murnaghan")
# Free energies further than this (eV/atom) from the equation of state are told.
ROUGH = 5e-4


@dataclass(frozen=True)
class Settings(HarmonicSettings):
    """Options of a quasi-harmonic calculation."""

    volumes: int = option(7, "number of volumes, evenly spaced", minimum=FEWEST_VOLUMES)
    smallest: float = option(-0.03, "smallest volume, relative to that of the minimum, less one")
    largest: float = option(0.06, "largest volume, relative to that of the minimum, less one")
    pressure: float = option(0.0, "external pressure", unit="GPa")
    eos: str = option("vinet", "equation of state", choices=EQUATIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -0.5 < self.smallest < self.largest < 1.0:
            raise InputError(
                f"options smallest = {self.smallest:g} and largest = {self.largest:g} must be "
                "relative changes of the volume in ascending order, such as -0.03 and 0.06"
            )
        if self.t_max < 2 * self.t_step:
            raise InputError(
                f"option t_max = {self.t_max:g} K must be at least two steps of t_step = "
                f"{self.t_step:g} K"
            )


@dataclass(frozen=True)
class Result:
    """Quasi-harmonic properties of a crystal, of its primitive cell unless said otherwise.

    Attributes:
        prepared: the relaxed crystal. crystals: the volumes, with force constants.
        volumes: ``(n,)``, Å^3. energies: ``(n,)``, static, eV.
        found: phonopy's result. kept: how many of its temperatures have a volume on the grid.
    """

    settings: Settings
    prepared: Prepared
    crystals: tuple[Harmonic, ...]
    matrix: np.ndarray
    volumes: np.ndarray
    energies: np.ndarray
    found: Any
    kept: int
    n_batches: int
    converged: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def temperatures(self) -> np.ndarray:
        """Those with a result, K."""
        return np.asarray(self.found.temperatures[: self.kept])

    @property
    def expansion(self) -> np.ndarray:
        """Coefficient of volumetric thermal expansion at each temperature, 1/K."""
        return np.asarray(self.found.thermal_expansion[: self.kept])

    @property
    def equilibrium_volumes(self) -> np.ndarray:
        """Volume at each temperature, Å^3."""
        return np.asarray(self.found.equilibrium_volumes[: self.kept])

    @property
    def bulk_moduli(self) -> np.ndarray:
        """Isothermal bulk modulus at each temperature, GPa."""
        return np.asarray(self.found.bulk_moduli[: self.kept]) / GPA

    @property
    def heat_capacities(self) -> np.ndarray:
        """At constant pressure, J/K/mol."""
        return np.asarray(self.found.heat_capacity_P.heat_capacities[: self.kept]) * J_PER_K_MOL

    @property
    def fit_residual(self) -> float:
        """Root mean square distance of free energies from the fit, at its worst, eV/atom."""
        return _fit_residual(self.found, self.kept, len(self.crystals[0].atoms))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        cells, found, kept = self.prepared.cells, self.found, self.kept
        start = self.crystals[int(np.argmin(self.energies))]
        n = len(start.atoms)
        minimum = Extensive(abs(self.prepared.cells.primitive.atoms.cell.volume), n)
        entropy = np.asarray(found.entropy_temperature[:kept]) * J_PER_K_MOL
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.prepared.to_dict(),
            **phonon.supercell_keys(start, self.matrix, cells),
            "n_batches": self.n_batches,
            "grid_volumes_per_atom_A3": (self.volumes / n).tolist(),
            "grid_energies_per_atom_eV": (self.energies / n).tolist(),
            **minimum.keys("volume_static", "A3", cells),
            "fit_residual_per_atom_eV": self.fit_residual,
            "temperatures_K": self.temperatures.tolist(),
            **series(self.equilibrium_volumes, n, "volume", "A3", cells),
            "thermal_expansion_volumetric_per_K": self.expansion.tolist(),
            "bulk_modulus_GPa": self.bulk_moduli.tolist(),
            **series(self.heat_capacities, n, "heat_capacity_cp", "J_per_K_mol", cells),
            **series(entropy, n, "entropy", "J_per_K_mol", cells),
            **series(np.asarray(found.gibbs_free_energies[:kept]), n, "gibbs_energy", "eV", cells),
            "gruneisen_thermodynamic": np.asarray(found.gruneisen_parameters[:kept]).tolist(),
            "settings": options_of.to_dict(self.settings),
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if the protocol cannot be applied to ``atoms``; cheap."""
    phonon.check(atoms, settings)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    return phonon.harmonic_stages(atoms, settings, cutoff, settings.volumes, settings.volumes)


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Relax a crystal and compute its thermal expansion.

    Args:
        atoms: any cell of the crystal; not changed.
        potential: the model. settings: options, defaults where None.
        progress: called with what happens.

    Raises:
        InputError: no crystal, or a supercell that does not fit it.
        NotConvergedError: a relaxation did not converge.
        UnphysicalError: the crystal is unstable at a volume, or has no minimum on the grid.
    """
    settings = settings or Settings()
    check(atoms, settings)
    charges = phonon.born_charges(atoms, settings)
    prepared = prepare.prepare(atoms, potential, settings, WHAT, progress)
    reach = max(abs(settings.smallest), abs(settings.largest))
    matrix, warnings = phonon.preflight(prepared, settings, charges, strain=reach / 3)
    strains = np.linspace(settings.smallest, settings.largest, settings.volumes).tolist()
    cells, energies = at_volumes(prepared, strains, settings, progress)
    crystals, n_batches = phonon.force_constants(
        cells, matrix, prepared, settings, charges, progress
    )
    for crystal, strain in zip(crystals, strains, strict=True):
        crystal.phonon.run_mesh(settings.mesh)
        verdict = phonon.verdict_of(crystal)
        refuse_unstable(verdict, f"the crystal with its volume changed by {100 * strain:.1f} %")
        for warning in phonon.verdict_warnings(verdict, crystal.phonon):
            warnings.append(f"volume changed by {100 * strain:.1f} %: {warning}")
    if progress:
        progress(Event("quasi-harmonic", f"free energies at {len(cells)} volumes"))
    found = _fitted(crystals, energies, settings)
    kept = _on_grid(found)
    if kept < len(found.temperatures):
        warnings.append(
            f"above {found.temperatures[kept - 1]:g} K the volume leaves the grid: no results "
            "there; a larger --largest has more"
        )
    residual = _fit_residual(found, kept, len(cells[0]))
    if residual > ROUGH:
        warnings.append(
            f"free energies are up to {1000 * residual:.2g} meV/atom from the equation of state: "
            "they do not depend smoothly on the volume, so that expansion and bulk modulus mean "
            "little; more --volumes in a narrower range tell where"
        )
    return Result(
        settings=settings,
        prepared=prepared,
        crystals=tuple(crystals),
        matrix=matrix,
        volumes=np.asarray(found.volumes),
        energies=energies,
        found=found,
        kept=kept,
        n_batches=n_batches,
        converged=True,
        reasons=(f"free energies at {len(cells)} volumes are complete",),
        warnings=(*prepared.warnings, *warnings),
    )


def _fitted(crystals: list[Harmonic], energies: np.ndarray, settings: Settings) -> Any:
    """Fit the free energies, at one temperature more than wanted for derivatives."""
    from phonopy import run_qha

    temperatures = phonon.temperatures(settings)
    with python_warnings.catch_warnings():
        # Monoclinic and triclinic crystals have no axial expansion there; failed fits show below.
        python_warnings.simplefilter("ignore")
        return run_qha(
            [crystal.phonon for crystal in crystals],
            [*temperatures, temperatures[-1] + settings.t_step],
            internal_energies=energies,
            mesh=settings.mesh,
            pressure=settings.pressure,
            eos=settings.eos,
            exclude_gamma_acoustic=True,
        )


def _fit_residual(found: Any, kept: int, n_atoms: int) -> float:
    from phonopy.qha.eos import get_eos

    equation = get_eos(found.eos_name)
    away = [
        free - equation(found.volumes, parameters)
        for free, parameters in zip(
            found.helmholtz_volume[:kept], found.eos_parameters[:kept], strict=True
        )
    ]
    return float(np.sqrt(np.mean(np.square(away), axis=1)).max()) / n_atoms


def _on_grid(found: Any) -> int:
    """How many temperatures, from the lowest, have their volume between the grid's ends.

    Raises:
        UnphysicalError: not even the lowest.
    """
    volumes, grid = np.asarray(found.equilibrium_volumes), np.asarray(found.volumes)
    inside = (volumes > grid.min()) & (volumes < grid.max())
    kept = len(inside) if inside.all() else int(np.argmin(inside))
    if kept < 2:
        raise UnphysicalError(
            "the volume of lowest free energy is outside the grid at the lowest temperature "
            f"({volumes[0]:.3f} Å^3, grid {grid.min():.3f} to {grid.max():.3f} Å^3); change "
            "smallest and largest, or the pressure"
        )
    return kept
