"""From files and options to a recipe: our own options, or an input of deepmd-kit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import replace_checked
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.inputs import with_inputs
from dpa3sim.potential.potential import resolve_device
from dpa3sim.train.data.frames import Frames, Rejected
from dpa3sim.train.data.reading import read_frames
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.train.data.statistics import elements
from dpa3sim.train.deepmd_input import DataOptions, DeepmdInput, SystemSet, read_deepmd_input
from dpa3sim.train.options import Options
from dpa3sim.train.recipe import Recipe, Task
from dpa3sim.train.sampling import BatchRule, BySystem
from dpa3sim.train.schedule import ScheduleSettings
from dpa3sim.train.settings import (
    LossSettings,
    OptimizerSettings,
    TrainSettings,
)
from dpa3sim.train.statistics import maximum_counts, resolve_selection


@dataclass(frozen=True)
class Prepared:
    """A recipe, and what its user must know.

    Attributes:
        recipe: what to do.
        rejected: bad frames that were left out.
        ignored: options of an input of deepmd-kit that change nothing here, with reasons.
    """

    recipe: Recipe
    rejected: tuple[Rejected, ...]
    ignored: tuple[str, ...] = ()


def from_options(options: Options) -> Prepared:
    """Read the frames and make a recipe.

    Raises:
        InputError: no data, bad data, or options that contradict each other.
    """
    train, sources = options.train, options.sources
    training, validation = sources.by_task("data"), sources.by_task("validation")
    if not training:
        raise InputError("no training data: name files or folders with labelled structures")
    if unknown := sorted(set(validation) - set(training)):
        raise InputError(f"option validation has a task {unknown[0]!r} that data does not have")
    if unknown := sorted(set(train.weights_of_tasks() or training) ^ set(training)):
        raise InputError(
            f"option task_weights and data must have the same tasks; they differ in {unknown[0]}"
        )
    rejected: list[Rejected] = []

    def read(files: Sequence[str]) -> Frames:
        type_map = options.architecture.given_types
        frames, bad = read_frames(files, options.data, type_map)
        rejected.extend(bad)
        return frames

    pairs = {}
    for name, files in training.items():
        frames = read(files)
        if name in validation:
            pairs[name] = frames, read(validation[name])
        else:
            pairs[name] = split(frames, train.validation_share, train.seed)
    encoding = len(pairs) if len(pairs) > 1 and not train.separate_fitting else 0
    known = {symbol for pair in pairs.values() for x in pair for symbol in elements(x)}
    config = options.architecture.config(sorted(known, key=SYMBOLS.index), encoding)
    config = _with_selection(config, options.architecture.selection, [x for x, _ in pairs.values()])
    batch = BatchRule.parse(train.batch_size)
    tasks = tuple(
        Task(name, frames, held_out, options.loss, batch)
        for name, (frames, held_out) in pairs.items()
    )
    names = ("update_residual", "update_residual_init", "fix_stat_std")
    recipe = Recipe(
        config=config,
        tasks=tasks,
        train=train,
        schedule=options.schedule,
        optimizer=options.optimizer,
        initial={name: getattr(options.architecture, name) for name in names},
        device=resolve_device(train.device),
    )
    return Prepared(recipe, tuple(rejected))


def from_deepmd(path: Path, data: DataSettings, given: Mapping[str, Any]) -> Prepared:
    """Read an ``input.json`` of deepmd-kit and its data, and make a recipe.

    Args:
        path: the file. data: how frames are checked.
        given: options of a run, such as ``steps``, that replace those of the file.

    Raises:
        InputError: the file has an option that cannot be honoured, or data are bad.
    """
    found = read_deepmd_input(path)
    if found.finetune_heads:
        raise InputError(f"{path}: finetune_head is for fine-tuning, not for a new model")
    options = found.training
    config = next(iter(found.models.values()))
    train = _settings(TrainSettings, _train_options(options, found), given)
    schedule = _settings(ScheduleSettings, options, given)
    beta1, beta2 = options["betas"]
    optimizer = _settings(OptimizerSettings, {**options, "beta1": beta1, "beta2": beta2}, given)
    rejected: list[Rejected] = []
    tasks = []
    for name, sources in found.data.items():
        own = options | found.overrides[name]
        loss = _settings(LossSettings, own, given)
        task, bad = _deepmd_task(name, sources, loss, data, config)
        if "batch_size" in given:
            task = replace(task, batch=BatchRule.parse(train.batch_size))
        tasks.append(task)
        rejected += bad
    config = _with_selection(config, found.selection, [task.training for task in tasks])
    recipe = Recipe(
        config=config,
        tasks=tuple(tasks),
        train=train,
        schedule=schedule,
        optimizer=optimizer,
        initial=found.initial,
        frozen=tuple(f"{part}." for part in found.frozen),
        fixed_bias={
            name: _fixed_bias(config, (options | found.overrides[name])["preset_out_bias"])
            for name in found.models
        },
        device=resolve_device(train.device),
    )
    return Prepared(recipe, tuple(rejected), found.ignored)


def split(frames: Frames, share: float, seed: int) -> tuple[Frames, Frames]:
    """Training and held-out frames."""
    number = round(share * len(frames))
    if share and not number and len(frames) > 1:
        number = 1
    order = np.random.default_rng(seed).permutation(len(frames))
    return frames.select(np.sort(order[number:])), frames.select(np.sort(order[:number]))


def _with_selection(
    config: ModelConfig, selection: Mapping[str, str], frames: Sequence[Frames]
) -> ModelConfig:
    """The configuration with the selection limits that are to be found from data."""
    if not selection:
        return config
    systems = (with_inputs(frame.system, config) for part in frames for frame in part)
    return resolve_selection(config, selection, maximum_counts(config, systems))


def _settings(cls: Callable[[], Any], values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Options of a class from values of which some belong to other classes."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    mine = {name: x for name, x in (dict(values) | dict(given)).items() if name in names}
    return replace_checked(cls(), mine)


def _train_options(options: Mapping[str, Any], found: DeepmdInput) -> dict[str, Any]:
    """Options of the run by our names."""
    fitting = next(iter(found.models.values())).fitting
    weights = options["model_prob"]
    translated = {
        "steps": options["steps"],
        "epochs": options.get("epochs"),
        "seed": options["seed"],
        "gradient_max_norm": options["gradient_max_norm"],
        "ema_decay": options["ema_decay"],
        "report_every": options["report_every"],
        "validate_every": options["report_every"],
        "save_every": options["save_every"],
        "energy_bias": "labels",
        "separate_fitting": len(found.models) > 1 and not fitting.dim_case_embd,
        "task_weights": " ".join(f"{k}={v!r}" for k, v in weights.items()) if weights else "",
    }
    # No limit of gradients is a value; other options that the file lacks keep our defaults.
    return {k: v for k, v in translated.items() if v is not None or k == "gradient_max_norm"}


def _deepmd_task(
    name: str, sources: DataOptions, loss: LossSettings, data: DataSettings, config: ModelConfig
) -> tuple[Task, list[Rejected]]:
    """A task with deepmd-kit's way of drawing batches."""
    parts, sizes = [], []
    rejected: list[Rejected] = []
    training = sources.training
    for system in training.systems:
        frames, bad = read_frames([system], data, config.type_map)
        parts.append(frames)
        sizes.append(len(frames))
        rejected += bad
    validation = None
    if sources.validation is not None:
        validation, bad = read_frames(sources.validation.systems, data, config.type_map)
        rejected += bad
    ends = np.cumsum(sizes)
    task = Task(
        name=name,
        training=Frames.join(parts),
        validation=validation,
        loss=loss,
        batch=_rules(training),
        systems=[np.arange(end - n, end) for end, n in zip(ends, sizes, strict=True)],
        by_system=BySystem(training.auto_prob, training.sys_probs),
    )
    return task, rejected


def _rules(training: SystemSet) -> BatchRule | list[BatchRule]:
    size = training.batch_size
    if isinstance(size, tuple):
        return [BatchRule.parse(number) for number in size]
    return BatchRule.parse(size)


def _fixed_bias(config: ModelConfig, preset: Sequence[float | None] | None) -> dict[str, float]:
    pairs = zip(config.type_map, preset or (), strict=False)
    return {symbol: value for symbol, value in pairs if value is not None}
