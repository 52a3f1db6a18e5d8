"""Plots of training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpa3sim.report.plots.properties import pyplot

BINS = 60


def plot_histograms(path: Path, values: Mapping[str, np.ndarray], title: str) -> None:
    """Draw a histogram of each array to one picture; numbers of values are logarithmic.

    Args:
        path: of the picture; its ending tells the format. values: by their name with the unit.
        title: of the picture.
    """
    rows = (len(values) + 1) // 2
    figure, axes = pyplot().subplots(
        rows, 2, figsize=(9, 3 * rows), layout="constrained", squeeze=False
    )
    for axis, (name, numbers) in zip(axes.flat, values.items(), strict=False):
        axis.hist(numbers, bins=BINS, log=True)
        axis.set_xlabel(name)
        axis.set_ylabel("number")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(values) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
