"""Averages over correlated rows, with errors from the time over which they are correlated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# The window of the autocorrelation function ends at so many correlation times (Sokal).
WINDOW = 5.0


@dataclass(frozen=True)
class Estimate:
    """Mean of correlated values.

    Attributes:
        mean: of the quantity. error: its standard error; None from fewer than two values.
        correlation: statistical inefficiency: number of rows per independent one, at least 1.
        n: number of rows.
    """

    mean: float
    error: float | None
    correlation: float
    n: int

    @property
    def independent(self) -> float:
        """Effective number of independent values."""
        return self.n / self.correlation


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of consecutive ``values`` ``(n,)``.

    The statistical inefficiency is ``1 + 2 Σ ρ(t)``, summed up to a window of :data:`WINDOW`
    times itself (A. D. Sokal, in Functional Integration, 1997, eq. 3.7); for white noise the sum
    ends at once.
    """
    n = len(values)
    if not n:
        return Estimate(math.nan, None, 1.0, 0)
    mean = float(values.mean())
    left = values - mean
    variance = float(left @ left) / n
    # The values are constant up to rounding, such as the volume at constant volume.
    if n < 2 or variance <= (1e-12 * max(abs(mean), 1e-300)) ** 2:
        return Estimate(mean, None if n < 2 else 0.0, 1.0, n)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(left, size)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, size)[:n] / (n * variance)
    times = 2 * np.cumsum(correlation) - 1.0
    inside = np.arange(n) >= WINDOW * times / 2
    inefficiency = max(1.0, float(times[int(np.argmax(inside)) if inside.any() else -1]))
    inefficiency = min(inefficiency, float(n))
    error = math.sqrt(variance * inefficiency / max(n - inefficiency, 1.0))
    return Estimate(mean, error, inefficiency, n)


def drift_of(time: np.ndarray, conserved: np.ndarray) -> tuple[float, float] | None:
    """Slope of a conserved quantity against time with its standard error.

    Args:
        time: ``(n,)``, equally spaced, such as ps. conserved: ``(n,)``, such as meV/atom.

    Returns:
        None for fewer than four values, or where one is not finite.
    """
    if len(time) < 4 or not np.isfinite(conserved).all():
        return None
    time = time - time.mean()
    square = float(time @ time)
    slope = float(time @ conserved) / square
    left = estimate(conserved - conserved.mean() - slope * time)
    deviation = float(np.std(conserved - conserved.mean() - slope * time))
    return slope, deviation * math.sqrt(left.correlation / square)
