"""Elastic constants from stress against strain, with clamped and with relaxed ions.

The primitive cell is strained along Voigt components in the standard orientation of the crystal,
symmetrically about the minimum: ``cell' = cell (1 + eps)``, ``eps`` symmetric, Cauchy stress.
Components that follow from others by the symmetry of the crystal are left out. The central
differences of all strains together give the constants of the most general tensor that the
symmetry allows, by least squares; what they leave is reported (docs/methods.md#elastic-constants).

Voigt order xx, yy, zz, yz, xz, xy; shear strains are engineering ones (twice the tensor's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.settings import option
from dpa3sim.common.units import GPA

from .base import Stage, relaxation
from .crystals import guards, prepare
from .crystals.cells import Cells
from .crystals.moduli import Moduli, moduli
from .crystals.prepare import Event, Prepared, Progress, PropertySettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

WHAT = "elastic constants"
# Warn of measured constants that differ from the symmetric tensor by this share of the largest.
RESIDUAL = 0.02
# Warn of a stress at zero strain beyond this, GPa.
PRESTRESS = 0.1
# Tolerance, Å, for the symmetry of a strained cell: far below what strains move atoms by, above
# rounding. The cell before was exactly symmetric.
STRAINED_SYMPREC = 1e-5
# International number up to which a space group belongs to a Laue class.
LAUE_CLASSES = (
    (2, "-1"),
    (15, "2/m"),
    (74, "mmm"),
    (88, "4/m"),
    (142, "4/mmm"),
    (148, "-3"),
    (167, "-3m"),
    (176, "6/m"),
    (194, "6/mmm"),
    (206, "m-3"),
    (230, "m-3m"),
)


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


@dataclass(frozen=True)
class Result:
    """Elastic constants of a crystal.

    Attributes:
        relaxed: with relaxed ions; None if these were not asked for. clamped: with clamped ions.
        rotation: ``(3, 3)``, from the orientation of the input to the IEEE standard one.
        components: the Voigt components that were strained, in the standard orientation.
        n_independent: constants that the symmetry leaves.
        prestress: ``(6,)`` GPa at zero strain.
        moduli: what follows for the aggregate, from the relaxed tensor if there is one.
    """

    settings: Settings
    prepared: Prepared
    relaxed: Tensor | None
    clamped: Tensor
    rotation: np.ndarray
    components: tuple[int, ...]
    n_independent: int
    prestress: np.ndarray
    moduli: Moduli
    converged: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def tensor(self) -> Tensor:
        """The relaxed tensor, or the clamped one where only that was computed."""
        return self.relaxed or self.clamped

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit.

        ``elastic_tensor_GPa`` is the one with relaxed ions, None where they were not relaxed.
        """
        ieee = {
            name: rotated(tensor.stiffness, self.rotation).tolist() if tensor else None
            for name, tensor in (("relaxed", self.relaxed), ("clamped", self.clamped))
        }
        largest = float(np.abs(self.tensor.stiffness).max())
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.prepared.to_dict(),
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
            "settings": options_of.to_dict(self.settings),
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if ``atoms`` has no elastic constants; cheap."""
    prepare.check(atoms, settings, WHAT)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    cells = prepare.starting_cells(atoms, settings)
    crystal, (sure, note) = cells.primitive.atoms, prepare.certainty(cells, settings)
    strains = [len(crystal)] * (2 * settings.magnitudes * len(_symmetry(cells, settings)[2]))
    found = prepare.stages(cells, settings)
    sizes = [len(crystal), *strains]
    found.append(Stage("crystal and strained cells", sizes, crystal, certain=sure, note=note))
    if settings.relax_ions:  # only those cells that have forces
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
        InputError: no crystal. NotConvergedError: the relaxation before did not converge; if
            that of a strained cell does not, ``converged`` is False.
    """
    settings = settings or Settings()
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
    clamped_stress = _stresses(evaluations, strained, frame)
    if progress:
        progress(Event("strain", f"{len(strained)} strained cells, ions clamped"))
    prestress = _stresses([zero], [start], np.eye(3))[0]

    def fit(stresses: np.ndarray) -> Tensor:
        return _fit(stresses, components, magnitudes, basis, frame)

    clamped, relaxed = fit(clamped_stress), None
    problems: list[str] = []
    if settings.relax_ions:
        moving = [
            index
            for index, evaluation in enumerate(evaluations)
            if np.linalg.norm(evaluation.forces, axis=1).max() > settings.fmax
        ]
        stress = clamped_stress.copy()
        if moving:
            stress[moving], problems = _relaxed_stresses(
                ready, [strained[index] for index in moving], settings, frame, progress
            )
        relaxed = fit(stress)
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


def _relaxed_stresses(
    ready: Prepared,
    strained: list[Atoms],
    settings: Settings,
    frame: np.ndarray,
    progress: Progress | None,
) -> tuple[np.ndarray, list[str]]:
    """Voigt stresses ``(n, 6)`` of strained cells, their ions relaxed, and what did not converge.

    A minimum that lies on a step of the energy (docs/model.md#step-at-the-angle-cutoff) has
    forces on both sides of it.
    """
    from dataclasses import replace

    # The symmetry that a strained cell still has; a wider tolerance would not see the strain.
    options = replace(prepare.relax_settings(settings, "fixed"), symprec=STRAINED_SYMPREC)
    relaxed = prepare.relax_together(
        strained, ready.potential, options, "strain", progress, strict=False
    )
    stresses = [_voigt(r.atoms.get_stress(voigt=False) / GPA, frame) for r in relaxed]
    failed = [r for r in relaxed if not r.converged]
    if not failed:
        return np.array(stresses), []
    largest = max(r.steps[-1].fmax_eV_per_A for r in failed)
    return np.array(stresses), [
        f"{len(failed)} of {len(relaxed)} strained cells did not relax in {settings.steps} steps: "
        f"forces up to {largest:.2g} > {settings.fmax:g} eV/Å are left, and the errors contain them"
    ]


def _stresses(evaluations: list[Any], cells: list[Atoms], frame: np.ndarray) -> np.ndarray:
    """Voigt stresses ``(n, 6)`` in GPa, turned by ``frame``."""
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
    """The standard orientation, the tensors that the crystal allows, and what has to be strained.

    Rotations of the crystal and strains are in the standard orientation, where all tensors are
    until they are turned back at the end.
    """
    frame = standard_orientation(cells)
    basis = invariant_tensors(frame @ cells.rotations @ frame.T)
    return frame, basis, tuple(range(6)) if settings.all_strains else needed_components(basis)


def laue_class(cells: Cells) -> str:
    """Such as ``m-3m``."""
    return next(name for last, name in LAUE_CLASSES if cells.number <= last)


def invariant_tensors(rotations: np.ndarray) -> np.ndarray:
    """Basis ``(n, 6, 6)`` of the stiffness tensors that ``rotations`` ``(m, 3, 3)`` leave alone."""
    from matscipy.elasticity import Voigt_6x6_to_full_3x3x3x3

    pairs = [(i, j) for i in range(6) for j in range(i, 6)]
    units = np.zeros((len(pairs), 6, 6))
    for place, (i, j) in enumerate(pairs):
        units[place, i, j] = units[place, j, i] = 1.0
    tensors = np.array([Voigt_6x6_to_full_3x3x3x3(unit) for unit in units])
    mean = np.zeros_like(tensors)
    for r in rotations:
        turned = np.einsum("ia,jb,nabcd->nijcd", r, r, tensors, optimize=True)
        mean += np.einsum("kc,ld,nijcd->nijkl", r, r, turned, optimize=True) / len(rotations)
    voigt = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    flat = mean[:, voigt[0], voigt[1]][:, :, voigt[0], voigt[1]].reshape(len(pairs), 36)
    _, sizes, rows = np.linalg.svd(flat, full_matrices=False)
    return rows[sizes > 1e-6 * sizes[0]].reshape(-1, 6, 6)


def needed_components(basis: np.ndarray) -> tuple[int, ...]:
    """Voigt components whose strains determine all tensors of ``basis``, as few as suffice."""
    chosen: list[int] = []
    rank = 0
    for component in range(6):
        columns = basis[:, :, [*chosen, component]].reshape(len(basis), -1)
        found = int(np.linalg.matrix_rank(columns, tol=1e-6))
        if found > rank:
            chosen.append(component)
            rank = found
    return tuple(chosen)


def standard_orientation(cells: Cells) -> np.ndarray:
    """Rotation ``(3, 3)`` from the input to the axes of the IEEE standard 176 (1987).

    z is along c and x along a, except: orthorhombic axes are named so that c < a < b, monoclinic
    ones have y along b and z along c, triclinic ones z along c and y normal to a and c.
    """
    a, b, c = cells.conventional.atoms.cell[:]
    if laue_class(cells) == "mmm":
        c, a, b = sorted((a, b, c), key=np.linalg.norm)
    z = c / np.linalg.norm(c)
    if laue_class(cells) == "2/m":
        y = b / np.linalg.norm(b)
    elif laue_class(cells) == "-1":
        y = np.cross(c, a) / np.linalg.norm(np.cross(c, a))
    else:
        x = a - (a @ z) * z
        y = np.cross(z, x / np.linalg.norm(x))
    # Orthogonal to rounding, and right-handed whatever cell was given.
    y = y - (y @ z) * z
    y /= np.linalg.norm(y)
    return np.array([np.cross(y, z), y, z])


def sense_of_axes(frame: np.ndarray, stiffness: np.ndarray, cells: Cells) -> np.ndarray:
    """The standard orientation with the sense of its axes fixed where the lattice leaves it open.

    Turning trigonal axes about z, or those of the class 4/m about x, by half a turn gives as
    good axes, and the opposite sign of some constants: of C14 (C15), or of C16, which is positive
    here.
    """
    kind = laue_class(cells)
    if kind not in ("-3", "-3m", "4/m"):
        return frame
    turn = np.diag([1.0, -1.0, -1.0]) if kind == "4/m" else np.diag([-1.0, -1.0, 1.0])
    c = rotated(stiffness, frame)
    decisive = [c[0, 5]] if kind == "4/m" else [c[0, 3], c[0, 4]]
    largest = next((v for v in decisive if abs(v) > 1e-3 * np.abs(c).max()), 0.0)
    return turn @ frame if largest < 0 else frame


def rotated(stiffness: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """A stiffness tensor ``(6, 6)`` in axes that ``rotation`` leads to: ``x' = rotation @ x``."""
    from matscipy.elasticity import rotate_elastic_constants

    turned: np.ndarray = rotate_elastic_constants(stiffness, rotation)
    return turned


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
        basis: ``(n, 6, 6)`` of the tensors allowed.
        frame: rotation of these axes from the input's.
    """
    paired = stresses.reshape(len(components), len(magnitudes), 2, 6)
    # Half differences have no even orders of the strain; their slopes are the constants.
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
