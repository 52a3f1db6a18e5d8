"""Plots of path integral molecular dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.report.plots.properties import pyplot, save

if TYPE_CHECKING:
    from dpa3sim.protocols.dynamics.path_integrals import Result, Run


def plot_path_integral(folder: Path, result: Result, label: str) -> None:
    """Write ``pimd`` and, for crystals and liquids, ``rdf``, as ``.png`` and ``.svg``."""
    formula = result.atoms.get_chemical_formula(empirical=True)
    settings = result.plan.settings
    title = label if label == formula else f"{label}: {formula}"
    title += f", {settings.beads} beads at {settings.temperature:g} K"
    _plot_table(folder, result, title)
    if result.quantum.rdf:
        _plot_radial(folder, result, title)


def _plot_table(folder: Path, result: Result, title: str) -> None:
    """Plot temperature, energies, and for crystals pressure and volume, against time."""
    runs = [("quantum", result.quantum)]
    if result.classical is not None:
        runs.append(("classical", result.classical))
    panels: list[tuple[str, str, str, float]] = [
        ("temperature", "temperature", "K", 1),
        ("potential_energy", "potential energy −\nquantum mean", "meV/atom", 1000),
        ("conserved", "change of the\nconserved quantity", "meV/atom", 1000),
    ]
    optional = [
        ("kinetic_energy", "kinetic energy", "meV/atom", 1000),
        ("pressure", "pressure", "GPa", 1),
        ("volume", "volume", "Å³", 1),
    ]
    panels += [panel for panel in optional if panel[0] in result.quantum.curves]
    figure, axes = pyplot().subplots(
        len(panels), 1, sharex=True, figsize=(7, 1.9 * len(panels)), layout="constrained"
    )
    for axis, (key, name, unit, scale) in zip(axes, panels, strict=True):
        for kind, run in runs:
            zero = 0.0
            if key == "potential_energy":
                zero = scale * result.quantum.estimates[key].mean
            elif key == "conserved":
                zero = scale * float(run.curves[key][0])
            _draw(axis, key, scale, kind, run, zero)
        axis.set_ylabel(f"{name}\n({unit})")
        axis.grid(alpha=0.3)
        start = result.equilibration * result.plan.timestep / 1000
        axis.axvline(start, color="gray", linestyle=":", linewidth=1)
        axis.ticklabel_format(axis="y", useOffset=False)
    _draw_thermodynamic(axes, panels, result.quantum)
    axes[0].axhline(result.plan.settings.temperature, color="gray", linewidth=0.8)
    if len(runs) > 1:
        axes[0].legend(fontsize="small", ncols=2, loc="lower right")
    axes[-1].set_xlabel("time (ps)")
    axes[0].set_title(title)
    save(figure, folder, "pimd")


def _draw(axis: Any, key: str, scale: float, kind: str, run: Run, zero: float) -> None:
    """Draw a column of one run, with its mean, relative to ``zero``."""
    if key not in run.curves:
        return
    values = scale * run.curves[key]
    found = run.estimates.get(key)
    color = "tab:blue" if kind == "quantum" else "tab:orange"
    axis.plot(run.curves["time_ps"], values - zero, linewidth=0.7, color=color, label=kind)
    if found is None:
        return
    axis.axhline(scale * found.mean - zero, color=color, linestyle="--", linewidth=1)
    error = f" ± {scale * found.error:.2g}" if found.error else ""
    axis.text(
        0.01 if kind == "classical" else 0.99, 0.93, f"{kind}: {scale * found.mean:.6g}{error}",
        transform=axis.transAxes, ha="left" if kind == "classical" else "right", va="top",
        fontsize="small", color=color,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none"},
    )  # fmt: skip


def _draw_thermodynamic(axes: Any, panels: list[tuple[str, str, str, float]], run: Run) -> None:
    """Draw the mean of the other kinetic energy estimator, which fluctuates far more."""
    found = run.estimates.get("kinetic_energy_thermodynamic")
    for axis, panel in zip(axes, panels, strict=True):
        if panel[0] == "kinetic_energy" and found is not None:
            error = f" ± {1000 * found.error:.2g}" if found.error else ""
            text = f"thermodynamic estimator: {1000 * found.mean:.6g}{error}"
            axis.axhline(1000 * found.mean, color="black", linestyle=":", linewidth=1, label=text)
            axis.legend(fontsize="small", loc="lower right")


def _plot_radial(folder: Path, result: Result, title: str) -> None:
    """Plot radial distribution functions, with dashed lines for the classical ones."""
    figure, axis = pyplot().subplots(figsize=(6, 4), layout="constrained")
    quantum, classical = result.quantum, result.classical
    highest = 1.0
    for name, values in quantum.rdf.items():
        (line,) = axis.plot(quantum.rdf_r, values, label=name, linewidth=1.3)
        highest = max(highest, float(np.max(values)))
        if classical is not None and name in classical.rdf:
            other = classical.rdf[name]
            axis.plot(quantum.rdf_r, other, "--", color=line.get_color(), linewidth=1)
    axis.axhline(1, color="gray", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, quantum.rdf_r[-1])
    axis.set_ylim(0, 1.05 * min(highest, 12.0))
    axis.set_xlabel("distance (Å)")
    axis.set_ylabel("radial distribution g(r)")
    axis.set_title(title + (" (dashed: classical)" if classical is not None else ""), fontsize=10)
    axis.legend(fontsize="small")
    save(figure, folder, "rdf")
