"""What a simulation sees of the novelty of its atoms."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpa3sim.potential.evaluation import Evaluation


@dataclass
class Watch:
    """The largest novelty of an atom, step after step; None for a model without an uncertainty.

    Attributes:
        initial, last: of the first and of the last step seen.
        largest: of all steps; step, atom: where it was.
        kept: how many frames were kept for it.
    """

    initial: float | None = None
    last: float | None = None
    largest: float = 0.0
    step: int = 0
    atom: int = 0
    kept: int = 0

    def see(self, step: int, evaluation: Evaluation) -> None:
        """Note the evaluation of a step."""
        if evaluation.uncertainty is None:
            return
        self.last = evaluation.uncertainty.novelty
        if self.initial is None:
            self.initial = self.last
        if self.last > self.largest:
            self.largest, self.step = self.last, step
            self.atom = int(evaluation.uncertainty.novelties.argmax())

    def exceeds(self, limit: float | None) -> bool:
        """Whether the last novelty exceeds a limit, if there is one."""
        return limit is not None and self.last is not None and self.last > limit

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
