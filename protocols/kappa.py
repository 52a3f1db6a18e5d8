"""Lattice thermal conductivity of crystals from third-order force constants (phono3py).

The unit cell is the primitive one of the relaxed crystal, as for phonons. Whether the crystal is
stable is decided before the supercells of third order are evaluated, which cost far more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError, UnphysicalError

from .anharmonics import third_order
from .anharmonics.settings import PHONONDB, Settings, resolved
from .anharmonics.third_order import Random, Residuals, Systematic
from .anharmonics.transport import (
    RTA,
    Mesh,
    Report,
    Scattering,
    Transport,
    irreducible,
)
from .base import Event, Progress, Stage, silent
from .crystals import guards, prepare
from .crystals.cells import Cells, spacegroup
from .crystals.prepare import PropertyResult
from .crystals.supercells import Request, parse, widths
from .crystals.symmetric_supercells import choose
from .harmonics import imaginary
from .harmonics.bands import BandPath
from .harmonics.force_constants import Harmonic
from .harmonics.imaginary import Verdict
from .harmonics.properties import HarmonicRun
from .harmonics.properties import check as check_harmonic
from .harmonics.properties import stages_of as harmonic_stages

if TYPE_CHECKING:
    from ase import Atoms
    from phono3py import Phono3py

    from dpa3sim.potential.interface import BatchPotential

__all__ = ["Result", "Settings", "check", "run", "stages"]

WHAT = "thermal conductivities"
# Supercells of third order with "auto": face distance, Å, and most atoms.
WIDTH, MOST_ATOMS = 10.0, 100
# Displacements of third order, Å: the usual ones, and the least.
DISTANCE, LEAST_DISTANCE = 0.03, 0.005
# Of the distance of a shell from a cutoff at which the model changes, so much may be moved: two
# atoms move towards each other.
SHARE_OF_GAP = 0.45
# Random displacements are doubled until the conductivity on a mesh coarser by this factor changes
# by less than this.
COARSE, CONVERGED_PERCENT = 0.5, 2.0
# The change with the mesh is reported from a mesh coarser by this factor.
COARSER = 2 / 3
# A warning is given if sums that translation forbids exceed this share of the largest element.
LARGEST_ASR = 0.01
# Beyond this distance force constants are left out to see how far they reach, Å.
REACH = 5.0
# A warning is given if that, or the mesh, changes the conductivity by more.
LARGE_CHANGE_PERCENT = 10.0
# What depends on a temperature only a little is told for the one next to this, K.
ROOM_TEMPERATURE = 300.0
# Forces of a crystal without third order are below this share of those of second order in an Å.
HARMONIC = 1e-6
# The preset takes a crystal for unstable if an acoustic mode at Γ is below this, or any other mode
# below zero, THz.
PRESET_ACOUSTIC = -0.01


@dataclass(frozen=True)
class ThirdOrder:
    """Third-order force constants and how they were found.

    Attributes:
        ph3: phono3py's object with force constants of second and third order.
        displacements: ``"random"`` or ``"systematic"``. distance: their length, Å.
        count: number of displaced supercells. residuals: how well they are known.
        change: of the conductivity by the last doubling, %; None unless it was doubled.
    """

    ph3: Phono3py
    displacements: str
    distance: float
    count: int
    residuals: Residuals
    change: float | None = None


@dataclass(frozen=True)
class Changes:
    """How much the conductivity depends on what is cut off, %.

    Attributes:
        mesh: relative to a mesh coarser by a third.
        reach: on that mesh, without force constants of third order beyond 5 Å.
    """

    mesh: float
    reach: float


@dataclass(frozen=True, kw_only=True)
class Result(PropertyResult[Settings]):
    """Thermal conductivity of a crystal.

    Attributes:
        crystal: the primitive cell with force constants of second order.
        verdict: whether it is stable.
        third: force constants of third order; None for an unstable crystal.
        transport: the conductivity; None for an unstable crystal.
        changes: with mesh and reach; None for an unstable crystal.
    """

    crystal: Harmonic
    verdict: Verdict
    third: ThirdOrder | None
    transport: Transport | None
    changes: Changes | None

    def _values(self) -> dict[str, Any]:
        atoms = self.crystal.atoms
        matrix_fc2 = self.crystal.phonon.supercell_matrix.T
        return {
            **super()._values(),
            **self.crystal.residuals.to_dict(),
            **self.verdict.to_dict(),
            "supercell_fc2_matrix_primitive": matrix_fc2.tolist(),
            "supercell_fc2_widths_A": widths(matrix_fc2 @ atoms.cell[:]).tolist(),
            "n_atoms_supercell_fc2": len(self.crystal.phonon.supercell),
            "n_displacements_fc2": self.crystal.n_displacements,
            "nac": self.crystal.phonon.nac_params is not None,
            **_third_values(self.third, atoms, self.settings),
            **_transport_values(self.transport),
            "mesh_change_percent": self.changes and self.changes.mesh,
            "fc3_cut_5A_change_percent": self.changes and self.changes.reach,
        }


def check(atoms: Atoms, settings: Settings) -> None:
    """Raise InputError if ``atoms`` have no thermal conductivity with these settings; cheap."""
    third_order.require_phono3py()
    third_order.check_species(atoms)
    prepare.check(atoms, settings, WHAT)
    atoms, settings = resolved(atoms, settings)
    check_harmonic(atoms, settings.harmonic)
    _supercell(Cells.of(atoms, settings.symprec), settings)


def stages(atoms: Atoms, settings: Settings, cutoff: float) -> list[Stage]:
    """What :func:`run` is going to evaluate; ``cutoff`` (Å) of the model."""
    atoms, settings = resolved(atoms, settings)
    cells = prepare.starting_cells(atoms, settings)
    start = cells.primitive.atoms
    matrix, _ = _supercell(cells, settings)
    matrix_fc2, _ = choose(cells, parse(settings.supercell_fc2), cutoff)
    ph3 = third_order.new_phono3py(start, matrix, matrix_fc2)
    rounds = Rounds.of(ph3, settings, settings.distance or DISTANCE)
    fixed = parse(settings.supercell).matrix is not None or not settings.relax
    sure, note = prepare.certainty(cells, settings)
    notes = [note if fixed else "unless the relaxed cell needs another supercell"]
    if rounds.last > rounds.first:
        notes.append(f"{rounds.first} to {rounds.last}, until the conductivity has converged")
    points = irreducible(ph3, settings.points)
    notes.append(f"besides, phono3py scatters phonons at {points} wave vectors")
    third = Stage(
        "supercells of third order",
        [len(ph3.supercell)] * rounds.first,
        start,
        (1, -(-rounds.last // rounds.first)),
        certain=fixed and sure,
        note="; ".join(note for note in notes if note),
    )
    return [*harmonic_stages(atoms, settings.harmonic, cutoff, 1), third]


def run(
    atoms: Atoms,
    potential: BatchPotential,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Result:
    """Relax a crystal and compute its thermal conductivity.

    Args:
        atoms: any cell of the crystal; not changed.
        potential: the model. settings: options, defaults where None.
        progress: called with every :class:`Event`.

    Raises:
        InputError: the structure is not a crystal, a supercell or file of Born charges does not
            fit it, or phono3py is not installed.
        NotConvergedError: the relaxation did not converge.
        UnphysicalError: the crystal is unstable, unless that is only to be reported, or nothing
            scatters its phonons.
    """
    settings, progress = settings or Settings(), progress or silent
    check(atoms, settings)
    atoms, settings = resolved(atoms, settings)
    displacement = partial(_distance, settings=settings)
    begun = HarmonicRun.begin(
        atoms, potential, settings.harmonic, progress, displacement=displacement
    )
    (crystal,), _ = begun.force_constants([begun.prepared.cells.primitive.atoms])
    verdict = _judge(crystal, settings)
    warnings = [*begun.warnings, *imaginary.warnings_of(verdict, crystal.phonon)]
    reason = "the conductivity is complete"
    third = transport = changes = None
    if verdict.state == imaginary.UNSTABLE:
        if settings.imaginary == "error":
            imaginary.refuse_unstable(verdict, "the crystal")
        reason = f"there is no conductivity: the crystal is unstable, {verdict.reason}"
    else:
        if settings.isotopes and crystal.atoms.has("masses"):
            settings = replace(settings, isotopes=False)
            warnings.append("the structure states masses: natural isotopes do not scatter")
        third, found = _third_order(crystal, begun, settings)
        transport, changes = _conduct(third.ph3, settings, progress)
        warnings += found + _warnings_of(third, transport, changes)
    return Result(
        settings=settings,
        prepared=begun.prepared,
        crystal=crystal,
        verdict=verdict,
        third=third,
        transport=transport,
        changes=changes,
        reasons=(reason,),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class Rounds:
    """How third order is found: the displacements, and how many of them.

    Attributes:
        first, last: number of supercells at first, and at most.
        warnings: why they are not those that were asked for.
    """

    scheme: Systematic | Random
    first: int
    last: int
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, ph3: Phono3py, settings: Settings, distance: float) -> Rounds:
        """Choose.

        Raises:
            InputError: the fit of random displacements needs too much memory, or more of them.
        """
        systematic = Systematic(ph3, distance, settings.cutoff_pair)
        count = systematic.count
        if settings.displacements == "systematic":
            return cls(systematic, count, count)
        random = Random(ph3, distance, settings.cutoff_pair, settings.seed)
        if not random.fits:
            found = (
                f"a fit of {random.unknowns} force constants to random displacements needs "
                f"{random.bytes / 2**30:.1f} GiB; cutoff_pair makes it smaller"
            )
            if settings.displacements == "random":
                raise InputError(f"{found}, displacements = systematic does without")
            return cls(systematic, count, count, (f"displacements are systematic: {found}",))
        if settings.snapshots is not None:
            if settings.snapshots < random.minimum:
                raise InputError(
                    f"option snapshots = {settings.snapshots}: the fit needs at least "
                    f"{random.minimum} supercells"
                )
            return cls(random, settings.snapshots, settings.snapshots)
        first = third_order.FIRST_ROUND * random.minimum
        if settings.displacements == "auto" and first >= count:
            return cls(systematic, count, count)
        return cls(random, first, max(first, count))


def _supercell(cells: Cells, settings: Settings) -> tuple[np.ndarray, list[str]]:
    """The supercell of third order ``(3, 3)`` in vectors of the primitive cell, and warnings."""
    request, n_atoms = parse(settings.supercell), len(cells.primitive.atoms)
    if request != Request():
        return choose(cells, request, 0.0)
    matrix, warnings = choose(cells, Request(width=WIDTH), 0.0)
    if n_atoms * round(np.linalg.det(matrix)) <= MOST_ATOMS:
        return matrix, warnings
    if n_atoms > MOST_ATOMS:
        return np.eye(3, dtype=int), []
    try:
        return choose(cells, Request(max_atoms=MOST_ATOMS), 0.0)
    except InputError:  # no symmetric cell is so small
        return np.eye(3, dtype=int), []


def _distance(atoms: Atoms, potential: BatchPotential, settings: Settings) -> float:
    """Length of the displacements of third order, Å: short of a step of the model."""
    if settings.distance is not None:
        return settings.distance
    descriptor = potential.model.config.descriptor
    if not descriptor.has_step:
        return DISTANCE
    cutoff = descriptor.a_rcut
    near = guards.shells(atoms, cutoff, 2 * DISTANCE / cutoff)
    gap = min((abs(shell - cutoff) for shell, _ in near), default=np.inf)
    return float(np.clip(SHARE_OF_GAP * gap, LEAST_DISTANCE, DISTANCE))


def _judge(crystal: Harmonic, settings: Settings) -> Verdict:
    """Whether the crystal is stable: as for phonons, or as the preset has it."""
    BandPath.of(crystal.atoms, settings.symprec).run(crystal.phonon)
    if settings.preset != PHONONDB:
        crystal.phonon.run_mesh(settings.harmonic.mesh)
        return imaginary.judge(crystal)
    crystal.phonon.run_mesh(settings.points, is_gamma_center=True)
    verdict = imaginary.judge(crystal)
    mesh: Any = crystal.phonon.mesh
    gamma = np.abs(mesh.qpoints).max(axis=1) < 1e-9
    lowest = min(mesh.frequencies[~gamma].min(), np.sort(mesh.frequencies[gamma][0])[3])
    acoustic = mesh.frequencies[gamma].min()
    if lowest >= 0 and acoustic >= PRESET_ACOUSTIC:
        return replace(verdict, state=imaginary.STABLE, reason="no imaginary frequency on the mesh")
    reason = f"the mesh has the imaginary frequency {-min(lowest, acoustic):.4f}i THz"
    return replace(verdict, state=imaginary.UNSTABLE, reason=reason)


def _third_order(
    crystal: Harmonic, begun: HarmonicRun, settings: Settings
) -> tuple[ThirdOrder, list[str]]:
    """Evaluate displaced supercells, in one request or until the conductivity has converged."""
    cells, potential = begun.prepared.cells, begun.prepared.potential
    matrix, warnings = _supercell(cells, settings)
    ph3 = third_order.new_phono3py(crystal.atoms, matrix, begun.matrix)
    third_order.set_harmonic(ph3, crystal)
    distance = _distance(crystal.atoms, potential, settings)
    warnings += _window(crystal.atoms, potential, distance)
    kept = spacegroup(crystal.atoms, third_order.SYMPREC)
    if kept != cells.label():
        warnings.append(
            f"within {third_order.SYMPREC:g} Å, which third order needs, the space group is {kept} "
            f"and not {cells.label()}, which costs displacements; relaxing makes it exact"
        )
    rounds = Rounds.of(ph3, settings, distance)
    count, before, change = rounds.first, np.nan, None
    while True:
        structures = rounds.scheme.structures(count)
        begun.progress(
            Event("displacements", f"{len(structures)} supercells of {len(ph3.supercell)} atoms")
        )
        rest, *answers = potential.evaluate([crystal.atoms, *structures])
        residuals = rounds.scheme.solve(third_order.forces_of(answers, rest, ph3))
        _refuse_harmonic(residuals, crystal)
        if rounds.first == rounds.last:
            break
        value = _coarse(ph3, settings)
        if count > rounds.first:
            change = 100 * (value / before - 1)
            message = f"{count} change the conductivity by {change:+.1f} %"
            begun.progress(Event("displacements", message))
            if abs(change) < CONVERGED_PERCENT:
                break
        if count == rounds.last:
            warnings.append(
                f"{count} random displacements, as many as systematic ones, may be too few"
                + (
                    ""
                    if change is None
                    else f": the last doubling changed kappa by {change:+.1f} %"
                )
                + "; displacements = systematic does without them"
            )
            break
        before, count = value, min(2 * count, rounds.last)
    found = ThirdOrder(ph3, rounds.scheme.name, distance, rounds.scheme.count, residuals, change)
    return found, [*warnings, *rounds.warnings]


def _refuse_harmonic(residuals: Residuals, crystal: Harmonic) -> None:
    """Raise UnphysicalError where there is nothing that scatters phonons."""
    second = float(np.abs(np.asarray(crystal.phonon.force_constants)).max())
    if residuals.largest < HARMONIC * second:
        raise UnphysicalError(
            f"force constants of third order are at most {residuals.largest:.1e} eV/Å^3: nothing "
            "scatters phonons, and the conductivity is infinite; in a small supercell they may "
            "cancel by symmetry, which a larger --supercell avoids"
        )


def _coarse(ph3: Phono3py, settings: Settings) -> float:
    """The conductivity on a coarse mesh, which tells whether force constants have converged."""
    scattering = replace(_at_one(settings.scattering), transport=RTA)
    transport = Transport.of(ph3, _coarser(settings.points, COARSE), scattering)
    return float(transport.conductivities[0])


def _at_one(scattering: Scattering) -> Scattering:
    """At the temperature next to that of a room."""
    at = scattering.nearest(ROOM_TEMPERATURE)
    return replace(scattering, temperatures=(scattering.temperatures[at],))


def _coarser(mesh: Mesh, factor: float) -> Mesh:
    if isinstance(mesh, float):
        return factor * mesh
    a, b, c = (max(1, round(factor * n)) for n in mesh)
    return a, b, c


def _conduct(ph3: Phono3py, settings: Settings, progress: Progress) -> tuple[Transport, Changes]:
    """The conductivity, and how it depends on the mesh and on far force constants."""

    def report(stage: str) -> Report:
        def tell(done: int, total: int) -> None:
            progress(Event(stage, f"{done} of {total} wave vectors", done, total))

        return tell

    mesh, scattering = settings.points, settings.scattering
    transport = Transport.of(ph3, mesh, scattering, report("scattering"), pure=True)
    if not np.isfinite(transport.tensors).all():
        raise UnphysicalError("the conductivity is not finite: some phonons are not scattered")
    one = _at_one(scattering)
    coarser = _coarser(mesh, COARSER)
    fine = transport.conductivities[scattering.nearest(ROOM_TEMPERATURE)]
    coarse = Transport.of(ph3, coarser, one, report("coarser mesh")).conductivities[0]
    whole = ph3.fc3
    ph3.fc3 = np.array(whole)
    ph3.cutoff_fc3_by_zero(REACH)
    cut = Transport.of(ph3, coarser, one, report("without far force constants")).conductivities[0]
    ph3.fc3 = whole
    return transport, Changes(100 * (fine / coarse - 1), 100 * (cut / coarse - 1))


def _window(atoms: Atoms, potential: BatchPotential, distance: float) -> list[str]:
    """A warning about neighbours where a smoothed model changes quickly."""
    descriptor = potential.model.config.descriptor
    width = getattr(descriptor, "smooth_cutoff", None)
    if width is None:
        return []
    cutoff = descriptor.a_rcut
    found = guards.shells(atoms, cutoff, (width + 2 * distance) / cutoff)
    return [
        f"neighbours {pairs} at {shell:.4f} Å are where smooth_cutoff = {width:g} Å changes the "
        "model quickly: its third derivatives are large there"
        for shell, pairs in found
        if cutoff - width - 2 * distance <= shell <= cutoff + 2 * distance
    ]


def _warnings_of(third: ThirdOrder, transport: Transport, changes: Changes) -> list[str]:
    """What impairs a conductivity."""
    warnings = []
    residuals = third.residuals
    # The sum over the first index also has the fourth order of crystals without inversion.
    broken = 0.0 if residuals.asr is None else max(residuals.asr[1:])
    if broken > LARGEST_ASR * residuals.largest:
        warnings.append(
            "sums of third-order force constants that translation forbids reach "
            f"{broken:.2g} eV/Å^3, {100 * broken / residuals.largest:.1f} % of the largest one: "
            f"displacements of {third.distance:g} Å are too long or too short for the model here"
        )
    if abs(changes.mesh) > LARGE_CHANGE_PERCENT:
        mesh = "x".join(str(n) for n in transport.mesh)
        warnings.append(
            f"the conductivity has not converged with the mesh: {mesh} changes it by "
            f"{changes.mesh:+.0f} % from one coarser by a third"
        )
    if abs(changes.reach) > LARGE_CHANGE_PERCENT:
        warnings.append(
            f"third-order force constants beyond {REACH:g} Å matter: without them the conductivity "
            f"changes by {changes.reach:+.0f} %; compare another supercell and another distance"
        )
    return warnings


def _third_values(third: ThirdOrder | None, atoms: Atoms, settings: Settings) -> dict[str, Any]:
    """JSON-ready keys about third order, the same for an unstable crystal."""
    if third is None:
        return {"n_displacements": 0}
    matrix = third.ph3.supercell_matrix.T
    random = third.displacements == Random.name
    return {
        "phono3py_version": third.ph3.version,
        "supercell_matrix_primitive": matrix.tolist(),
        "supercell_widths_A": widths(matrix @ atoms.cell[:]).tolist(),
        "n_atoms_supercell": len(third.ph3.supercell),
        "displacements": third.displacements,
        "distance_fc3_A": third.distance,
        "n_displacements": third.count,
        "seed": settings.seed if random else None,
        "displacements_change_percent": third.change,
        **third.residuals.to_dict(),
    }


def _transport_values(transport: Transport | None) -> dict[str, Any]:
    """JSON-ready keys about the conductivity; null for an unstable crystal."""
    if transport is None:
        return {"thermal_conductivity_W_per_m_K": None}
    tensors = {
        "": transport.tensors,
        "_coherences": transport.coherences,
        "_relaxation_times": transport.relaxation,
        "_without_isotopes": transport.pure,
    }
    indices = range(len(transport.tensors))
    return {
        "temperatures_K": list(transport.scattering.temperatures),
        "thermal_conductivity_W_per_m_K": transport.conductivities.tolist(),
        **{
            f"thermal_conductivity{part}_tensor_W_per_m_K": None if t is None else t.tolist()
            for part, t in tensors.items()
        },
        "mean_lifetime_ps": transport.mean_lifetimes().tolist(),
        "mean_free_path_of_half_nm": [_half(*transport.cumulative(i)) for i in indices],
        "transport": transport.scattering.transport,
        "isotopes": transport.scattering.isotopes,
        "mesh": transport.mesh.tolist(),
        "n_wave_vectors": len(transport.weights),
    }


def _half(paths: np.ndarray, conducted: np.ndarray) -> float:
    """The mean free path up to which modes conduct half of all, nm."""
    return float(paths[np.searchsorted(conducted, conducted[-1] / 2)])
