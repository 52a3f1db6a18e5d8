"""Elastic constants from stress against strain, with clamped and with relaxed ions.

The primitive cell is strained along Voigt components in the standard orientation of the crystal,
symmetrically about the minimum: ``cell' = cell (1 + eps)``, ``eps`` symmetric, Cauchy stress.
Components that follow from others by the symmetry of the crystal are left out. The most general
tensor that the symmetry allows is fitted to the central differences of all strains by least
squares, and the residual is reported (docs/methods.md#elastic-constants).

Voigt order xx, yy, zz, yz, xz, xy; shear strains are engineering ones (twice the tensor's).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA

from .base import Event, Progress, Stage, relaxation, silent
from .crystals import guards, prepare
from .crystals.cells import Cells
from .crystals.moduli import Moduli, moduli
from .crystals.prepare import Prepared, PropertyResult, PropertySettings
from .crystals.stiffness import (
    invariant_tensors,
    laue_class,
    needed_components,
    rotated,
    sense_of_axes,
    standard_orientation,
)

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential

WHAT = "elastic constants"
# A warning is given if measured constants differ from the symmetric tensor by this share of the
# largest one, or if the stress at zero strain exceeds this, GPa.
RESIDUAL, PRESTRESS = 0.02, 0.1
# Tolerance, Å, for the symmetry of a strained cell: far below the displacements by strains, above
# rounding errors. The unstrained cell is exactly symmetric.
STRAINED_SYMPREC = 1e-5


@dataclass(frozen=True)
class Settings(PropertySettings):
    """Options of elastic constants."""

    fmax: float = option(
        1e-5, "largest force of a relaxed structure, strained or not", unit="eV/Å", minimum=0
    )
    smax: float = option(
        0.001, "largest stress component of the relaxed structure", unit="GPa", minimum=0
    )
    steps: int = option(300, "largest number of optimizer steps of a relaxation", minimum=0)
    strain: float = option(0.5, "largest strain, both ways, in percent", unit="%", minimum=1e-3)
    magnitudes: int = option(2, "number of strains up to the largest, each both ways", minimum=2)
    all_strains: bool = option(
        False, "strain all six components, also those that follow from others by symmetry"
    )
    relax_ions: bool = option(
        True, "relax the ions of strained cells; without, only the clamped tensor is computed"
    )


@dataclass(frozen=True)
class Tensor:
    """A stiffness tensor with its quality.

    Attributes:
        stiffness: ``(6, 6)`` GPa in the orientation of the input, with the crystal's symmetry.
        error: ``(6, 6)`` GPa, standard errors of the regression.
        residual: GPa, largest deviation of a measured constant from the symmetric tensor.
    """

    stiffness: np.ndarray
    error: np.ndarray
    residual: float


@dataclass(frozen=True, kw_only=True)
class Result(PropertyResult[Settings]):
    """Elastic constants of a crystal.

    Attributes:
        relaxed: with relaxed ions; None if these were not asked for. clamped: with clamped ions.
        rotation: ``(3, 3)``, from the orientation of the input to the IEEE standard one.
        components: the Voigt components that were strained, in the standard orientation.
        n_independent: number of constants that the symmetry leaves independent.
        prestress: ``(6,)`` GPa at zero strain.
        moduli: moduli of the aggregate, from the relaxed tensor if there is one.
    """

    relaxed: Tensor | None
    clamped: Tensor
    rotation: np.ndarray
    components: tuple[int, ...]
    n_independent: int
    prestress: np.ndarray
    moduli: Moduli

    @property
    def tensor(self) -> Tensor:
        """The relaxed tensor, or the clamped one where only that was computed."""
        return self.relaxed or self.clamped

    def _values(self) -> dict[str, Any]:
        # ``elastic_tensor_GPa`` is the one with relaxed ions, None where they were not relaxed.
        ieee = {
            name: rotated(tensor.stiffness, self.rotation).tolist() if tensor else None
            for name, tensor in (("relaxed", self.relaxed), ("clamped", self.clamped))
        }
        largest = float(np.abs(self.tensor.stiffness).max())
        return {
            **super()._values(),
            "laue_class": laue_class(self.prepared.cells),
            "n_independent_constants": self.n_independent,
            "strained_components": [component + 1 for component in self.components],
            "n_strains": 2 * self.settings.magnitudes * len(self.components),
            "elastic_tensor_GPa": self.relaxed and self.relaxed.stiffness.tolist(),
            "elastic_tensor_error_GPa": self.relaxed and self.relaxed.error.tolist(),
            "elastic_tensor_clamped_GPa": self.clamped.stiffness.tolist(),
            "elastic_tensor_clamped_error_GPa": self.clamped.error.tolist(),
            "elastic_tensor_ieee_GPa": ieee["relaxed"],
            "elastic_tensor_clamped_ieee_GPa": ieee["clamped"],
            "ieee_rotation": self.rotation.tolist(),
            "symmetry_residual_GPa": self.tensor.residual,
            "symmetry_residual_relative": self.tensor.residual / largest,
            "prestress_GPa": self.prestress.tolist(),
            **self.moduli.to_dict(),
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if elastic constants are not defined for ``atoms``; cheap."""
    prepare.check(atoms, settings, WHAT)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    cells = prepare.starting_cells(atoms, settings)
    crystal, (sure, note) = cells.primitive.atoms, prepare.certainty(cells, settings)
    strains = [len(crystal)] * (2 * settings.magnitudes * len(_symmetry(cells, settings)[2]))
    found = prepare.stages(cells, settings)
    sizes = [len(crystal), *strains]
    found.append(Stage("crystal and strained cells", sizes, crystal, certain=sure, note=note))
    if settings.relax_ions:  # only cells in which symmetry leaves forces
        found.append(
            relaxation("ions of strained cells", strains, crystal, settings.steps, always=False)
        )
    return [*found, guards.stage(cells.input.atoms)]


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Compute the elastic constants of a crystal; all strained cells at once.

    Args:
        atoms: a crystal in any cell and orientation; it is not changed.
        potential: the model, taken to the precision of the settings.
        settings: options, defaults where None.
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal.
        NotConvergedError: the first relaxation did not converge; if that of a strained cell does
            not, ``converged`` is False.
    """
    settings, progress = settings or Settings(), progress or silent
    ready = prepare.prepare(atoms, potential, settings, WHAT, progress)
    start = ready.cells.primitive.atoms
    frame, basis, components = _symmetry(ready.cells, settings)
    magnitudes = settings.strain / 100 * np.arange(1, settings.magnitudes + 1)
    magnitudes /= settings.magnitudes
    strained = [
        _strained(start, frame, component, sign * magnitude)
        for component in components
        for magnitude in magnitudes
        for sign in (1, -1)
    ]
    zero, *evaluations = ready.potential.evaluate([start, *strained])
    stresses = _stresses(evaluations, strained, frame)
    progress(Event("strain", f"{len(strained)} strained cells, ions clamped"))
    prestress = _stresses([zero], [start], np.eye(3))[0]
    clamped = _fit(stresses, components, magnitudes, basis, frame)
    relaxed, problems = None, []
    if settings.relax_ions:
        problems = _relax_ions(ready, evaluations, strained, stresses, settings, frame, progress)
        relaxed = _fit(stresses, components, magnitudes, basis, frame)
    tensor = relaxed or clamped
    rotation = sense_of_axes(frame, tensor.stiffness, ready.cells)
    values = moduli(rotated(tensor.stiffness, rotation), start)
    limits = guards.check(ready.atoms, ready.potential, strain=settings.strain / 100)
    limits += _doubts(tensor, prestress, values, settings)
    return Result(
        settings=settings,
        prepared=ready,
        relaxed=relaxed,
        clamped=clamped,
        rotation=rotation,
        components=components,
        n_independent=len(basis),
        prestress=prestress,
        moduli=values,
        converged=not problems,
        reasons=tuple(problems) or ("all relaxations are below their thresholds",),
        warnings=tuple(dict.fromkeys([*ready.warnings, *limits])),
    )


# -- strains and stresses ----------------------------------------------------------------------


def _strained(atoms: Atoms, frame: np.ndarray, component: int, value: float) -> Atoms:
    """The crystal with one Voigt strain component, in the standard orientation, of ``value``."""
    from matscipy.elasticity import Voigt_6_to_full_3x3_strain

    voigt = np.zeros(6)
    voigt[component] = value
    strain = frame.T @ Voigt_6_to_full_3x3_strain(voigt) @ frame
    strained = atoms.copy()
    strained.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return strained


def _relax_ions(
    ready: Prepared,
    evaluations: list[Evaluation],
    strained: list[Atoms],
    stresses: np.ndarray,
    settings: Settings,
    frame: np.ndarray,
    progress: Progress,
) -> list[str]:
    """Relax the ions of strained cells with forces and update their stresses ``(n, 6)`` in place.

    Returns what did not converge. A minimum that lies on a step of the energy
    (docs/model.md#step-at-the-angle-cutoff) has forces on both sides of it.
    """
    forces = np.array([np.linalg.norm(e.forces, axis=1).max() for e in evaluations])
    moving = np.flatnonzero(forces > settings.fmax)
    if not len(moving):
        return []
    # Only a tight tolerance distinguishes the symmetries of strained and unstrained cells.
    options = replace(prepare.relax_settings(settings, "fixed"), symprec=STRAINED_SYMPREC)
    cells = [strained[index] for index in moving]
    relaxed = prepare.relax_together(
        cells, ready.potential, options, "strain", progress, strict=False
    )
    stresses[moving] = [_voigt(r.atoms.get_stress(voigt=False) / GPA, frame) for r in relaxed]
    failed = [r for r in relaxed if not r.converged]
    if not failed:
        return []
    largest = max(r.steps[-1].fmax_eV_per_A for r in failed)
    return [
        f"{len(failed)} of {len(relaxed)} strained cells did not relax in {settings.steps} steps: "
        f"forces up to {largest:.2g} > {settings.fmax:g} eV/Å are left, and the errors contain them"
    ]


def _stresses(evaluations: list[Evaluation], cells: list[Atoms], frame: np.ndarray) -> np.ndarray:
    """Voigt stresses ``(n, 6)`` in GPa, rotated by ``frame``."""
    from dpa3sim.clients.ase import virial_stress

    return np.array(
        [
            _voigt(virial_stress(e.virial, cell.cell[:], cell.pbc) / GPA, frame)
            for e, cell in zip(evaluations, cells, strict=True)
        ]
    )


def _voigt(stress: np.ndarray, frame: np.ndarray) -> np.ndarray:
    from ase.stress import full_3x3_to_voigt_6_stress

    voigt: np.ndarray = full_3x3_to_voigt_6_stress(frame @ stress @ frame.T)
    return voigt


# -- symmetry ----------------------------------------------------------------------------------


def _symmetry(cells: Cells, settings: Settings) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The standard orientation, a basis of the allowed tensors, and the components to strain.

    All tensors are in the standard orientation until they are rotated back at the end.
    """
    frame = standard_orientation(cells)
    basis = invariant_tensors(frame @ cells.rotations @ frame.T)
    return frame, basis, tuple(range(6)) if settings.all_strains else needed_components(basis)


# -- fits --------------------------------------------------------------------------------------


def _fit(
    stresses: np.ndarray,
    components: tuple[int, ...],
    magnitudes: np.ndarray,
    basis: np.ndarray,
    frame: np.ndarray,
) -> Tensor:
    """The symmetric tensor nearest to all central differences.

    Args:
        stresses: ``(components * magnitudes * 2, 6)`` GPa, plus before minus.
        components, magnitudes: of the strains.
        basis: ``(n, 6, 6)`` of the allowed tensors.
        frame: rotation from the axes of the input to these.
    """
    paired = stresses.reshape(len(components), len(magnitudes), 2, 6)
    # Even orders of the strain cancel in half differences, whose slopes are the constants.
    odd = (paired[:, :, 0] - paired[:, :, 1]) / 2
    weight = magnitudes @ magnitudes
    slopes = np.einsum("m,cmi->ci", magnitudes, odd) / weight
    left = odd - magnitudes[None, :, None] * slopes[:, None, :]
    errors = np.sqrt((left**2).sum(axis=1) / (len(magnitudes) - 1) / weight)

    design = basis[:, :, list(components)].transpose(2, 1, 0).reshape(-1, len(basis))
    inverse = np.linalg.pinv(design)
    constants = inverse @ slopes.ravel()
    residual = np.abs(design @ constants - slopes.ravel()).max()
    covariance = (inverse * errors.ravel() ** 2) @ inverse.T
    in_input = np.array([rotated(tensor, frame.T) for tensor in basis])
    variance = np.einsum("kij,kl,lij->ij", in_input, covariance, in_input)
    return Tensor(
        np.einsum("k,kij->ij", constants, in_input),
        np.sqrt(np.maximum(variance, 0.0)),
        float(residual),
    )


def _doubts(tensor: Tensor, prestress: np.ndarray, values: Moduli, settings: Settings) -> list[str]:
    """Warnings about the numbers themselves."""
    doubts = []
    largest = np.abs(tensor.stiffness).max()
    if tensor.residual > RESIDUAL * largest:
        doubts.append(
            f"constants that symmetry makes equal differ by up to {tensor.residual:.2g} GPa"
        )
    if tensor.error.max() > RESIDUAL * largest:
        doubts.append(
            f"the stress is not linear within {settings.strain:g} % strain: errors up to "
            f"{tensor.error.max():.2g} GPa"
        )
    if np.abs(prestress).max() > PRESTRESS:
        doubts.append(
            f"the structure has a stress of {np.abs(prestress).max():.3g} GPa; the tensor is that "
            "of the stress-strain coefficients there, not of second derivatives of the energy"
        )
    if not values.born_stable:
        doubts.append(
            "the crystal is mechanically unstable: its stiffness tensor has the eigenvalue "
            f"{values.eigenvalues[0]:.3g} GPa"
        )
    return doubts
