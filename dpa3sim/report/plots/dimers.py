"""Curves of two atoms of every element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpa3sim.report.plots.properties import pyplot, save

# Energies above this, in units of that of the bond or in eV, are beyond the picture.
HIGHEST = 40.0


def plot_dimers(folder: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Energy against distance, those that attract each other at short distances in red.

    Args:
        folder: for ``dimers.png`` and ``dimers.svg``. rows: of the result. title: of the picture.
    """
    figure, axis = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        r, e = np.array(row["distances_A"]), np.array(row["energies_eV"])
        bad = row["attractive_below_A"] is not None and not row["overlap"]
        color = "tab:red" if bad else "tab:gray"
        axis.plot(r, e, color=color, linewidth=1.2 if bad else 0.6, alpha=0.9 if bad else 0.5)
        if bad:
            top = int(np.argmin(np.abs(r - row["attractive_below_A"])))
            if abs(e[top]) < HIGHEST:
                axis.annotate(row["element"], (r[top], e[top]), color="tab:red", fontsize="small")
    axis.set(xlabel="distance (Å)", ylabel="energy of two atoms (eV)", title=title)
    axis.set_ylim(-15, HIGHEST)
    axis.grid(alpha=0.3)
    save(figure, folder, "dimers")
