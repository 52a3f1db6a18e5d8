"""What a training does: the model, its tasks with their frames, and all options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dpa3sim.graph.edges import EdgeRules, Truncation
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.inputs import edge_rules
from dpa3sim.model.weights import Weights
from dpa3sim.train.data.frames import Frames
from dpa3sim.train.sampling import BatchRule, BySystem, Group, Sampler
from dpa3sim.train.schedule import ScheduleSettings
from dpa3sim.train.settings import LossSettings, OptimizerSettings, Shift, TrainSettings


@dataclass(frozen=True)
class Task:
    """What one head of a model learns.

    Attributes:
        name: :data:`SINGLE` for a model without heads.
        training: the frames.
        validation: None if there are none.
        loss: its loss.
        batch: how many frames make a batch, for each group if several.
        systems: the frames of each system, where ``by_system`` draws systems.
        by_system: how systems are drawn; None draws frames.
        main: whether its models are written, and its validation decides which one is the best;
            other tasks only keep a model from forgetting.
    """

    name: str
    training: Frames
    validation: Frames | None
    loss: LossSettings
    batch: BatchRule | Sequence[BatchRule]
    systems: Sequence[np.ndarray] | None = None
    by_system: BySystem | None = None
    main: bool = True

    @property
    def groups(self) -> list[Group]:
        """The frames as the sampler takes them."""
        sizes = self.training.sizes
        systems = self.systems or [np.arange(len(sizes))]
        return [Group(frames, sizes[frames]) for frames in systems]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training.

    Attributes:
        config: the model, its case vector included.
        tasks: what is learnt.
        train, schedule, optimizer: the options.
        initial: options of :func:`dpa3sim.model.initial.initial_weights` beside the seed.
        start: weights to start from by task, instead of random ones and fitted biases.
        origin: what these weights are, for people and to tell trainings apart.
        shift: how the energies of a main task are fitted to its labels before such a start.
        low_rank: train changes of this rank instead of whole matrices, with this scale.
        truncate: which neighbours count, as in :class:`dpa3sim.Potential`.
        appraise: compare the result with ``start``, and check it beyond the data.
        frozen: beginnings of names of weights that are not trained, such as ``descriptor.``.
        fixed_bias: energies of elements, eV, that are not fitted, by task and symbol.
        device: where to compute.
    """

    config: ModelConfig
    tasks: tuple[Task, ...]
    train: TrainSettings
    schedule: ScheduleSettings
    optimizer: OptimizerSettings
    initial: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Weights] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    shift: Shift = "none"
    low_rank: tuple[int, float] | None = None
    truncate: Truncation = "deepmd"
    appraise: bool = False
    frozen: tuple[str, ...] = ()
    fixed_bias: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> list[Task]:
        """The tasks whose models are written."""
        return [task for task in self.tasks if task.main]

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [task.name for task in self.tasks]

    def samplers(self, rank: int = 0, ranks: int = 1) -> dict[str, Sampler]:
        """What draws the batches of each task, for one of several processes."""
        return {
            task.name: Sampler(
                task.groups,
                task.batch,
                self.train.seed,
                name=task.name,
                rank=rank,
                ranks=ranks,
                by_system=task.by_system,
            )
            for task in self.tasks
        }

    def steps(self, samplers: Mapping[str, Sampler]) -> int:
        """How many steps there are to do, with the epochs of these samplers."""
        if self.train.epochs is None:
            return self.train.steps
        longest = max(sampler.epoch for sampler in samplers.values())
        return max(1, math.ceil(self.train.epochs * longest))

    @property
    def rules(self) -> EdgeRules:
        """Which neighbours are edges."""
        return edge_rules(self.config, self.truncate)
