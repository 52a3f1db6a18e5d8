"""Minimum energy path and barrier between two structures: nudged elastic band, climbing image.

ASE's NEB with improved tangents (Henkelman and Jónsson, J. Chem. Phys. 113, 9978 (2000)), the
climbing image of Henkelman, Uberuaga and Jónsson, J. Chem. Phys. 113, 9901 (2000), started on the
path of the image dependent pair potential (Smidstrup et al., J. Chem. Phys. 140, 214106 (2014)).
All images of a step are evaluated as one batch. Crystals with defects, slabs, chains and
molecules alike; atoms that are fixed in both structures stay so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import Dpa3simError, InputError, NonFiniteError
from dpa3sim.common.settings import option

from . import relax
from .base import Stage, relaxation
from .crystals import guards, prepare
from .crystals.prepare import Event, Progress
from .crystals.superposition import (
    SAME_PLACE,
    brought_near,
    displacements,
    is_free_molecule,
    matched,
)

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential

OPTIMIZERS = ("auto", "FIRE", "LBFGS", "BFGS", "MDMin")
# Cell vectors of the two structures may differ by this, Å.
SAME_CELL = 1e-4
# Pairs of atoms collide on a path if they come closer than this part of the sum of their covalent
# radii, and than this part of what they are apart at both ends.
COLLISION, CLOSER = 0.7, 0.85
# Points of a straight path that are looked at between the ends, and how often it is bent anew.
SAMPLES, BENDS = 39, 4
# A band diverges if in so many steps its force has not come below so many times its least one, nor
# below what may be large at the beginning of a reaction, eV/Å.
DIVERGED, PATIENCE, LARGE_FORCE = 2.0, 25, 5.0
# Structures that are so near to each other need no relaxation to be the same, Å.
IDENTICAL = 1e-3
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
    ends[1] = brought_near(ends[0], ends[1])
    check_apart(ends[0], ends[1], settings)
    evaluations = potential.evaluate(ends)
    for atoms, evaluation in zip(ends, evaluations, strict=True):
        _attach(atoms, evaluation)
    warnings += guards.domain(ends[0], potential, evaluations[0])

    images, notes = start(ends[0], ends[1], settings)
    fmax, n_steps, diverged = _optimize(images, potential, settings, progress)
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
        reasons=(
            "the forces of the band are below the threshold" if converged else diverged or reason,
        ),
        warnings=(),
    )
    warnings += [*notes, *guards.afterwards(_path_warnings, result)]
    return replace(result, warnings=tuple(warnings))


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


def check_apart(initial: Atoms, final: Atoms, settings: Settings) -> None:
    """Raise InputError for ends that are the same, one laid on the other."""
    moved = float(np.linalg.norm(final.positions - initial.positions, axis=1).max())
    if moved < SAME_PLACE:
        raise InputError(_same(moved, " relax to" if settings.relax else " are"))


def _same(moved: float, how: str = " are") -> str:
    return (
        f"both structures{how} the same minimum: rigid motions aside, no atom has moved by more "
        f"than {moved:.3g} Å from one to the other"
    )


def _attach(atoms: Atoms, evaluation: Evaluation) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(
        atoms, energy=evaluation.energy, forces=evaluation.forces, energies=evaluation.energies
    )


def start(initial: Atoms, final: Atoms, settings: Settings) -> tuple[list[Atoms], tuple[str, ...]]:
    """The images before anything of the model is known about them, and warnings.

    A straight path may lead one atom through another, and the image dependent pair potential cannot
    leave a line that symmetry holds it on. Such a path is bent first.
    """
    from ase.mep import NEB
    from ase.mep.neb import idpp_interpolate

    images = [initial, *(initial.copy() for _ in range(settings.images)), final]
    band = NEB(images, method="improvedtangent")
    pairs = collisions(initial, final)
    if not pairs:
        band.interpolate(method=settings.interpolation, mic=True, apply_constraint=False)
        return images, ()
    band.interpolate(method="linear", mic=True, apply_constraint=False)
    bend = _bend(initial, final)
    for image, s in zip(images[1:-1], np.linspace(0, 1, len(images))[1:-1], strict=True):
        image.positions += np.sin(np.pi * s) * bend
    if settings.interpolation == "idpp":
        idpp_interpolate(images=band, traj=None, log=None, mic=True)
    i, j = pairs[0]
    names = f"{initial.symbols[i]} {i} and {initial.symbols[j]} {j}"
    return images, (
        f"on the straight path atoms {names} collide; the path was bent around it, in one of "
        "several directions: look at the images, or give a structure on the way as an end",
    )


def collisions(initial: Atoms, final: Atoms, bend: np.ndarray | None = None) -> list[Any]:
    """Pairs ``(i, j)`` of atoms that collide on the straight path, the worst first.

    Args:
        initial, final: the ends, in images nearest to each other.
        bend: ``(n, 3)``, how far the middle of the path is from a straight one, Å.
    """
    from ase.data import covalent_radii

    radii = covalent_radii[initial.numbers]
    sums = radii[:, None] + radii[None, :]
    at_ends = np.minimum(*(_distances(end, end.positions) for end in (initial, final)))
    least = np.full(sums.shape, np.inf)
    for s in np.linspace(0, 1, SAMPLES + 2)[1:-1]:
        positions = (1 - s) * initial.positions + s * final.positions
        if bend is not None:
            positions = positions + np.sin(np.pi * s) * bend
        least = np.minimum(least, _distances(initial, positions))
    close = least < np.minimum(COLLISION * sums, CLOSER * at_ends)
    found = [(i, j) for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True)]
    return sorted(found, key=lambda pair: float(least[pair] / sums[pair]))


def _distances(cell: Atoms, positions: np.ndarray) -> np.ndarray:
    """Distances of all pairs, ``(n, n)`` Å, nearest images."""
    from ase.geometry import get_distances

    found = get_distances(positions, cell=cell.cell, pbc=cell.pbc)[1]
    return np.asarray(found)


def _bend(initial: Atoms, final: Atoms) -> np.ndarray:
    """How the middle of the path has to move, ``(n, 3)`` Å, so that no atoms collide.

    Atoms that collide go around each other, perpendicular to their relative motion, the one that
    moves more by more; fixed atoms stay. The direction is the one that they already deviate in,
    else an arbitrary one, which is the same for all pairs and in every run.
    """
    from ase.constraints import FixAtoms
    from ase.data import covalent_radii

    moves = final.positions - initial.positions
    lengths = np.linalg.norm(moves, axis=1)
    for constraint in initial.constraints:
        if isinstance(constraint, FixAtoms):
            lengths[constraint.index] = 0.0
    radii, bend = covalent_radii[initial.numbers], np.zeros_like(moves)
    rng = np.random.default_rng(0)
    arbitrary = np.array([0.36, 0.48, 0.8])
    for _ in range(BENDS):
        pairs = collisions(initial, final, bend if bend.any() else None)
        if not pairs:
            break
        for i, j in pairs:
            if lengths[i] + lengths[j] == 0:
                continue
            side = _sideways(
                initial.positions[j] - initial.positions[i], moves[j] - moves[i], arbitrary
            )
            share = lengths[j] / (lengths[i] + lengths[j])
            wanted = 1.1 * (radii[i] + radii[j])
            for atom, amount in ((j, share * wanted), (i, -(1 - share) * wanted)):
                along = float(bend[atom] @ side) * np.sign(amount or 1.0)
                bend[atom] += np.sign(amount) * max(0.0, abs(amount) - along) * side
        arbitrary = rng.normal(size=3)
    return bend


def _sideways(apart: np.ndarray, motion: np.ndarray, arbitrary: np.ndarray) -> np.ndarray:
    """The unit vector perpendicular to a relative motion, to where a pair already deviates.

    Args:
        apart: ``(3,)`` from one atom to the other at the start. motion: ``(3,)``, of the other one.
        arbitrary: used where they meet exactly.
    """
    along = motion / np.linalg.norm(motion)
    for vector in (apart, arbitrary, np.array([1.0, 0, 0]), np.array([0, 1.0, 0])):
        across = vector - (vector @ along) * along
        if np.linalg.norm(across) > 0.05:
            return np.asarray(across / np.linalg.norm(across))
    raise AssertionError("no vector is perpendicular")


def _batched(images: list[Atoms], potential: BatchPotential, settings: Settings) -> Any:
    """ASE's NEB with all images that have moved evaluated at once."""
    from ase.mep import NEB

    free = is_free_molecule(images[0])

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
            forces = np.asarray(super().get_forces())
            if free:
                images = self.images[1:-1]
                parts = np.split(forces, len(images))
                forces = np.concatenate(
                    [
                        without_rigid_motion(image.positions, part)
                        for image, part in zip(images, parts, strict=True)
                    ]
                )
            return forces

    return BatchedNEB(images, k=settings.spring, method="improvedtangent")


def without_rigid_motion(positions: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Forces ``(n, 3)`` without what would shift or turn a molecule as a whole.

    The energy has no such part, but springs and tangents have: they would make images turn against
    each other, and the band would not come to rest.
    """
    arms = positions - positions.mean(axis=0)
    turns = [np.cross(axis, arms).ravel() for axis in np.eye(3)]
    shifts = [np.tile(axis, len(positions)) for axis in np.eye(3)]
    u, values, _ = np.linalg.svd(np.array([*shifts, *turns]).T, full_matrices=False)
    rigid = u[:, values > 1e-6 * values.max()]  # a linear molecule turns in two ways
    flat = forces.ravel()
    return np.asarray(flat - rigid @ (rigid.T @ flat)).reshape(-1, 3)


def _optimize(
    images: list[Atoms],
    potential: BatchPotential,
    settings: Settings,
    progress: Progress | None,
) -> tuple[float, int, str | None]:
    """Relax the band in place: first without, then with a climbing image.

    Returns the largest force of the band, eV/Å, the number of steps, and why it was given up.
    """
    neb = _batched(images, potential, settings)
    step, forces = 0, []
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
                forces.append(fmax)
                if reason := diverges(forces):
                    return fmax, step, reason
    except Dpa3simError as error:
        if step == 0:
            raise
        raise NonFiniteError(f"the band went astray after step {step}: {error}") from None
    return fmax, step, None


def diverges(forces: Sequence[float]) -> str | None:
    """Why a band with these largest forces, eV/Å, step after step, will not converge; else None.

    Forces of a healthy band rise where it enters a stiff region, or where an image begins to climb,
    and fall again within a few steps.
    """
    if len(forces) <= PATIENCE:
        return None
    least, recent = min(forces[:-PATIENCE]), min(forces[-PATIENCE:])
    if recent < max(LARGE_FORCE, DIVERGED * least):
        return None
    return (
        f"the band diverges: its largest force grew from {least:.3g} to {forces[-1]:.3g} eV/Å and "
        f"did not fall in {PATIENCE} steps; more images, or a structure on the way as an end, help"
    )


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
