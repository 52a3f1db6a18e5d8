"""Minimum energy path and barrier between two structures: nudged elastic band, climbing image.

ASE's NEB with improved tangents (Henkelman and Jónsson, J. Chem. Phys. 113, 9978 (2000)), the
climbing image of Henkelman, Uberuaga and Jónsson, J. Chem. Phys. 113, 9901 (2000), started on the
path of the image dependent pair potential (Smidstrup et al., J. Chem. Phys. 140, 214106 (2014)).
All images of a step are evaluated as one batch. The structures may be crystals with defects, slabs,
chains or molecules; atoms that are fixed in the first structure stay fixed on the whole path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import Dpa3simError, InputError, NonFiniteError
from dpa3sim.common.settings import option

from . import base
from .base import Event, Progress, Stage, relaxation, silent
from .crystals import guards, prepare
from .crystals import relaxation as relax
from .crystals.elastic_band import Band, attach, batched, diverges, top_is_between
from .crystals.initial_path import initial_path
from .crystals.optimization import largest_force, optimize
from .crystals.superposition import SAME_PLACE, brought_near, displacements, matched

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

OPTIMIZERS = ("auto", "FIRE", "LBFGS", "BFGS", "MDMin")
# Cell vectors of the two structures may differ by this, Å.
SAME_CELL = 1e-4
# Structures that are closer than this are the same even before they are relaxed, Å.
IDENTICAL = 1e-3
# An image that lies lower than those around it by more than this is a minimum on the path, eV.
MINIMUM = 0.01


@dataclass(frozen=True)
class Settings:
    """Options of a nudged elastic band."""

    relax: bool = option(
        True, "relax both structures in their cell first; --no-relax takes them as they are"
    )
    images: int = option(7, "images between the two structures", minimum=1)
    fmax: float = option(0.05, "largest force of the converged band", unit="eV/Å", minimum=0)
    endpoint_fmax: float = option(
        0.005, "largest force of the relaxed first and last structure", unit="eV/Å", minimum=0
    )
    steps: int = option(500, "largest number of steps, of each relaxation and the band", minimum=0)
    climb: bool = option(True, "let the highest image climb to the saddle point")
    climb_fmax: float = option(
        0.2, "it begins to climb once the forces of the band are below", unit="eV/Å", minimum=0
    )
    spring: float = option(0.1, "constant of the springs, eV/Å^2", minimum=0)
    interpolation: str = option(
        "idpp",
        "where the images start: image dependent pair potential, or a straight line",
        choices=("idpp", "linear"),
    )
    optimizer: str = option(
        "auto",
        "ASE optimizer of the band; auto is FIRE while a force exceeds 1 eV/Å, then LBFGS",
        choices=OPTIMIZERS,
    )
    match: bool = option(
        True, "give each atom of the last structure the place in the order that moves it least"
    )
    dtype: str = prepare.dtype_option()

    def __post_init__(self) -> None:
        options_of.validate(self)


@dataclass(frozen=True, kw_only=True)
class Result(base.Result[Settings]):
    """A path and its barrier.

    Attributes:
        images: the two structures and all images between them, with energies and forces.
        band: energies and forces along the images.
        fmax: largest force of the band, springs included, eV/Å. steps: number of steps of the band.
        endpoints: number of steps that relaxed each structure; None without relaxation.
    """

    images: tuple[Atoms, ...]
    band: Band
    fmax: float
    steps: int
    endpoints: tuple[int, int] | None

    @property
    def highest(self) -> int:
        """The image of highest energy: the saddle point, unless it is the first or the last."""
        return int(np.argmax(self.band.energies))

    @property
    def has_barrier(self) -> bool:
        """Whether an image between the ends is higher than both of them."""
        return 0 < self.highest < len(self.images) - 1

    def _values(self) -> dict[str, Any]:
        energies = self.band.energies
        saddle = self.images[self.highest]
        largest = float(np.linalg.norm(saddle.get_forces(), axis=1).max())
        _, spline = self.band.spline()
        return {
            "formula": saddle.get_chemical_formula(),
            "n_atoms": len(saddle),
            "n_images": len(self.images),
            "n_steps": self.steps,
            "endpoint_n_steps": list(self.endpoints) if self.endpoints else None,
            "barrier_forward_eV": float(energies.max() - energies[0]),
            "barrier_backward_eV": float(energies.max() - energies[-1]),
            "reaction_energy_eV": float(energies[-1] - energies[0]),
            "barrier_forward_spline_eV": float(spline.max() - energies[0]),
            "barrier_backward_spline_eV": float(spline.max() - energies[-1]),
            "has_barrier": self.has_barrier,
            "saddle_image": self.highest if self.has_barrier else None,
            "saddle_fmax_eV_per_A": largest if self.has_barrier else None,
            "band_fmax_eV_per_A": self.fmax,
            "path_A": self.band.path.tolist(),
            "energies_eV": energies.tolist(),
            "forces_along_path_eV_per_A": self.band.forces.tolist(),
        }


def check(initial: Atoms, final: Atoms, settings: Settings) -> None:
    """Raise InputError if no path leads from one structure to the other."""
    if sorted(initial.numbers) != sorted(final.numbers):
        raise InputError(
            f"both structures need the same atoms; these are {initial.get_chemical_formula()} and "
            f"{final.get_chemical_formula()}"
        )
    if (initial.pbc != final.pbc).any():
        raise InputError(
            f"the structures are not periodic along the same axes: {initial.pbc.tolist()} and "
            f"{final.pbc.tolist()}"
        )
    apart = np.abs(initial.cell[initial.pbc] - final.cell[final.pbc])
    if apart.size and apart.max() > SAME_CELL:
        raise InputError(
            f"the cells of the structures differ by up to {apart.max():.4g} Å; a path is computed "
            "in one cell: relax them with --cell fixed, or give one the cell of the other"
        )
    if not settings.match and (initial.numbers != final.numbers).any():
        first = int(np.flatnonzero(initial.numbers != final.numbers)[0])
        raise InputError(
            f"the order of the elements differs from atom {first} on; match=true reorders the "
            "atoms of the last structure"
        )
    final = matched(initial, final)[0] if settings.match else final
    _check_fixed(initial, final)
    if (moved := float(displacements(initial, final).max(initial=0.0))) < IDENTICAL:
        raise InputError(_same(moved))


def stages(initial: Atoms, final: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    ends = [len(initial)] * 2
    images = [len(initial)] * settings.images
    return [
        *([relaxation("both ends", ends, initial, settings.steps)] if settings.relax else []),
        Stage("both ends, relaxed" if settings.relax else "both ends", ends, initial),
        relaxation("images of the band", images, initial, settings.steps),
    ]


def run(
    initial: Atoms,
    final: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Find the minimum energy path between two structures.

    Args:
        initial, final: the same atoms in the same cell; the constraints of ``initial`` hold.
        potential: the model. settings: options. progress: called with every :class:`Event`.

    Raises:
        InputError: no path leads from one to the other, or both are the same minimum.
        NotConvergedError: the relaxation of an end did not converge.
        NonFiniteError: the path left the region where the model is defined.
    """
    settings, progress = settings or Settings(), progress or silent
    check(initial, final, settings)
    potential = potential.in_precision(settings.dtype)  # type: ignore[arg-type]
    warnings: list[str] = []
    if settings.match:
        final, moved = matched(initial, final)
        if moved:
            warnings.append(
                f"the order of {moved} atoms of the last structure was changed to that of the "
                "first one, so that they move least; --no-match keeps it"
            )
    ends, steps = _ends(initial, final, potential, settings, progress)
    evaluations = potential.evaluate(ends)
    for atoms, evaluation in zip(ends, evaluations, strict=True):
        attach(atoms, evaluation)
    warnings += guards.domain(ends[0], potential, evaluations[0])
    images, notes = initial_path(ends[0], ends[1], settings.images, settings.interpolation)
    fmax, n_steps, diverged = _optimize(images, potential, settings, progress)
    converged = fmax <= settings.fmax
    reason = "the forces of the band are below the threshold"
    if not converged:
        missed = f"largest force of the band {fmax:.3g} > {settings.fmax:g} eV/Å"
        reason = diverged or f"{missed} in {n_steps} steps"
    result = Result(
        settings=settings,
        images=tuple(images),
        band=Band.of(images),
        fmax=fmax,
        steps=n_steps,
        endpoints=steps,
        converged=converged,
        reasons=(reason,),
    )
    warnings += [*notes, *guards.afterwards(_path_warnings, result)]
    return replace(result, warnings=tuple(warnings))


def _check_fixed(initial: Atoms, final: Atoms) -> None:
    """Raise InputError if a fixed atom has another place in the last structure."""
    from ase.constraints import FixAtoms
    from ase.geometry import find_mic

    fixed = [c.index for c in initial.constraints if isinstance(c, FixAtoms)]
    if not fixed:
        return
    index = np.unique(np.concatenate(fixed))
    moves = find_mic((final.positions - initial.positions)[index], initial.cell, initial.pbc)[1]
    if moves.max() > SAME_PLACE:
        atom = int(index[np.argmax(moves)])
        raise InputError(
            f"atom {atom} is fixed in the first structure, and {moves.max():.3g} Å away in the last"
        )


def _ends(
    initial: Atoms,
    final: Atoms,
    potential: BatchPotential,
    settings: Settings,
    progress: Progress,
) -> tuple[list[Atoms], tuple[int, int] | None]:
    """Both structures, relaxed if wanted and close to each other, and the steps of relaxing.

    What is fixed in the first structure is fixed in both.
    """
    ends, steps = [initial.copy(), final.copy()], None
    ends[1].set_constraint(ends[0].constraints)
    if settings.relax:
        options = relax.Settings(fmax=settings.endpoint_fmax, steps=settings.steps)
        results = prepare.relax_together(ends, potential, options, "relax", progress)
        ends = [result.atoms for result in results]
        steps = (results[0].steps[-1].index, results[1].steps[-1].index)
    ends[1] = brought_near(ends[0], ends[1])
    check_apart(ends[0], ends[1], settings)
    return ends, steps


def check_apart(initial: Atoms, final: Atoms, settings: Settings) -> None:
    """Raise InputError if the ends, superposed, are the same."""
    moved = float(np.linalg.norm(final.positions - initial.positions, axis=1).max())
    if moved < SAME_PLACE:
        raise InputError(_same(moved, " relax to" if settings.relax else " are"))


def _same(moved: float, how: str = " are") -> str:
    return (
        f"both structures{how} the same minimum: apart from rigid motions, no atom moves by more "
        f"than {moved:.3g} Å from one to the other"
    )


def _optimize(
    images: list[Atoms],
    potential: BatchPotential,
    settings: Settings,
    progress: Progress,
) -> tuple[float, int, str | None]:
    """Relax the band in place: first without, then with a climbing image.

    Returns the largest force of the band, eV/Å, the number of steps, and why it diverges, if so.
    """
    neb = batched(images, potential, settings.spring)
    step, forces = 0, []
    try:
        fmax = _report(neb, step, progress)
        for climbing in (False, True) if settings.climb else (False,):
            last = climbing or not settings.climb
            goal = settings.fmax if last else max(settings.fmax, settings.climb_fmax)
            neb.climb = climbing and top_is_between(neb)
            fmax = largest_force(neb)

            def reached(goal: float = goal) -> bool:
                return largest_force(neb) <= goal

            for _ in optimize(neb, settings.optimizer, reached, settings.steps - step):
                step += 1
                fmax = _report(neb, step, progress)
                forces.append(fmax)
                if reason := diverges(forces):
                    return fmax, step, reason
    except Dpa3simError as error:
        if step == 0:
            raise
        raise NonFiniteError(f"the band went astray after step {step}: {error}") from None
    return fmax, step, None


def _report(neb: Any, step: int, progress: Progress) -> float:
    """Report the band after a step; return its largest force, eV/Å."""
    fmax = largest_force(neb)
    barrier = neb.energies.max() - neb.energies[0]
    message = f"step {step}: barrier {barrier:.4f} eV, largest force of the band {fmax:.4f} eV/Å"
    progress(Event("neb", message + (", climbing" if neb.climb else "")))
    return fmax


def _path_warnings(result: Result) -> list[str]:
    """Warnings about the barrier, from the shape of the path."""
    energies = result.band.energies
    warnings = []
    if not result.has_barrier:
        warnings.append(
            "no image is higher than both ends: there is no barrier, or the images are too far "
            "apart to show it"
        )
    elif not result.settings.climb:
        warnings.append(
            "no image climbed: the barrier is that of the spline, not of a saddle point"
        )
    valleys = [
        i
        for i in range(1, len(energies) - 1)
        if energies[i] < energies[i - 1]
        and energies[i] < energies[i + 1]
        and energies[i] < min(energies[:i].max(), energies[i + 1 :].max()) - MINIMUM
    ]
    if valleys:
        names = ", ".join(str(i) for i in valleys)
        warnings.append(
            f"there is a minimum on the path, at image {names}: relax it, and compute the paths to "
            "and from it separately"
        )
    return warnings
