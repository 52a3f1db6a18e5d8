"""All options of a training together; importing this needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
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


class Parts:
    """A dataclass whose fields are groups of options, each with its class as the default."""

    @classmethod
    def classes(cls) -> list[Any]:
        """The classes of the options, in this order."""
        return [part.default_factory for part in fields(cls)]  # type: ignore[arg-type]

    def values(self) -> dict[str, Any]:
        """All options by name, for ``config.resolved.yaml``."""
        return {k: v for part in vars(self).values() for k, v in asdict(part).items()}


@dataclass(frozen=True)
class Options(Parts):
    """All options of a training that is described in our own terms."""

    sources: SourceSettings = field(default_factory=SourceSettings)
    data: DataSettings = field(default_factory=DataSettings)
    architecture: ArchitectureSettings = field(default_factory=ArchitectureSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)


@dataclass(frozen=True)
class FinetuneOptions(Parts):
    """All options of a fine-tuning."""

    sources: SourceSettings = field(default_factory=SourceSettings)
    data: DataSettings = field(default_factory=DataSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    train: FinetuneTrainSettings = field(default_factory=FinetuneTrainSettings)
    schedule: FinetuneScheduleSettings = field(default_factory=FinetuneScheduleSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: FinetuneLossSettings = field(default_factory=FinetuneLossSettings)
