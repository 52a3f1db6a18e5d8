"""Options of uncertainties; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, validate


@dataclass(frozen=True)
class FitSettings:
    """How an uncertainty is fitted."""

    labels: bool = option(
        True, "whether the files have labels; without, structures of any format are read"
    )
    validation: str = option(
        "",
        "frames with energies that calibrate the uncertainty; without them, the frames themselves "
        "do; can be repeated",
        repeatable=True,
    )
    calibration: str = option(
        "absolute",
        "the scale is fitted to absolute errors, to their squares, or by the continuous ranked "
        "probability score",
        choices=("absolute", "squared", "crps"),
    )
    members: int = option(
        16,
        "models by which uncertainties of forces are estimated, for their own scale; 0 leaves it "
        "out",
        minimum=0,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.validation and not self.labels:
            raise InputError("option validation has an effect only with labels")
        if self.members == 1:
            raise InputError("option members = 1 must be 0, or at least 2, which are compared")


@dataclass(frozen=True)
class ScoreSettings:
    """What structures are judged by."""

    committee: str = option(
        "",
        "further models; the scatter of all of them is written to model_devi.out; can be repeated",
        repeatable=True,
    )
    forces: int = option(
        0, "members of a committee made from the uncertainty, for that of the forces", minimum=0
    )
    labels: bool = option(
        False, "the files are labelled like training data; compare true errors with the expected"
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.forces == 1:
            raise InputError("option forces = 1 must be 0, or at least 2, which are compared")


@dataclass(frozen=True)
class SelectSettings:
    """Which structures are chosen."""

    number: int = option(50, "how many structures to choose", minimum=1)

    def __post_init__(self) -> None:
        validate(self)
