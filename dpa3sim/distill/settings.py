"""Options of making a small fast model that imitates a large one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, replace_checked, validate
from dpa3sim.sample.settings import SampleSettings, by_kind, temperatures
from dpa3sim.train.options import Parts
from dpa3sim.train.schedule import ScheduleSettings
from dpa3sim.train.settings import (
    ArchitectureSettings,
    LossSettings,
    OptimizerSettings,
    TrainSettings,
)

# What differs between the sizes; other options are those of StudentSettings.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"nlayers": 2, "n_dim": 32, "e_dim": 16, "a_dim": 8, "neuron": "64 64"},
    "small": {"nlayers": 2, "n_dim": 64, "e_dim": 32, "a_dim": 16, "neuron": "64 64"},
    "medium": {"nlayers": 3, "n_dim": 96, "e_dim": 48, "a_dim": 24, "neuron": "128 128"},
}


@dataclass(frozen=True)
class DistillSettings:
    """How good the student must become, and how it gets there."""

    size: str = option(
        "small",
        "of the student: sets nlayers, n_dim, e_dim, a_dim and neuron, each of which can be given",
        choices=tuple(SIZES),
    )
    target: float = option(
        40.0,
        "RMSE of forces on held-out frames at which the student is good enough, at the "
        "temperature where it is largest",
        unit="meV/Å",
        minimum=0.0,
    )
    rounds: int = option(
        2,
        "rounds of improvement at most: dynamics of the student at the highest temperature, whose "
        "frames the teacher labels, and another training",
        minimum=1,
    )
    round_steps: int = option(3000, "steps of training in each round", minimum=1)
    own_time: float = option(
        1000.0,
        "length of the student's own dynamics, in each round and at the end",
        unit="fs",
        minimum=1.0,
    )
    own_frames: int = option(
        30,
        "frames of it that the teacher labels, evenly spaced; in a round, for all structures and "
        "pressures together, and at the end for each temperature",
        minimum=1,
    )
    held_out_time: float = option(
        300.0,
        "length of the teacher's dynamics that only measure; the first third is left out",
        unit="fs",
        minimum=1.0,
    )
    check_atoms: int = option(
        64, "the speed is measured for a supercell of at least so many atoms", minimum=1
    )
    weights: str = option(
        "dimers=0.1",
        "weights of kinds of frames in the loss, KIND=WEIGHT, all for the others; can be repeated",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        validate(self)
        by_kind("weights", self.weights)


@dataclass(frozen=True)
class DistillSampleSettings(SampleSettings):
    """What the teacher shows: mostly its own dynamics at the temperatures and pressures."""

    kinds: str = option(
        "start rattled strained volumes md dimers", "kinds of frames: all, or some of those"
    )
    shares: str = option(
        "md=60", "least shares of kinds in percent, KIND=PERCENT; can be repeated", repeatable=True
    )
    min_atoms: int = option(32, "periodic structures are repeated to at least so many", minimum=1)
    rattle: str = option("0.03 0.06 0.12", "standard deviations of displacements", unit="Å")
    rattle_count: int = option(6, "rattled candidates of each amplitude", minimum=0)
    strain: float = option(
        4.0, "largest component of random symmetric strains", unit="%", minimum=0.0
    )
    compression: float = option(
        10.0, "how much the smallest volume is smaller", unit="%", minimum=0.0
    )
    expansion: float = option(15.0, "how much the largest volume is larger", unit="%", minimum=0.0)
    temperatures: str = option(
        "300 600", "temperatures of which the student must be capable", unit="K"
    )
    pressures: str = option(
        "0", "its pressures, of crystals and liquids; '' keeps the volume", unit="GPa"
    )
    md_time: float = option(300.0, "length of each simulation of the teacher", unit="fs", minimum=1)
    md_interval: float = option(10.0, "time between its frames", unit="fs", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not temperatures(self):
            raise InputError("option temperatures = '' must name at least one temperature")


@dataclass(frozen=True)
class StudentSettings(ArchitectureSettings):
    """The student: few layers, narrow, with short cutoffs; the defaults are the size small."""

    nlayers: int = option(2, "number of layers", minimum=1)
    n_dim: int = option(64, "width of node features", minimum=1)
    e_dim: int = option(32, "width of edge features", minimum=1)
    a_dim: int = option(16, "width of angle features", minimum=1)
    e_rcut: float = option(5.0, "cutoff of edges", unit="Å", minimum=0)
    e_rcut_smth: float = option(4.0, "where the switch of edges begins", unit="Å", minimum=0)
    e_sel: str = option("auto:1.0", "edges of an atom, by which sums are divided")
    a_rcut: float = option(3.5, "cutoff of angles", unit="Å", minimum=0)
    a_rcut_smth: float = option(2.5, "where the switch of angles begins", unit="Å", minimum=0)
    a_sel: str = option("auto:1.0", "the same for the edges of angles")
    neuron: str = option("64 64", "widths of the fitting net's layers")


@dataclass(frozen=True)
class StudentTrainSettings(TrainSettings):
    """Options of the trainings; ``steps`` are those of the first one."""

    steps: int = option(10000, "number of steps of the first training", minimum=1)
    ema_decay: float | None = option(
        0.99, "train exponential averages of the weights too, with this decay", minimum=0
    )
    validate_every: int = option(200, "steps between validations of all held-out frames", minimum=1)
    report_every: int = option(100, "steps between rows of the learning curve", minimum=1)
    save_every: int = option(200, "steps between saved states", minimum=1)
    max_hours: float | None = option(
        None, "stop training in time; the same command continues", unit="h", minimum=0
    )


@dataclass(frozen=True)
class StudentScheduleSettings(ScheduleSettings):
    """Options of the learning rate; later trainings start at half of it."""

    schedule: str = option(
        "cosine",
        "how the learning rate falls: exp, a cosine, or constant with a decay at the end (wsd)",
        choices=("exp", "cosine", "wsd"),
    )
    learning_rate: float = option(5e-3, "learning rate after the warm-up")
    stop_learning_rate: float = option(1e-5, "learning rate at the end", minimum=0)


@dataclass(frozen=True)
class StudentLossSettings(LossSettings):
    """Options of the loss; frames of different sizes count alike."""

    loss: str = option(
        "huber",
        "mean of squares, of Huber's function, or of absolute values of the errors",
        choices=("mse", "huber", "mae"),
    )


@dataclass(frozen=True)
class DistillOptions(Parts):
    """All options of a distillation, beside those of the teacher."""

    distill: DistillSettings = field(default_factory=DistillSettings)
    sample: DistillSampleSettings = field(default_factory=DistillSampleSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    train: StudentTrainSettings = field(default_factory=StudentTrainSettings)
    schedule: StudentScheduleSettings = field(default_factory=StudentScheduleSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: StudentLossSettings = field(default_factory=StudentLossSettings)


def of_size(size: str) -> StudentSettings:
    """The student of a size."""
    found: StudentSettings = replace_checked(StudentSettings(), SIZES[size])
    return found
