"""Phonons: bands, densities of states, thermal properties, stability (phonopy).

The unit cell is the primitive one of the relaxed crystal, so that results do not depend on the cell
that was given; they are stated for the input cell, an atom and a formula unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.settings import option
from dpa3sim.common.units import KM_PER_S

from .base import Event, Progress, Stage, silent
from .harmonics import imaginary
from .harmonics.bands import BandPath
from .harmonics.force_constants import Harmonic
from .harmonics.gamma_modes import Mode, gamma_frequencies, gamma_modes
from .harmonics.imaginary import Child, Verdict
from .harmonics.properties import HarmonicResult, HarmonicRun, HarmonicSettings, check, stages_of
from .harmonics.spectrum import Dos, Thermal

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy import Phonopy

    from dpa3sim.potential.interface import BatchPotential

__all__ = ["Result", "Settings", "check", "run", "stages"]


@dataclass(frozen=True)
class Settings(HarmonicSettings):
    """Options of a phonon calculation."""

    imaginary: str = option(
        "report",
        "what to do where the crystal is unstable: report it, end with exit code 4 (error), or "
        "follow the softest mode to a lower minimum",
        choices=("report", "error", "follow"),
    )


@dataclass(frozen=True, kw_only=True)
class Result(HarmonicResult[Settings]):
    """Phonons of a crystal.

    Attributes:
        crystal: the primitive cell with phonopy's object, which has bands, mesh and thermal
            properties.
        path: of the bands.
        child: what an unstable crystal relaxes to, if that was asked for.
    """

    crystal: Harmonic
    path: BandPath
    dos: Dos
    thermal: Thermal
    modes: tuple[Mode, ...]
    verdict: Verdict
    child: Child | None

    @property
    def reference(self) -> Harmonic:
        """The crystal whose supercell the result describes."""
        return self.crystal

    @property
    def phonon(self) -> Phonopy:
        """The phonopy object of the crystal."""
        return self.crystal.phonon

    def _values(self) -> dict[str, Any]:
        cells, phonon = self.prepared.cells, self.phonon
        bands = phonon.band_structure
        assert bands is not None
        velocities = [np.linalg.norm(v, axis=2).max() for v in bands.group_velocities or ()]
        return {
            **super()._values(),
            **self.crystal.residuals.to_dict(),
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
        }

    def _special_points(self) -> dict[str, list[float]]:
        """Frequencies at the labelled points; at Γ without the splitting along a direction."""
        points = self.path.coordinates(self.phonon.primitive.cell)
        found = self.phonon.run_qpoints(np.array(list(points.values()))).frequencies
        return {name: f.tolist() for name, f in zip(points, found, strict=True)}


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model.

    Following an unstable mode takes further evaluations, which cannot be counted in advance.
    """
    return stages_of(atoms, settings, cutoff, 1)


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
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal, or a supercell or file of Born charges does not
            fit it.
        NotConvergedError: a relaxation did not converge.
    """
    settings, progress = settings or Settings(), progress or silent
    begun = HarmonicRun.begin(atoms, potential, settings, progress)
    prepared = begun.prepared
    (crystal,), n_batches = begun.force_constants([prepared.cells.primitive.atoms])
    progress(Event("phonons", "bands, densities of states, thermal properties"))
    path = BandPath.of(crystal.atoms, settings.symprec)
    path.run(crystal.phonon)
    crystal.phonon.run_mesh(settings.mesh, with_eigenvectors=True)
    dos = Dos.of(crystal.phonon)
    thermal = Thermal.of(crystal.phonon, settings.temperatures)
    verdict = imaginary.judge(crystal)
    warnings = [*begun.warnings, *imaginary.warnings_of(verdict, crystal.phonon)]
    child = None
    if settings.imaginary == "follow" and verdict.state == imaginary.UNSTABLE:
        child = imaginary.follow(crystal, verdict, prepared.potential, settings, progress)
        if child.gain <= 0:
            warnings.append("following the imaginary mode led to no lower energy")
    return Result(
        settings=settings,
        prepared=prepared,
        matrix=begun.matrix,
        charges=begun.charges,
        n_batches=n_batches,
        crystal=crystal,
        path=path,
        dos=dos,
        thermal=thermal,
        modes=gamma_modes(crystal.phonon),
        verdict=verdict,
        child=child,
        reasons=("the force constants are complete",),
        warnings=tuple(warnings),
    )
