"""What every check of a model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dpa3sim.protocols.base import Progress, Stage

if TYPE_CHECKING:
    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.validate.settings import ValidateSettings


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        values: JSON-ready; every key with a dimension ends in its unit.
        warnings: what is wrong with the model.
        problems: what could not be computed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Check(Protocol):
    """A module that checks one thing of a model."""

    def stages(
        self, elements: Sequence[str], settings: ValidateSettings, cutoff: float
    ) -> list[Stage]:
        """What :meth:`run` is going to evaluate with a model of these elements and cutoff, Å."""

    def run(
        self, potential: BatchPotential, settings: ValidateSettings, progress: Progress
    ) -> Findings:
        """Check a model."""
