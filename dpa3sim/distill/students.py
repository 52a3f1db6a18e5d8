"""The trainings of a student: from random weights, and further with more frames."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpa3sim.checkpoints.model_file import ModelFile
from dpa3sim.common.errors import InputError
from dpa3sim.distill.settings import DistillOptions
from dpa3sim.potential.interface import PotentialLike, dispersion_of
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.train.options import Options
from dpa3sim.train.prepare import Prepared, from_options
from dpa3sim.train.settings import SINGLE, SourceSettings

# Trainings after the first one start from trained weights: with this share of the learning rate.
_LATER = 0.5


def recipe_of(
    files: Sequence[Path],
    held_out: Path,
    options: DistillOptions,
    teacher: PotentialLike,
    before: ModelFile | None = None,
) -> Prepared:
    """A training of the student.

    Args:
        files: training frames with the teacher's labels. held_out: those to validate with.
        options: of the distillation. teacher: whose labels they are, for people.
        before: the student of the training before, with which this one begins.

    Raises:
        InputError: options that contradict each other, or an element that ``type_map`` lacks.
    """
    train, schedule = options.train, options.schedule
    if before is not None:
        train = replace(train, steps=options.distill.round_steps)
        rate = max(_LATER * schedule.learning_rate, schedule.stop_learning_rate)
        schedule = replace(schedule, learning_rate=rate)
    if schedule.warmup_steps >= train.steps:
        raise InputError(
            f"option warmup_steps = {schedule.warmup_steps} must be below {train.steps} steps"
        )
    prepared = from_options(
        Options(
            sources=SourceSettings(
                data=shlex.join(map(str, files)), validation=shlex.join([str(held_out)])
            ),
            # Dimers and compressed cells are far from any fit.
            data=DataSettings(outlier_sigma=0.0, skip_bad=True),
            architecture=options.student,
            train=train,
            schedule=schedule,
            optimizer=options.optimizer,
            loss=options.loss,
        )
    )
    recipe = replace(
        prepared.recipe,
        truncate="none",
        origin=_origin(teacher),
    )
    if before is not None:
        recipe = replace(recipe, config=before.config, start={SINGLE: before.weights})
    return replace(prepared, recipe=recipe)


def _origin(teacher: PotentialLike) -> dict[str, str]:
    """What a student says of its teacher; with the dispersion that it learns from it."""
    model, added = teacher.model, dispersion_of(teacher)
    origin = {"teacher": model.name, "teacher_sha256": model.sha256}
    return origin if added is None else origin | {"dispersion": str(added)}
