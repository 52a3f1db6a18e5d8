"""What the teacher shows: a first set of frames, and others by which the student is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dpa3sim.common.errors import InputError, NonFiniteError
from dpa3sim.distill.settings import DistillOptions
from dpa3sim.protocols import md
from dpa3sim.protocols.base import Event, Progress, Stage, silent
from dpa3sim.sample.frames import PARENT, kind_of, marked, plain, supercell
from dpa3sim.sample.generation import LEFT_OUT, generate
from dpa3sim.sample.labelling import ERROR, label
from dpa3sim.sample.selection import choose
from dpa3sim.sample.settings import SampleSettings, by_kind, least_shares, temperatures
from dpa3sim.sample.trajectories import conditions, simulate
from dpa3sim.train.data.labels import WEIGHT

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.sample.selection import Describer

TEMPERATURE = "temperature_K"
"""The key of ``info`` with the temperature that a frame of dynamics belongs to."""
# The first training frames have seeds from the user's on, the others from these on.
_HELD_OUT_SEED = 1_000_000


def starts(structures: Sequence[Atoms], settings: SampleSettings) -> list[Atoms]:
    """The structures repeated as often as simulations have them; ``info["parent"]`` stays."""
    found = []
    for number, atoms in enumerate(structures):
        start = supercell(atoms, settings.min_atoms, settings.max_atoms)
        start.info[PARENT] = str(atoms.info.get(PARENT, f"structure {number}"))
        found.append(start)
    return found


def stages(structures: Sequence[Atoms], options: DistillOptions) -> list[Stage]:
    """What the teacher is going to evaluate.

    Raises:
        InputError: a structure that cannot move.
    """
    sample, own, found = options.sample, options.distill, []
    extended = starts(structures, sample)
    times = {"dynamics to train with": sample.md_time, "held-out dynamics": own.held_out_time}
    for start in extended:
        timestep = md.check(plain(start), md.Settings()).timestep
        atoms = [len(start)] * len(conditions(start, sample))
        for name, time in times.items():
            steps = int(time / timestep) + 1
            found.append(Stage(name, atoms, start, (steps, steps)))
    largest = max(extended, key=len)
    labels = sample.frames + own.own_frames * (own.rounds + len(temperatures(sample)))
    note = "frames of the teacher's own dynamics have labels already"
    return [*found, Stage("labels", [len(largest)] * labels, largest, (0, 1), note=note)]


def first_set(
    structures: Sequence[Atoms],
    teacher: BatchPotential,
    describer: Describer,
    options: DistillOptions,
    progress: Progress = silent,
) -> list[Atoms]:
    """Frames to train with, with the teacher's labels.

    Args:
        structures: as for :func:`dpa3sim.sample.generate`.
        teacher: makes and labels frames. describer: the same model, to choose between them.
        options: of the distillation. progress: receives events.

    Raises:
        InputError: a structure cannot be evaluated, or nothing can be made.
    """
    candidates = generate(structures, teacher, options.sample, progress=progress)
    shares = least_shares(options.sample)
    chosen = choose(candidates, describer, options.sample.frames, shares=shares, progress=progress)
    frames = with_labels([candidates[k] for k in chosen], teacher, progress)
    weights = by_kind("weights", options.distill.weights)
    for atoms in frames:
        if kind_of(atoms) in weights:
            atoms.info[WEIGHT] = weights[kind_of(atoms)]
    return frames


def held_out(
    structures: Sequence[Atoms],
    teacher: BatchPotential,
    options: DistillOptions,
    progress: Progress = silent,
) -> list[Atoms]:
    """Frames of other trajectories than those of :func:`first_set`, with the teacher's labels.

    Raises:
        InputError: no simulation gave a frame.
    """
    settings = in_time(options.sample, options.distill.held_out_time)
    skipped = options.distill.held_out_time / 3
    seed = settings.seed + _HELD_OUT_SEED
    found = dynamics(structures, teacher, settings, seed, skipped=skipped, progress=progress)
    for problem in found.problems:
        progress(Event(LEFT_OUT, f"held-out frames: {problem}"))
    if not found.frames:
        raise InputError(
            "no frames can be held out: the teacher's dynamics gave none; see the lines above"
        )
    return with_labels(found.frames, teacher, progress)


def with_labels(
    frames: Sequence[Atoms], teacher: BatchPotential, progress: Progress = silent
) -> list[Atoms]:
    """Copies of the frames with labels; those that the teacher cannot compute are left out."""
    found = []
    for atoms in label(frames, teacher, progress=progress):
        if ERROR in atoms.info:
            progress(Event(LEFT_OUT, f"{atoms.info[PARENT]}: {atoms.info[ERROR]}"))
        else:
            found.append(atoms)
    return found


def in_time(settings: SampleSettings, time: float) -> SampleSettings:
    """The settings with simulations of another length, fs, at most with as many frames."""
    interval = settings.md_interval * max(1.0, time / settings.md_time)
    return replace(settings, md_time=time, md_interval=min(interval, time))


@dataclass(frozen=True)
class Dynamics:
    """Frames of simulations, without labels.

    Attributes:
        frames: of all simulations; ``info`` has :data:`TEMPERATURE`.
        problems: why simulations ended early.
    """

    frames: list[Atoms]
    problems: list[str]

    def some(self, number: int) -> list[Atoms]:
        """At most so many frames, evenly spaced, the last one included."""
        count = min(number, len(self.frames))
        return [self.frames[(k + 1) * len(self.frames) // count - 1] for k in range(count)]


def dynamics(
    structures: Sequence[Atoms],
    potential: BatchPotential,
    settings: SampleSettings,
    seed: int,
    *,
    skipped: float = 0.0,
    wanted: Callable[[float], bool] = lambda temperature: True,
    progress: Progress = silent,
) -> Dynamics:
    """Simulate all structures under all conditions, each with random numbers of its own.

    Args:
        structures: what to simulate, not repeated yet. potential: the model.
        settings: conditions, length and interval. seed: of the first simulation.
        skipped: frames up to this time, fs, are left out.
        wanted: tells which temperatures, K, are simulated. progress: receives events.
    """
    found, number = Dynamics([], []), 0
    for start in starts(structures, settings):
        parent = str(start.info[PARENT])
        for condition in conditions(start, settings):
            number += 1
            if len(start) < 2 or not wanted(condition.temperature):
                continue
            what = f"{parent} at {condition}"

            def tell(event: Event, what: str = what) -> None:
                progress(Event("md", f"{what}: {event.message}", event.done, event.total))

            try:
                one = simulate(plain(start), potential, condition, settings, seed + number, tell)
            except (InputError, NonFiniteError) as error:
                found.problems.append(f"{what}: {error}")
                continue
            for frame, time in zip(one.frames, one.times, strict=True):
                if time > skipped:
                    marked(frame, "md", parent, f"{condition}, {time:g} fs")
                    frame.info[TEMPERATURE] = condition.temperature
                    found.frames.append(frame)
            if one.problem:
                found.problems.append(f"{what}: {one.problem}")
    return found
