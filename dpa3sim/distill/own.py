"""The student's own dynamics: where it errs there, and whether it keeps the energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import Dpa3simError
from dpa3sim.distill.errors import Errors
from dpa3sim.distill.frames import dynamics, in_time, starts, with_labels
from dpa3sim.distill.settings import DistillOptions
from dpa3sim.protocols import md
from dpa3sim.protocols.base import Event, Progress, silent
from dpa3sim.sample.frames import plain
from dpa3sim.sample.settings import temperatures
from dpa3sim.sample.trajectories import start_temperature

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

# Seeds of the dynamics of the rounds, of the check, and between temperatures of the check.
_ROUND_SEED, _CHECK_SEED, _NEXT_SEED = 2_000_000, 3_000_000, 1000
# A frame of a round is added if its error is above this share of the target.
_LARGE = 0.5


@dataclass(frozen=True)
class Excursion:
    """Some frames of the student's dynamics, and how far it is from its teacher there.

    Attributes:
        frames: with the teacher's labels.
        errors: of them; None if there are none.
        problems: why simulations ended early.
    """

    frames: list[Atoms]
    errors: Errors | None
    problems: list[str]

    def large(self, target: float) -> list[Atoms]:
        """The frames with a force error above half of a target, meV/Å."""
        if self.errors is None:
            return []
        above = np.flatnonzero(1e3 * self.errors.of_frames > _LARGE * target)
        return [self.frames[k] for k in above]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The errors at each temperature, JSON-ready."""
        return [] if self.errors is None else self.errors.rows()


def hottest(
    structures: Sequence[Atoms],
    student: BatchPotential,
    teacher: BatchPotential,
    options: DistillOptions,
    number: int,
    progress: Progress = silent,
) -> Excursion:
    """Dynamics of all structures at the highest temperature, for a round of improvement.

    Args:
        structures: of the system or chemistry. student, teacher: the models.
        options: of the distillation. number: of the round. progress: receives events.
    """
    highest = [max(temperatures(options.sample))]
    seed = options.sample.seed + _ROUND_SEED + number * _NEXT_SEED
    return _excursion(structures, student, teacher, options, seed, highest, progress)


def everywhere(
    structures: Sequence[Atoms],
    student: BatchPotential,
    teacher: BatchPotential,
    options: DistillOptions,
    progress: Progress = silent,
) -> Excursion:
    """Dynamics of all structures at every temperature, for the check; see :func:`hottest`."""
    parts = []
    for number, temperature in enumerate(temperatures(options.sample)):
        seed = options.sample.seed + _CHECK_SEED + number * _NEXT_SEED
        parts.append(
            _excursion(structures, student, teacher, options, seed, [temperature], progress)
        )
    frames = [atoms for part in parts for atoms in part.frames]
    errors = Errors.of(frames, student) if frames else None
    return Excursion(frames, errors, [x for part in parts for x in part.problems])


def _excursion(
    structures: Sequence[Atoms],
    student: BatchPotential,
    teacher: BatchPotential,
    options: DistillOptions,
    seed: int,
    wanted: Sequence[float],
    progress: Progress,
) -> Excursion:
    settings = in_time(options.sample, options.distill.own_time)
    found = dynamics(
        structures, student, settings, seed, wanted=lambda t: t in wanted, progress=progress
    )
    frames = with_labels(found.some(options.distill.own_frames), teacher, progress)
    return Excursion(frames, Errors.of(frames, student) if frames else None, found.problems)


def drift(
    structures: Sequence[Atoms],
    student: BatchPotential,
    options: DistillOptions,
    progress: Progress = silent,
) -> dict[str, Any]:
    """How well the energy is kept without a thermostat, or why that is unknown; JSON-ready.

    The first structure that can move is simulated at about the highest temperature.
    """
    start = next((x for x in starts(structures, options.sample) if len(x) > 1), None)
    if start is None:
        return {"error": "no structure has two atoms"}
    atoms, highest = plain(start), max(temperatures(options.sample))
    timestep = md.check(atoms, md.Settings()).timestep
    steps = max(10, round(options.distill.own_time / timestep))
    seed = options.sample.seed + _CHECK_SEED

    def tell(event: Event) -> None:
        progress(Event("md", f"without a thermostat: {event.message}", event.done, event.total))

    try:
        first = start_temperature(atoms, student, highest)
        settings = md.Settings(ensemble="nve", temperature=first, steps=steps, seed=seed)
        result = md.run(atoms, student, settings, progress=tell)
    except Dpa3simError as error:
        return {"error": str(error)}
    value, uncertainty = result.drift or (None, None)
    return {
        "n_atoms": len(atoms),
        "initial_temperature_K": first,
        "simulated_ps": steps * timestep / 1000,
        "drift_meV_per_atom_per_ps": value,
        "drift_error_meV_per_atom_per_ps": uncertainty,
    }
