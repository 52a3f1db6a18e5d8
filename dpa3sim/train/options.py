"""All options of a training together; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpa3sim.train.data.settings import DataSettings
from dpa3sim.train.schedule import ScheduleSettings
from dpa3sim.train.settings import (
    ArchitectureSettings,
    FinetuneLossSettings,
    FinetuneScheduleSettings,
    FinetuneSettings,
    FinetuneTrainSettings,
    LossSettings,
    OptimizerSettings,
    SourceSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class Options:
    """All options of a training that is described in our own terms."""

    sources: SourceSettings = field(default_factory=SourceSettings)
    data: DataSettings = field(default_factory=DataSettings)
    architecture: ArchitectureSettings = field(default_factory=ArchitectureSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)

    @classmethod
    def classes(cls) -> list[Any]:
        """The classes of the options, in this order."""
        return [
            SourceSettings,
            DataSettings,
            ArchitectureSettings,
            TrainSettings,
            ScheduleSettings,
            OptimizerSettings,
            LossSettings,
        ]


@dataclass(frozen=True)
class FinetuneOptions:
    """All options of a fine-tuning."""

    sources: SourceSettings = field(default_factory=SourceSettings)
    data: DataSettings = field(default_factory=DataSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    train: FinetuneTrainSettings = field(default_factory=FinetuneTrainSettings)
    schedule: FinetuneScheduleSettings = field(default_factory=FinetuneScheduleSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: FinetuneLossSettings = field(default_factory=FinetuneLossSettings)

    @classmethod
    def classes(cls) -> list[Any]:
        """The classes of the options, in this order."""
        return [
            SourceSettings,
            DataSettings,
            FinetuneSettings,
            FinetuneTrainSettings,
            FinetuneScheduleSettings,
            OptimizerSettings,
            FinetuneLossSettings,
        ]
