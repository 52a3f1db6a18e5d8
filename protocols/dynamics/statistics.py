"""Averages, their errors and the drift of a simulation, from a table that is read once.

The memory does not grow with the length of the table: rows are summed in a fixed number of blocks,
and curves are thinned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .recorders import Row

# Blocks should be longer than correlation times; an error needs at least MIN_BLOCKS of them.
BLOCKS = 20
MIN_BLOCKS = 4
# Points of a curve in a picture.
CURVE_POINTS = 2000


@dataclass(frozen=True)
class Average:
    """Mean of a column; its standard error by block averaging, None if rows are too few.

    Attributes:
        mean, error: of the quantity. deviation: standard deviation of its values.
    """

    mean: float
    error: float | None
    deviation: float


@dataclass(frozen=True)
class Statistics:
    """Averages over a table.

    Attributes:
        averages: by column, over the rows from ``start`` on.
        drift: slope of the conserved quantity, meV/atom/ps, and its standard error; None where
            there is no such quantity or too few rows.
        curves: every column at up to :data:`CURVE_POINTS` rows, from the beginning.
        n_rows: number of averaged rows.
    """

    averages: dict[str, Average]
    drift: tuple[float, float] | None
    curves: dict[str, np.ndarray]
    n_rows: int


def statistics(rows: Iterable[Row], n_rows: int, start: float, n_atoms: int) -> Statistics:
    """Averages, drift and curves of a table.

    Args:
        rows: in order, each with the column ``step``.
        n_rows: number of rows that are going to come.
        start: step from which rows are averaged.
        n_atoms: number of atoms of the system.
    """
    stride = max(1, math.ceil(n_rows / CURVE_POINTS))
    curves: dict[str, list[float]] = {}
    blocks: _Blocks | None = None
    for index, row in enumerate(rows):
        if index % stride == 0:
            for name, value in row.items():
                curves.setdefault(name, []).append(math.nan if value is None else value)
        if float(row["step"] or 0) < start:
            continue
        if blocks is None:
            blocks = _Blocks(list(row), n_rows - index)
        blocks.add(row)
    thinned = {name: np.array(values) for name, values in curves.items()}
    if blocks is None:
        return Statistics({}, None, thinned, 0)
    return Statistics(blocks.averages(), blocks.drift(n_atoms), thinned, blocks.n_rows)


class _Blocks:
    """Sums of rows in consecutive blocks of about equal length."""

    def __init__(self, names: Sequence[str], expected: int) -> None:
        self._names = list(names)
        self._n_blocks = max(1, min(BLOCKS, expected))
        self._expected = expected
        self._sums = np.zeros((self._n_blocks, len(names)))
        self._squares = np.zeros(len(names))
        self._counts = np.zeros(self._n_blocks)
        self._first: np.ndarray | None = None
        self.n_rows = 0

    def add(self, row: Row) -> None:
        values = np.array([math.nan if v is None else v for v in row.values()], dtype=float)
        if self._first is None:
            self._first = values
        values = values - self._first  # keeps the sum of squares from cancelling
        block = min(self.n_rows * self._n_blocks // self._expected, self._n_blocks - 1)
        self._sums[block] += values
        self._squares += values**2
        self._counts[block] += 1
        self.n_rows += 1

    def _means(self) -> np.ndarray:
        """Means of the blocks with rows, ``(n_blocks, n_columns)``, relative to the first row."""
        filled = self._counts > 0
        means: np.ndarray = self._sums[filled] / self._counts[filled, None]
        return means

    def averages(self) -> dict[str, Average]:
        assert self._first is not None
        means = self._means()
        shift = self._sums.sum(axis=0) / self.n_rows
        variance = np.maximum(self._squares / self.n_rows - shift**2, 0.0)
        enough = len(means) >= MIN_BLOCKS
        errors = means.std(axis=0, ddof=1) / math.sqrt(len(means)) if enough else None
        return {
            name: Average(
                float(self._first[k] + shift[k]),
                None if errors is None else float(errors[k]),
                float(math.sqrt(variance[k])),
            )
            for k, name in enumerate(self._names)
            if math.isfinite(shift[k])
        }

    def drift(self, n_atoms: int) -> tuple[float, float] | None:
        """Slope of the block means of the conserved quantity against time, meV/atom/ps."""
        if "conserved_eV" not in self._names:
            return None
        means = self._means()
        time = means[:, self._names.index("time_ps")]
        value = 1000 * means[:, self._names.index("conserved_eV")] / n_atoms
        if len(means) < MIN_BLOCKS or not np.isfinite(value).all():
            return None
        time = time - time.mean()
        slope = float(time @ value / (time @ time))
        left = value - value.mean() - slope * time
        error = math.sqrt(float(left @ left) / (len(time) - 2) / float(time @ time))
        return slope, error


@dataclass
class Jumps:
    """Changes of the conserved quantity in steps in which a pair of atoms crossed the angle cutoff.

    A crossing changes the number of angles. Sums, in eV, grow step by step.

    Attributes:
        steps: number of all steps; crossings: of steps with a crossing.
        change, crossing_change: sum of the changes in all steps, and in those with a crossing.
        quiet_square, crossing_square: sum of squared changes in steps without and with a crossing.
    """

    steps: int = 0
    crossings: int = 0
    change: float = 0.0
    crossing_change: float = 0.0
    quiet_square: float = 0.0
    crossing_square: float = 0.0
    _last: tuple[float, int] | None = field(default=None, repr=False)

    def add(self, conserved: float | None, n_angles: int) -> None:
        """Count a step, by the conserved quantity (eV) and the number of angles after it."""
        if conserved is None:
            return
        last, self._last = self._last, (conserved, n_angles)
        if last is None:
            return
        change = conserved - last[0]
        self.steps += 1
        self.change += change
        if n_angles == last[1]:
            self.quiet_square += change**2
        else:
            self.crossings += 1
            self.crossing_change += change
            self.crossing_square += change**2

    def state(self) -> dict[str, Any]:
        """JSON-ready data from which :meth:`restored` makes it again."""
        return dict(vars(self))

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Jumps:
        """From what :meth:`state` returned, after JSON."""
        jumps = cls(**state)
        jumps._last = None if jumps._last is None else (jumps._last[0], jumps._last[1])
        return jumps

    @property
    def rms(self) -> tuple[float, float] | None:
        """Rms change (eV) in steps with a crossing and without; None unless there are both."""
        quiet = self.steps - self.crossings
        if not self.crossings or not quiet:
            return None
        return (
            math.sqrt(self.crossing_square / self.crossings),
            math.sqrt(self.quiet_square / quiet),
        )

    def to_dict(self, n_atoms: int) -> dict[str, Any]:
        """JSON-ready summary."""
        rms = self.rms
        scale = 1000 / n_atoms
        return {
            "n_steps_with_crossing": self.crossings,
            "n_steps_counted": self.steps,
            "conserved_change_meV_per_atom": scale * self.change,
            "conserved_change_with_crossing_meV_per_atom": scale * self.crossing_change,
            "rms_step_with_crossing_meV_per_atom": rms and scale * rms[0],
            "rms_step_without_crossing_meV_per_atom": rms and scale * rms[1],
        }
