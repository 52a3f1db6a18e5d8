"""From labelled structures and a trained model to a recipe that trains it further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dpa3sim.checkpoints.model_file import ModelFile
from dpa3sim.checkpoints.registry import load_model
from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import FITTING_LAYERS, REPFLOWS, weight_shapes
from dpa3sim.potential import Potential
from dpa3sim.potential.potential import resolve_device
from dpa3sim.train.data.frames import Frames, Rejected
from dpa3sim.train.data.reading import read_frames
from dpa3sim.train.data.statistics import elements
from dpa3sim.train.options import FinetuneOptions
from dpa3sim.train.prepare import Prepared, split
from dpa3sim.train.pretrained import with_case, with_elements
from dpa3sim.train.recipe import Recipe, Task
from dpa3sim.train.replay import labelled, replayed
from dpa3sim.train.sampling import BatchRule
from dpa3sim.train.settings import (
    SINGLE,
    FinetuneSettings,
    SourceSettings,
)

REPLAY = "replay"
"""The name of the task of structures that must not be forgotten."""
AUTO = "auto"
# The share of the replayed structures that measure what is forgotten; and of them at least so many.
_HELD_OUT, _FEWEST_HELD_OUT = 0.2, 4
_LAYER = f"{REPFLOWS}.layers"


def from_model(options: FinetuneOptions) -> Prepared:
    """Read the model and the frames, and make a recipe.

    Raises:
        InputError: no data, bad data, or options that contradict each other.
    """
    own, train = options.finetune, options.train
    model = _model(own)
    training, validation, rejected = _frames(options)
    found = {x for frames in (training, validation) for x in elements(frames)}
    symbols = sorted(found, key=SYMBOLS.index)
    config, weights = with_elements(model.config, model.weights, symbols, train.seed)
    start = {SINGLE: weights}
    batch = BatchRule.parse(train.batch_size)
    tasks = [Task(SINGLE, training, validation, options.loss, batch)]
    if own.replay:
        device = resolve_device(train.device)
        kept, measured = _split_replay(_replay(options, model, device), train.seed)
        if own.replay_weight:
            config, weights, start[SINGLE] = with_case(config, weights)
        start[REPLAY] = weights
        # One large frame of the data is worth many small crystals, whose gradients differ much.
        alike = batch.by_atoms(training.sizes)
        tasks.append(Task(REPLAY, kept, measured, options.loss, alike, main=False))
        train = replace(train, task_weights=f"{SINGLE}=1 {REPLAY}={own.replay_weight!r}")
    schedule = options.schedule
    if (
        schedule.warmup_steps == type(schedule).warmup_steps
        and schedule.warmup_steps >= train.steps
    ):
        schedule = replace(schedule, warmup_steps=train.steps // 5)
    recipe = Recipe(
        config=config,
        tasks=tuple(tasks),
        train=train,
        schedule=schedule,
        optimizer=options.optimizer,
        start=start,
        origin=_origin(own, model),
        shift=own.shift,
        frozen=_frozen(own, config),
        low_rank=_low_rank(own),
        device=resolve_device(train.device),
        truncate=model.truncate,
        appraise=own.checks,
    )
    return Prepared(recipe, tuple(rejected))


def _model(own: FinetuneSettings) -> ModelFile:
    model = load_model(own.model, own.head)
    if own.smooth_cutoff is not None:
        model = model.smoothed(own.smooth_cutoff)
    truncate: Any = own.truncate
    return model if truncate == "auto" else replace(model, truncate=truncate, covariance=None)


def _frames(options: FinetuneOptions) -> tuple[Frames, Frames, list[Rejected]]:
    """Training and validation frames, and the bad ones."""
    given = options.sources.by_task("data"), options.sources.by_task("validation")
    for files in given:
        if files and set(files) != {SINGLE}:
            raise InputError("finetune makes one model of all data: leave out TASK=")
    if not given[0]:
        raise InputError("no training data: name files or folders with labelled structures")
    training, rejected = read_frames(given[0][SINGLE], options.data)
    if given[1]:
        validation, more = read_frames(given[1][SINGLE], options.data)
        return training, validation, [*rejected, *more]
    training, validation = split(training, options.train.validation_share, options.train.seed)
    return training, validation, list(rejected)


def _replay(options: FinetuneOptions, model: ModelFile, device: Any) -> Frames:
    """The structures that must not be forgotten, with labels by the model as it was."""
    own = options.finetune
    potential = Potential(model, device=device)
    files = SourceSettings(data=own.replay).by_task("data").get(SINGLE, [])
    if files == [AUTO]:
        return replayed(potential, own.replay_count, options.train.seed)
    return labelled(potential, files)


def _split_replay(frames: Frames, seed: int) -> tuple[Frames, Frames]:
    """Replayed structures to train with, and to measure what is forgotten."""
    number = max(round(_HELD_OUT * len(frames)), _FEWEST_HELD_OUT)
    if len(frames) <= number:
        raise InputError(
            f"option replay: {len(frames)} structures are too few, {_FEWEST_HELD_OUT} of them only "
            "measure what is forgotten"
        )
    order = np.random.default_rng(seed).permutation(len(frames))
    return frames.select(np.sort(order[number:])), frames.select(np.sort(order[:number]))


def _frozen(own: FinetuneSettings, config: ModelConfig) -> tuple[str, ...]:
    """Beginnings of the names of weights that are not trained."""
    if own.trainable == "fitting":
        return ("descriptor.",)
    if own.trainable != "last":
        return ()
    layers = config.descriptor.nlayers
    if own.last_layers > layers:
        raise InputError(f"option last_layers = {own.last_layers}: the model has {layers} layers")
    kept = tuple(f"{_LAYER}.{k}." for k in range(layers - own.last_layers, layers))
    names = weight_shapes(config)
    return tuple(x for x in names if not x.startswith((*kept, FITTING_LAYERS)))


def _low_rank(own: FinetuneSettings) -> tuple[int, float] | None:
    if own.trainable != "lora":
        return None
    return own.lora_rank, float(own.lora_rank if own.lora_alpha is None else own.lora_alpha)


def _origin(own: FinetuneSettings, model: ModelFile) -> dict[str, str]:
    """What the training starts from, and how."""
    facts = {"model": model.name, "sha256": model.sha256, "head": model.head or ""}
    chosen = ("smooth_cutoff", "truncate", "trainable", "last_layers", "lora_rank", "lora_alpha")
    more = ("shift", "replay", "replay_count", "replay_weight")
    return facts | {name: str(getattr(own, name)) for name in (*chosen, *more)}
