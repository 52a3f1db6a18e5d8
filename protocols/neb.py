"""Minimum energy path and barrier between two structures: nudged elastic band, climbing image.

ASE's NEB with improved tangents (Henkelman and Jónsson, J. Chem. Phys. 113, 9978 (2000)), the
climbing image of Henkelman, Uberuaga and Jónsson, J. Chem. Phys. 113, 9901 (2000), started on the
path of the image dependent pair potential (Smidstrup et al., J. Chem. Phys. 140, 214106 (2014)).
All images of a step are evaluated as one batch. Crystals with defects, slabs, chains and
molecules alike; atoms that are fixed in both structures stay so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim import settings as options_of
from dpa3sim.errors import Dpa3simError, InputError, NonFiniteError
from dpa3sim.protocols import guards, prepare, relax
from dpa3sim.protocols.planning import Stage, relaxation
from dpa3sim.protocols.prepare import Event, Progress
from dpa3sim.settings import option

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential import BatchPotential, Evaluation

OPTIMIZERS = ("auto", "FIRE", "LBFGS", "BFGS", "MDMin")
# Structures whose atoms are all nearer than this to each other's are the same, Å.
SAME_PLACE = 0.1
# Cell vectors of the two structures may differ by this, Å.
SAME_CELL = 1e-4
# An image between higher ones by more than this is a minimum on the way, eV.
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


@dataclass(frozen=True)
class Band:
    """Energies and forces along a path.

    Attributes:
        path: ``(n,)`` length of the path up to each image, Å, in the space of all atoms.
        energies: ``(n,)``, eV.
        forces: ``(n,)`` along the path, eV/Å, positive if they drive towards the last image.
    """

    path: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    @classmethod
    def of(cls, images: list[Atoms]) -> Band:
        """From images with energies and forces, not wrapped into the cell between them."""
        positions = np.array([image.positions for image in images])
        steps = np.diff(positions, axis=0)
        path = np.append(0.0, np.cumsum(np.linalg.norm(steps, axis=(1, 2))))
        # Central differences, like those of the spline; one-sided at the ends.
        tangents = np.gradient(positions, path, axis=0)
        tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
        forces = np.array([image.get_forces() for image in images])
        return cls(
            path,
            np.array([float(image.get_potential_energy()) for image in images]),
            (forces * tangents).sum(axis=(1, 2)),
        )

    def spline(self, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
        """Path (Å) and energy (eV) of the cubic spline through energies and forces."""
        from scipy.interpolate import CubicHermiteSpline

        spline = CubicHermiteSpline(self.path, self.energies, -self.forces)
        dense = np.union1d(np.linspace(0, self.path[-1], n), self.path)
        return dense, spline(dense)


@dataclass(frozen=True)
class Result:
    """A path and its barrier.

    Attributes:
        images: the two structures and all between, with energies and forces, in order.
        band: energies and forces along them.
        fmax: largest force of the band, springs included, eV/Å; steps: of the band.
        endpoints: how many steps the relaxation of each structure took; None without.
    """

    settings: Settings
    images: tuple[Atoms, ...]
    band: Band
    fmax: float
    steps: int
    endpoints: tuple[int, int] | None
    converged: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def highest(self) -> int:
        """The image of highest energy: the saddle point, if it is not the first or last."""
        return int(np.argmax(self.band.energies))

    @property
    def has_barrier(self) -> bool:
        """Whether there is something to surmount on the way."""
        return 0 < self.highest < len(self.images) - 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        energies = self.band.energies
        saddle = self.images[self.highest]
        largest = float(np.linalg.norm(saddle.get_forces(), axis=1).max())
        _, spline = self.band.spline()
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
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
            "settings": options_of.to_dict(self.settings),
        }


def check(initial: Atoms, final: Atoms, settings: Settings) -> None:
    """Raise InputError if no path can lead from one structure to the other."""
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
    _check_fixed(initial, matched(initial, final)[0] if settings.match else final)


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
        potential: the model. settings: options. progress: called with what happens.

    Raises:
        InputError: no path can lead from one to the other, or both are the same minimum.
        NotConvergedError: the relaxation of an end did not converge.
        NonFiniteError: the path went where the model has no answer.
    """
    settings = settings or Settings()
    check(initial, final, settings)
    potential = potential.in_precision(settings.dtype)  # type: ignore[arg-type]
    warnings: list[str] = []
    if settings.match:
        final, moved = matched(initial, final)
        if moved:
            warnings.append(
                f"the order of {moved} atoms of the last structure was changed to that of the "
                "first one, by the shortest way; --no-match keeps it"
            )
    ends = [initial.copy(), final.copy()]
    # What is fixed in the first structure is fixed on the whole way.
    ends[1].set_constraint(ends[0].constraints)
    steps = None
    if settings.relax:
        ends, steps = _relaxed(ends, potential, settings, progress)
    ends[1] = _brought_near(ends[0], ends[1])
    _check_apart(ends[0], ends[1], settings)
    evaluations = potential.evaluate(ends)
    for atoms, evaluation in zip(ends, evaluations, strict=True):
        _attach(atoms, evaluation)
    warnings += guards.domain(ends[0], potential, evaluations[0])

    images = _start(ends[0], ends[1], settings)
    fmax, n_steps = _optimize(images, potential, settings, progress)
    converged = fmax <= settings.fmax
    reason = f"largest force of the band {fmax:.3g} > {settings.fmax:g} eV/Å in {n_steps} steps"
    result = Result(
        settings=settings,
        images=tuple(images),
        band=Band.of(images),
        fmax=fmax,
        steps=n_steps,
        endpoints=steps,
        converged=converged,
        reasons=("the forces of the band are below the threshold" if converged else reason,),
        warnings=(),
    )
    return replace(result, warnings=(*warnings, *_path_warnings(result)))


def matched(initial: Atoms, final: Atoms) -> tuple[Atoms, int]:
    """``final`` with its atoms in the order that moves them least, and how many changed place.

    The order is kept if another is no shorter, and if it is all that makes the structures differ,
    as when two equal atoms change places.
    """
    from ase.geometry import get_distances
    from scipy.optimize import linear_sum_assignment

    order = np.arange(len(initial))
    _, distances = get_distances(
        initial.positions, final.positions, cell=initial.cell, pbc=initial.pbc
    )
    for number in np.unique(initial.numbers):
        here = np.flatnonzero(initial.numbers == number)
        there = np.flatnonzero(final.numbers == number)
        rows, columns = linear_sum_assignment(distances[np.ix_(here, there)] ** 2)
        order[here[rows]] = there[columns]
    reordered = final[order]
    changed = int(np.count_nonzero(order != np.arange(len(order))))
    if (initial.numbers == final.numbers).all():
        before = np.diag(distances)
        after = distances[np.arange(len(order)), order]
        exchange = after.max() < SAME_PLACE < before.max()
        if exchange or (after**2).sum() > 0.99 * (before**2).sum():
            return final, 0
    return reordered, changed


def _check_fixed(initial: Atoms, final: Atoms) -> None:
    """Raise InputError for an atom that is fixed and yet elsewhere in the last structure."""
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


def _relaxed(
    ends: list[Atoms],
    potential: BatchPotential,
    settings: Settings,
    progress: Progress | None,
) -> tuple[list[Atoms], tuple[int, int]]:
    """Both structures at their minima, and the steps that took."""
    options = relax.Settings(fmax=settings.endpoint_fmax, steps=settings.steps)
    results = prepare.relax_together(ends, potential, options, "relax", progress)
    first, last = (result.steps[-1].index for result in results)
    return [result.atoms for result in results], (first, last)


def _brought_near(initial: Atoms, final: Atoms) -> Atoms:
    """``final`` with every atom in its periodic image nearest to where it starts.

    A molecule is shifted and rotated onto the first structure instead.
    """
    from ase.build import minimize_rotation_and_translation
    from ase.geometry import find_mic

    near = final.copy()
    if not near.pbc.any() and not near.constraints:
        minimize_rotation_and_translation(initial, near)
        return near
    vectors = find_mic(final.positions - initial.positions, initial.cell, initial.pbc)[0]
    near.set_cell(initial.cell)
    near.positions = initial.positions + vectors
    return near


def _check_apart(initial: Atoms, final: Atoms, settings: Settings) -> None:
    apart = float(np.linalg.norm(final.positions - initial.positions, axis=1).max())
    if apart < SAME_PLACE:
        what = "both structures relax to the same minimum" if settings.relax else "no path"
        raise InputError(
            f"{what}: no atom has moved by more than {apart:.3g} Å from one to the other"
        )


def _attach(atoms: Atoms, evaluation: Evaluation) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(
        atoms, energy=evaluation.energy, forces=evaluation.forces, energies=evaluation.energies
    )


def _start(initial: Atoms, final: Atoms, settings: Settings) -> list[Atoms]:
    """The images before anything of the model is known about them."""
    from ase.mep import NEB

    images = [initial, *(initial.copy() for _ in range(settings.images)), final]
    NEB(images, method="improvedtangent").interpolate(
        method=settings.interpolation, mic=True, apply_constraint=False
    )
    return images


def _batched(images: list[Atoms], potential: BatchPotential, settings: Settings) -> Any:
    """ASE's NEB with all images that have moved evaluated at once."""
    from ase.mep import NEB

    class BatchedNEB(NEB):
        def get_forces(self) -> np.ndarray:
            moved = [
                image
                for image in self.images[1:-1]
                if image.calc is None or image.calc.check_state(image)
            ]
            if moved:
                for image, evaluation in zip(moved, potential.evaluate(moved), strict=True):
                    _attach(image, evaluation)
            return super().get_forces()

    return BatchedNEB(images, k=settings.spring, method="improvedtangent")


def _optimize(
    images: list[Atoms],
    potential: BatchPotential,
    settings: Settings,
    progress: Progress | None,
) -> tuple[float, int]:
    """Relax the band in place: first without, then with a climbing image.

    Returns the largest force of the band, eV/Å, and the number of steps.
    """
    neb = _batched(images, potential, settings)
    step = 0
    try:
        fmax = _report(neb, step, progress)
        for climbing in (False, True) if settings.climb else (False,):
            last = climbing or not settings.climb
            goal = settings.fmax if last else max(settings.fmax, settings.climb_fmax)
            neb.climb = climbing and _top_is_between(neb)
            fmax = relax.largest_force(neb)

            def reached(goal: float = goal) -> bool:
                return relax.largest_force(neb) <= goal

            for _ in relax.optimize(neb, settings.optimizer, reached, settings.steps - step):
                step += 1
                fmax = _report(neb, step, progress)
    except Dpa3simError as error:
        if step == 0:
            raise
        raise NonFiniteError(f"the band went astray after step {step}: {error}") from None
    return fmax, step


def _top_is_between(neb: Any) -> bool:
    """Whether the highest image is neither the first nor the last: only such a one may climb."""
    return bool(0 < np.argmax(neb.energies) < len(neb.energies) - 1)


def _report(neb: Any, step: int, progress: Progress | None) -> float:
    fmax = relax.largest_force(neb)
    if progress:
        barrier = neb.energies.max() - neb.energies[0]
        message = (
            f"step {step}: barrier {barrier:.4f} eV, largest force of the band {fmax:.4f} eV/Å"
        )
        progress(Event("neb", message + (", climbing" if neb.climb else "")))
    return fmax


def _path_warnings(result: Result) -> list[str]:
    """What the shape of the path says of its barrier."""
    energies = result.band.energies
    warnings = []
    if not result.has_barrier:
        warnings.append(
            "no image is higher than both ends: there is no barrier, or the images are too far "
            "apart to see it"
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
            f"there is a minimum on the way, at image {names}: relax it, and compute the paths to "
            "and from it separately"
        )
    return warnings
