"""Thermal expansion in the quasi-harmonic approximation (phonopy).

Free energies at several volumes, with ions and shape relaxed at each, are fitted to an equation
of state at every temperature. Nothing is extrapolated: temperatures whose volume leaves the grid
have no result (docs/methods.md#volumes).
"""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError, UnphysicalError
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA, J_PER_K_MOL

from .base import Event, Progress, Stage, silent
from .crystals.cells import Extensive
from .crystals.volumes import at_volumes
from .harmonics import imaginary
from .harmonics.force_constants import Harmonic
from .harmonics.properties import (
    HarmonicResult,
    HarmonicRun,
    HarmonicSettings,
    check,
    series,
    stages_of,
)

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

__all__ = ["Result", "Settings", "check", "run", "stages"]
# phonopy's fits of heat capacities over the volume need so many.
FEWEST_VOLUMES = 5
EQUATIONS = ("vinet", "birch_murnaghan", "murnaghan")
# A warning is given if free energies are further than this from the equation of state, eV/atom.
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


@dataclass(frozen=True, kw_only=True)
class Result(HarmonicResult[Settings]):
    """Quasi-harmonic properties of a crystal, for its primitive cell unless said otherwise.

    Attributes:
        crystals: at all volumes, with force constants.
        volumes: ``(n,)``, Å^3. energies: ``(n,)``, static, eV.
        found: phonopy's result. kept: how many of its temperatures have a volume on the grid.
    """

    crystals: tuple[Harmonic, ...]
    volumes: np.ndarray
    energies: np.ndarray
    found: Any
    kept: int

    @property
    def reference(self) -> Harmonic:
        """The crystal at the volume of lowest energy."""
        return self.crystals[int(np.argmin(self.energies))]

    @property
    def temperatures(self) -> np.ndarray:
        """Temperatures with a result, K."""
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
        """Heat capacity at constant pressure, J/K/mol."""
        return np.asarray(self.found.heat_capacity_P.heat_capacities[: self.kept]) * J_PER_K_MOL

    @property
    def fit_residual(self) -> float:
        """Largest root mean square deviation of free energies from the fit, eV/atom."""
        return _fit_residual(self.found, self.kept, len(self.crystals[0].atoms))

    def _values(self) -> dict[str, Any]:
        cells, found, kept = self.prepared.cells, self.found, self.kept
        n = len(self.reference.atoms)
        minimum = Extensive(abs(self.prepared.cells.primitive.atoms.cell.volume), n)
        entropy = np.asarray(found.entropy_temperature[:kept]) * J_PER_K_MOL
        return {
            **super()._values(),
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
        }


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    return stages_of(atoms, settings, cutoff, settings.volumes, settings.volumes)


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
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal, or a supercell does not fit it.
        NotConvergedError: a relaxation did not converge.
        UnphysicalError: the crystal is unstable at a volume, or has no minimum on the grid.
    """
    settings, progress = settings or Settings(), progress or silent
    reach = max(abs(settings.smallest), abs(settings.largest))
    begun = HarmonicRun.begin(atoms, potential, settings, progress, strain=reach / 3)
    strains = np.linspace(settings.smallest, settings.largest, settings.volumes).tolist()
    cells, energies = at_volumes(begun.prepared, strains, settings, progress)
    crystals, n_batches = begun.force_constants(cells)
    warnings = [*begun.warnings]
    for crystal, strain in zip(crystals, strains, strict=True):
        crystal.phonon.run_mesh(settings.mesh)
        verdict, change = imaginary.judge(crystal), f"volume changed by {100 * strain:.1f} %"
        imaginary.refuse_unstable(verdict, f"the crystal with its {change}")
        warnings += [f"{change}: {w}" for w in imaginary.warnings_of(verdict, crystal.phonon)]
    progress(Event("quasi-harmonic", f"free energies at {len(cells)} volumes"))
    found = _fitted(crystals, energies, settings)
    kept = _on_grid(found)
    return Result(
        settings=settings,
        prepared=begun.prepared,
        matrix=begun.matrix,
        charges=begun.charges,
        n_batches=n_batches,
        crystals=tuple(crystals),
        volumes=np.asarray(found.volumes),
        energies=energies,
        found=found,
        kept=kept,
        reasons=(f"free energies at {len(cells)} volumes are complete",),
        warnings=(*warnings, *_doubts(found, kept, len(cells[0]))),
    )


def _doubts(found: Any, kept: int, n_atoms: int) -> list[str]:
    """Warnings about temperatures without a result, and about a poor fit."""
    doubts = []
    if kept < len(found.temperatures):
        doubts.append(
            f"above {found.temperatures[kept - 1]:g} K the volume leaves the grid, so that there "
            "are no results; use a larger --largest"
        )
    residual = _fit_residual(found, kept, n_atoms)
    if residual > ROUGH:
        doubts.append(
            f"free energies are up to {1000 * residual:.2g} meV/atom from the equation of state: "
            "they do not depend smoothly on the volume, so that expansion and bulk modulus mean "
            "little; more --volumes in a narrower range show where"
        )
    return doubts


def _fitted(crystals: list[Harmonic], energies: np.ndarray, settings: Settings) -> Any:
    """Fit the free energies, at one more temperature than wanted, for derivatives."""
    from phonopy import run_qha

    temperatures = settings.temperatures
    with python_warnings.catch_warnings():
        # Monoclinic and triclinic crystals get no axial expansion; failed fits show below.
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
    """How many temperatures, counted from the lowest, have their volume inside the grid.

    Raises:
        UnphysicalError: even at the lowest one the volume is outside.
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
