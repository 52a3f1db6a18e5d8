"""The learning rate of each step.

With t = 0, 1, ... the step, w the steps of the warm-up, T = steps - w those after it and
tau = t - w::

    warm-up, t < w   start (phi + (1 - phi) t / w)
    exp              max(start q^(tau / s), stop), the exponent rounded down unless smooth;
                     q = (stop / start)^(s / T), or decay_rate
    cosine           stop + (start - stop) (1 + cos(pi tau / T)) / 2
    wsd              start, then in the last D steps, with x = (tau - (T - D)) / D:
                     1 / (x / stop + (1 - x) / start), or the cosine or the line in x

These are deepmd-kit's rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, validate

# With stop = 0, an exponential goes to this.
_SMALLEST = 1e-10


@dataclass(frozen=True)
class ScheduleSettings:
    """Options of the learning rate; the defaults are those of deepmd-kit's DPA3 recipe."""

    schedule: str = option(
        "exp",
        "how the learning rate falls: exp, a cosine, or constant with a decay at the end (wsd)",
        choices=("exp", "cosine", "wsd"),
    )
    learning_rate: float = option(1e-3, "learning rate after the warm-up")
    stop_learning_rate: float = option(3e-5, "learning rate at the end", minimum=0)
    decay_steps: int = option(
        5000, "exp: steps between two changes of the learning rate", minimum=1
    )
    decay_rate: float | None = option(
        None, "exp: factor in decay_steps; the default leads to stop_learning_rate"
    )
    smooth: bool = option(False, "exp: whether the learning rate changes in every step")
    decay_phase_ratio: float = option(0.1, "wsd: share of the steps with a decay", minimum=0)
    decay_type: str = option(
        "inverse_linear", "wsd: form of the decay", choices=("inverse_linear", "cosine", "linear")
    )
    warmup_steps: int = option(0, "steps in which the learning rate rises", minimum=0)
    warmup_start_factor: float = option(
        0.0, "first learning rate of the warm-up as a share of learning_rate", minimum=0
    )

    def __post_init__(self) -> None:
        validate(self)
        start, stop = self.learning_rate, self.stop_learning_rate
        if start <= 0:
            raise InputError(f"option learning_rate = {start:g} must be above 0")
        if stop > start:
            raise InputError(
                f"option stop_learning_rate = {stop:g} must be at most learning_rate = {start:g}"
            )
        if self.decay_rate is not None and not 0 < self.decay_rate <= 1:
            raise InputError(f"option decay_rate = {self.decay_rate:g} must be in (0, 1]")
        for name in ("warmup_start_factor", "decay_phase_ratio"):
            if getattr(self, name) > 1:
                raise InputError(f"option {name} = {getattr(self, name):g} must be at most 1")
        if self.schedule == "wsd" and self.decay_type == "inverse_linear" and stop == 0:
            raise InputError(
                "option stop_learning_rate = 0 is not possible with decay_type=inverse_linear; "
                "use a small number, or decay_type=cosine"
            )


class Schedule:
    """The learning rate as a function of the step.

    Args:
        settings: the options.
        steps: steps of the whole training, warm-up included.

    Raises:
        InputError: the warm-up leaves no steps.
    """

    def __init__(self, settings: ScheduleSettings, steps: int) -> None:
        if steps <= settings.warmup_steps:
            raise InputError(
                f"option warmup_steps = {settings.warmup_steps} must be below the number of steps, "
                f"{steps}"
            )
        self._settings = settings
        self._total = steps - settings.warmup_steps
        ratio = settings.decay_phase_ratio
        self._decay = min(max(int(ratio * steps), 1), self._total)
        self._interval, self._rate = self._exponential()

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        s = self._settings
        warmup = s.warmup_steps
        if step < warmup:
            factor = s.warmup_start_factor
            return s.learning_rate * (factor + (1 - factor) * step / warmup)
        after = step - warmup
        if s.schedule == "exp":
            exponent = after / self._interval if s.smooth else after // self._interval
            return max(s.learning_rate * self._rate**exponent, s.stop_learning_rate)
        if s.schedule == "cosine":
            return self._between("cosine", min(after / self._total, 1.0))
        x = (after - (self._total - self._decay)) / self._decay
        return self._between(s.decay_type, min(max(x, 0.0), 1.0))

    def _exponential(self) -> tuple[int, float]:
        """Steps between two changes of an exponential, and its factor in so many steps."""
        s, interval, total = self._settings, self._settings.decay_steps, self._total
        if s.decay_rate is not None:
            return interval, s.decay_rate
        if interval >= total:
            interval = 100 if total // 10 > 100 else total // 100 + 1
        stop = max(s.stop_learning_rate, _SMALLEST)
        return interval, (stop / s.learning_rate) ** (interval / total)

    def _between(self, form: str, x: float) -> float:
        """From the first rate at x = 0 to the last one at x = 1."""
        start, stop = self._settings.learning_rate, self._settings.stop_learning_rate
        # The last value is exact, whatever the formulas round to.
        if x == 1.0:
            return stop
        if form == "cosine":
            return stop + (start - stop) / 2 * (1 + math.cos(math.pi * x))
        if form == "linear":
            return start + (stop - start) * x
        return 1 / (x / stop + (1 - x) / start)
