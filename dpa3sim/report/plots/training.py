"""Plots of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpa3sim.report.plots.properties import pyplot, save

# Name, unit, factor and ending of the columns of each panel.
_PANELS = (
    ("loss", "", 1.0, "loss"),
    ("energy", "meV/atom", 1e3, "rmse_energy_per_atom_eV"),
    ("forces", "meV/Å", 1e3, "rmse_forces_eV_per_A"),
    ("virial", "meV/atom", 1e3, "rmse_virial_per_atom_eV"),
)
Row = Mapping[str, float | None]


def plot_learning_curve(folder: Path, rows: Sequence[Row], title: str) -> None:
    """Losses and errors against the step, as ``lcurve.png`` and ``.svg``.

    Args:
        folder: where they go. rows: of the learning curve. title: of the figure.
    """
    panels = [panel for panel in _PANELS if _curves(rows, panel[3])]
    figure, axes = pyplot().subplots(
        len(panels), 1, sharex=True, squeeze=False, figsize=(7, 2.1 * len(panels)),
        layout="constrained",
    )  # fmt: skip
    for axis, (name, unit, factor, ending) in zip(axes[:, 0], panels, strict=True):
        for label, (steps, values) in _curves(rows, ending).items():
            marker = "o" if len(steps) < 30 else None
            axis.plot(
                steps, [factor * x for x in values], label=label, linewidth=1, marker=marker,
                markersize=3,
            )  # fmt: skip
        axis.set_yscale("log")
        axis.set_ylabel(f"{name}\n(RMSE, {unit})" if unit else name)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="x-small")
    axes[-1, 0].set_xlabel("step")
    axes[0, 0].set_title(title)
    save(figure, folder, "lcurve")


def plot_parity(folder: Path, energies: np.ndarray, forces: np.ndarray, title: str) -> None:
    """Energies and forces of a model before and after against labels, as ``parity.png``, ``.svg``.

    Args:
        folder: where they go.
        energies: ``(3, n_frames)`` eV/atom: label, before, after.
        forces: ``(3, n_atoms, 3)`` eV/Å. title: of the figure.
    """
    figure, axes = pyplot().subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    quantities = (energies, "energy (eV/atom)"), (forces.reshape(3, -1), "force component (eV/Å)")
    for axis, (values, name) in zip(axes, quantities, strict=True):
        known = np.isfinite(values[0])
        if not known.any():
            axis.set_visible(False)
            continue
        labels, *models = values[:, known]
        for model, when, colour in zip(models, ("before", "after"), ("C1", "C0"), strict=True):
            axis.plot(labels, model, ".", color=colour, markersize=3, label=when, rasterized=True)
        ends = [values[:, known].min(), values[:, known].max()]
        axis.plot(ends, ends, color="black", linewidth=0.8)
        axis.set_xlabel(f"label: {name}")
        axis.set_ylabel(f"model: {name}")
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    save(figure, folder, "parity")


def _curves(rows: Sequence[Row], ending: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and positive values of each column of a panel, by label."""
    names = dict.fromkeys(name for row in rows for name in row)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name in names:
        if name != ending and not name.startswith((f"train_{ending}", f"validation_{ending}")):
            continue
        points: list[tuple[Any, Any]] = [
            (row["step"], row[name]) for row in rows if (row.get(name) or 0.0) > 0
        ]
        if points:
            label = name.removesuffix(ending).replace(ending, "").replace("__", "_").strip("_")
            steps, values = zip(*points, strict=True)
            found[label.replace("_", " ") or "training"] = list(steps), list(values)
    return found
