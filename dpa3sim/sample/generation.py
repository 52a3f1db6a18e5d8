"""Candidates for training: variations of structures, of every kind that is asked for.

Each kind and structure has random numbers of its own, so that the candidates of one kind do not
depend on which other kinds are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.common.errors import InputError, NonFiniteError
from dpa3sim.potential.interface import BatchPotential
from dpa3sim.protocols.base import Event, Progress, silent
from dpa3sim.protocols.crystals.volumes import scaled
from dpa3sim.sample import variations
from dpa3sim.sample.clusters import dimers, isolated_atoms
from dpa3sim.sample.frames import PARENT, marked, plain, supercell, too_close
from dpa3sim.sample.settings import (
    KINDS,
    SampleSettings,
    amplitudes,
    chosen_kinds,
    substitutes,
)
from dpa3sim.sample.trajectories import conditions, simulate

if TYPE_CHECKING:
    from ase import Atoms

LEFT_OUT = "left out"
"""The stage of events about candidates that were not made, or could not be used."""
# A variation whose atoms are too close is drawn again, at most so often.
_DRAWS = 20
# Faces of slabs, and the vacuum in their cells, Å; the model needs none.
_FACES, _VACUUM = 3, 15.0
_SYMPREC = 0.01
Draw = Callable[[np.random.Generator], "Atoms"]


def generate(
    structures: Sequence[Atoms],
    potential: BatchPotential,
    settings: SampleSettings | None = None,
    *,
    progress: Progress = silent,
) -> list[Atoms]:
    """Make candidates of all structures; kinds that do not suit a structure are not made of it.

    Args:
        structures: crystals, slabs or molecules; ``info["parent"]`` names one. They are not
            changed.
        potential: the model: it runs molecular dynamics, and decides which elements there can be.
        settings: options, defaults where None.
        progress: called as it goes on; events of the stage :data:`LEFT_OUT` say what is missing.

    Returns:
        Structures without labels; ``info`` says ``config_type`` (the kind), ``parent`` and mostly
        ``detail``.

    Raises:
        InputError: a structure cannot be evaluated, has too many atoms, or nothing can be made.
    """
    settings = settings or SampleSettings()
    parents = [
        _Parent.of(atoms, index, potential, settings) for index, atoms in enumerate(structures)
    ]
    elements = _elements(structures, potential, settings)
    found: list[Atoms] = []
    left_out: Counter[str] = Counter()
    for kind in chosen_kinds(settings):
        for candidate in _of_kind(kind, parents, elements, potential, settings, progress):
            reason = candidate if isinstance(candidate, str) else _refusal(candidate, potential)
            if reason:
                left_out[f"{kind}: {reason}"] += 1
            elif not isinstance(candidate, str):
                found.append(candidate)
        progress(Event("generate", f"{kind}: {len(found)} candidates so far"))
    for reason, count in left_out.items():
        progress(Event(LEFT_OUT, reason if count == 1 else f"{reason} ({count} times)"))
    if structures and not found:
        raise InputError("no candidate can be made; choose other kinds, or a smaller min_distance")
    return found


@dataclass(frozen=True)
class _Parent:
    """A structure that candidates are made of.

    Attributes:
        name: of it. given: as it is. start: repeated. index: among the structures.
    """

    name: str
    given: Atoms
    start: Atoms
    index: int

    @classmethod
    def of(
        cls, atoms: Atoms, index: int, potential: BatchPotential, settings: SampleSettings
    ) -> _Parent:
        name = str(atoms.info.get(PARENT, f"structure {index}"))
        given = plain(atoms)
        try:
            potential.check(given)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if len(given) > settings.max_atoms:
            raise InputError(
                f"{name}: has {len(given)} atoms, more than max_atoms = {settings.max_atoms}"
            )
        start = supercell(given, settings.min_atoms, settings.max_atoms)
        return cls(name, given, start, index)

    @property
    def is_crystal(self) -> bool:
        return bool(self.given.pbc.all())


def _elements(
    structures: Sequence[Atoms], potential: BatchPotential, settings: SampleSettings
) -> list[int]:
    """Atomic numbers of the structures and of what is substituted into them.

    Raises:
        InputError: the model does not know a substituted element, or there is nothing to exchange.
    """
    from ase import Atoms

    present = {int(z) for atoms in structures for z in atoms.numbers}
    for element, others in substitutes(settings).items():
        if structures and ATOMIC_NUMBERS[element] not in present:
            raise InputError(f"substitute: no structure contains {element}")
        for other in others:
            try:
                potential.check(Atoms(other))
            except InputError as error:
                raise InputError(f"substitute: {error}") from None
            present.add(ATOMIC_NUMBERS[other])
    return sorted(present)


def _refusal(atoms: Atoms, potential: BatchPotential) -> str | None:
    """Why the model cannot evaluate a candidate."""
    try:
        potential.check(atoms)
    except InputError as error:
        return f"{atoms.info[PARENT]}: {error}"
    return None


def _of_kind(
    kind: str,
    parents: Sequence[_Parent],
    elements: Sequence[int],
    potential: BatchPotential,
    settings: SampleSettings,
    progress: Progress,
) -> Iterator[Atoms | str]:
    """The candidates of a kind, and in place of those that there are not, the reasons."""
    if kind == "dimers":
        cutoff = potential.model.config.descriptor.e_rcut
        yield from dimers(elements, settings.dimer_points, cutoff)
    elif kind == "atoms":
        yield from isolated_atoms(elements)
    else:
        for parent in parents:
            # Their own for each kind and structure: others do not shift them.
            rng = np.random.default_rng([settings.seed, KINDS.index(kind), parent.index])
            if kind == "md":
                yield from _trajectories(parent, potential, settings, rng, progress)
            elif kind == "slabs":
                yield from _slabs(parent, settings, rng)
            else:
                yield from _variations(kind, parent, settings, rng)


def _variations(
    kind: str, parent: _Parent, settings: SampleSettings, rng: np.random.Generator
) -> Iterator[Atoms | str]:
    """Candidates of a kind that is made of one structure without the model."""
    for detail, draw in _DRAWN[kind](parent, settings):
        for _ in range(_DRAWS):
            candidate = draw(rng)
            if not too_close(candidate, settings.min_distance):
                yield marked(candidate, kind, parent.name, detail)
                break
        else:
            text = f" ({detail})" if detail else ""
            yield f"{parent.name}{text}: atoms are closer than min_distance"


# -- what is drawn: descriptions, and functions that draw -----------------------------------------

Draws = Iterator[tuple[str, Draw]]


def _start(parent: _Parent, settings: SampleSettings) -> Draws:
    yield "", lambda rng: parent.start.copy()


def _rattled(parent: _Parent, settings: SampleSettings) -> Draws:
    for amplitude in amplitudes(settings):
        draw = partial(variations.rattled, parent.start, amplitude)
        for _ in range(settings.rattle_count):
            yield f"amplitude {amplitude:g} A", draw


def _strained(parent: _Parent, settings: SampleSettings) -> Draws:
    largest = settings.strain / 100

    def draw(also: float, rng: np.random.Generator) -> Atoms:
        changed = variations.strained(parent.start, variations.random_strain(largest, rng))
        return variations.rattled(changed, also, rng) if also else changed

    if parent.is_crystal and largest > 0:
        choices = [0.0, *amplitudes(settings)]
        for number in range(settings.strain_count):
            # Every second one, with each of the amplitudes in turn.
            also = choices[1 + number // 2 % (len(choices) - 1)] if number % 2 else 0.0
            text = f", amplitude {also:g} A" if also else ""
            yield f"strain up to {settings.strain:g} %{text}", partial(draw, also)


def _volumes(parent: _Parent, settings: SampleSettings) -> Draws:
    if parent.is_crystal:
        changes = np.linspace(
            -settings.compression / 100, settings.expansion / 100, settings.volume_points
        )
        for change, atoms in zip(changes, scaled(parent.start, changes), strict=True):
            yield f"volume {1 + change:.4f} of the given one", partial(_same, atoms)


def _same(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return atoms.copy()


def _then_rattled(
    vary: Callable[..., Atoms], settings: SampleSettings, rng: np.random.Generator
) -> Atoms:
    """A variation whose atoms are also displaced a little: forces are then not zero by symmetry."""
    return variations.rattled(vary(rng=rng), min(amplitudes(settings), default=0.0), rng)


def _substituted(parent: _Parent, settings: SampleSettings) -> Draws:
    others = substitutes(settings)
    if set(others) & set(parent.start.get_chemical_symbols()):
        vary = partial(variations.substituted, parent.start, others)
        for _ in range(settings.substitute_count):
            yield "", partial(_then_rattled, vary, settings)


def _swapped(parent: _Parent, settings: SampleSettings) -> Draws:
    if len(set(parent.start.numbers.tolist())) > 1:
        vary = partial(variations.swapped, parent.start)
        for _ in range(settings.swap_count):
            yield "", partial(_then_rattled, vary, settings)


def _vacancies(parent: _Parent, settings: SampleSettings) -> Draws:
    if parent.is_crystal and len(parent.start) > 1:
        vary = partial(variations.with_vacancy, parent.start)
        for _ in range(settings.defect_count):
            yield "", partial(_then_rattled, vary, settings)


def _interstitials(parent: _Parent, settings: SampleSettings) -> Draws:
    if parent.is_crystal and len(parent.start) < settings.max_atoms:
        vary = partial(variations.with_interstitial, parent.start)
        for _ in range(settings.defect_count):
            yield "", partial(_then_rattled, vary, settings)


_DRAWN: dict[str, Callable[[_Parent, SampleSettings], Draws]] = {
    "start": _start,
    "rattled": _rattled,
    "strained": _strained,
    "volumes": _volumes,
    "substitutions": _substituted,
    "swaps": _swapped,
    "vacancies": _vacancies,
    "interstitials": _interstitials,
}


# -- what needs the model, or the symmetry --------------------------------------------------------


def _trajectories(
    parent: _Parent,
    potential: BatchPotential,
    settings: SampleSettings,
    rng: np.random.Generator,
    progress: Progress,
) -> Iterator[Atoms | str]:
    if settings.md_time == 0 or len(parent.start) < 2:
        return
    for condition in conditions(parent.start, settings):
        what = f"{parent.name} at {condition}"

        def tell(event: Event, what: str = what) -> None:
            progress(Event("md", f"{what}: {event.message}", event.done, event.total))

        seed = int(rng.integers(2**31))
        try:
            found = simulate(parent.start, potential, condition, settings, seed, tell)
        except (InputError, NonFiniteError) as error:
            yield f"{what}: {error}"
            continue
        for frame, time in zip(found.frames, found.times, strict=True):
            yield marked(frame, "md", parent.name, f"{condition}, {time:g} fs")
        if found.problem:
            yield f"{what}: {found.problem}; {len(found.frames)} frames before are used"


def _slabs(
    parent: _Parent, settings: SampleSettings, rng: np.random.Generator
) -> Iterator[Atoms | str]:
    """Slabs as they are cut, and rattled with each amplitude."""
    from dpa3sim.protocols.crystals.cells import Cells, check_crystal
    from dpa3sim.protocols.crystals.slabs import (
        cuts_of,
        distinct_faces,
        face_name,
        parse_miller,
    )

    try:
        check_crystal(parent.given, "slabs")
        cells = Cells.of(parent.given, _SYMPREC)
    except InputError:  # a molecule, a slab, a molecular crystal: not of this kind
        return
    for face in parse_miller(settings.miller) or distinct_faces(cells)[:_FACES]:
        for cut in cuts_of(cells, face, settings.slab_thickness, 1, _VACUUM):
            slab = supercell(cut.slabs[0], settings.min_atoms, settings.max_atoms)
            if len(slab) > settings.max_atoms:
                yield f"{parent.name} {face_name(face)}: has {len(slab)} atoms, above max_atoms"
                continue
            for amplitude in (0.0, *amplitudes(settings)):
                candidate = variations.rattled(slab, amplitude, rng) if amplitude else slab.copy()
                if too_close(candidate, settings.min_distance):
                    yield f"{parent.name} {face_name(face)}: atoms are closer than min_distance"
                    continue
                text = f", amplitude {amplitude:g} A" if amplitude else ""
                yield marked(candidate, "slabs", parent.name, f"face {face_name(face)}{text}")
