"""Plots of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.figure import Figure

    from dpa3sim.protocols import elastic, eos, relax


def pyplot() -> Any:
    """The pyplot module of matplotlib, which only draws to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``, and close the figure."""
    for ending in ("png", "svg"):
        figure.savefig(folder / f"{name}.{ending}", dpi=150)
    pyplot().close(figure)


def plot_relaxation(path: Path, result: relax.Result, title: str) -> None:
    """Plot energy, largest force and largest stress against the optimizer step."""
    from matplotlib.ticker import MaxNLocator

    steps = result.steps
    index = [s.index for s in steps]
    natoms = len(result.atoms)
    with_pressure = bool(result.settings.pressure)
    energy = [(s.enthalpy_eV - steps[-1].enthalpy_eV) / natoms * 1000 for s in steps]
    panels = [
        ("enthalpy" if with_pressure else "energy", "meV/atom above the last", energy, None),
        ("largest force", "eV/Å", [s.fmax_eV_per_A for s in steps], result.settings.fmax),
    ]
    if steps[-1].smax_GPa is not None:
        stress = [s.smax_GPa for s in steps if s.smax_GPa is not None]
        panels.append(("largest stress", "GPa", stress, result.settings.smax))

    figure, axes = pyplot().subplots(
        len(panels), 1, sharex=True, figsize=(6, 2.2 * len(panels)), layout="constrained"
    )
    for axis, (name, unit, values, threshold) in zip(axes, panels, strict=True):
        axis.plot(index, values, marker="o", markersize=3, linewidth=1)
        axis.set_ylabel(f"{name}\n({unit})")
        axis.grid(alpha=0.3)
        if threshold is not None and threshold > 0:
            axis.axhline(threshold, color="tab:red", linestyle="--", linewidth=1, label="threshold")
            axis.legend(fontsize="small")
            if min(values) > 0:
                axis.set_yscale("log")
        else:
            axis.set_yscale("symlog", linthresh=1.0)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    state = "converged" if result.converged else "not converged"
    axes[0].set_title(f"{title}: {result.atoms.get_chemical_formula()}, {state}")
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def plot_eos(folder: Path, result: eos.Result, label: str) -> None:
    """Plot energy, residuals and pressure against volume: ``eos.png``, ``eos.svg``."""
    volumes, energies = result.volumes, result.energies
    dense = np.linspace(volumes.min(), volumes.max(), 200)
    zero = result.fit.energy if result.fit else energies.min()
    figure, (top, middle, bottom) = pyplot().subplots(
        3,
        1,
        sharex=True,
        figsize=(6, 7.5),
        layout="constrained",
        height_ratios=(3, 1.3, 2),
    )
    for name, fit in result.fits.items():
        main = name == result.settings.equation
        style = {"linewidth": 1.5 if main else 1.0, "linestyle": "-" if main else "--"}
        (line,) = top.plot(dense, 1000 * (fit.energy_at(dense) - zero), label=name, **style)
        left = 1000 * (energies - fit.energy_at(volumes))
        middle.plot(volumes, left, marker="o", markersize=3, color=line.get_color(), **style)
        bottom.plot(dense, fit.pressure_at(dense), color=line.get_color(), **style)
    top.plot(volumes, 1000 * (energies - zero), "ko", markersize=4, label="computed")
    bottom.plot(volumes, result.pressures, "ko", markersize=4, label="from the stress")
    formula = result.prepared.atoms.get_chemical_formula(empirical=True)
    title = f"{label}: {formula}"
    if result.fit is not None:
        fit = result.fit
        title += (
            f", {result.settings.equation} B₀ = {fit.bulk_modulus:.1f} ± {fit.errors[2]:.1f} GPa"
        )
        for axis in (top, middle, bottom):
            axis.axvline(fit.volume, color="gray", linewidth=0.8, linestyle=":")
    top.set_title(title)
    top.set_ylabel("energy (meV/atom)")
    middle.set_ylabel("energy − fit\n(meV/atom)")
    middle.axhline(0, color="gray", linewidth=0.8)
    bottom.set_ylabel("pressure (GPa)")
    bottom.axhline(0, color="gray", linewidth=0.8)
    bottom.set_xlabel("volume (Å³/atom)")
    top.legend(fontsize="small")
    bottom.legend(fontsize="small")
    save(figure, folder, "eos")


def plot_youngs_modulus(folder: Path, result: elastic.Result, label: str) -> None:
    """Plot Young's modulus in the planes of the axes: ``youngs_modulus.png``, ``.svg``."""
    from dpa3sim.protocols.crystals.moduli import directional_young
    from dpa3sim.protocols.crystals.stiffness import rotated

    angle = np.linspace(0, 2 * np.pi, 361)
    tensors = [("relaxed ions", result.relaxed, "-"), ("clamped ions", result.clamped, "--")]
    figure, axes = pyplot().subplots(
        1, 3, figsize=(12, 4.4), layout="constrained", subplot_kw={"projection": "polar"}
    )
    for axis, (first, second) in zip(axes, ((0, 1), (0, 2), (1, 2)), strict=True):
        directions = np.zeros((len(angle), 3))
        directions[:, first], directions[:, second] = np.cos(angle), np.sin(angle)
        for name, tensor, style in tensors:
            if tensor is None:
                continue
            compliance = np.linalg.inv(rotated(tensor.stiffness, result.rotation))
            axis.plot(angle, directional_young(compliance, directions), style, label=name)
        axis.set_ylim(bottom=0)
        axis.set_rlabel_position(50)
        axis.set_title(f"{'xyz'[first]}{'xyz'[second]} plane")
        ticks = np.radians([0, 90, 180, 270])
        names = [f"{s}{'xyz'[i]}" for s in ("", "−") for i in (first, second)]
        axis.set_xticks(ticks, names)
    axes[-1].legend(loc="lower right", bbox_to_anchor=(1.25, -0.15), fontsize="small")
    low, high = result.moduli.young_extremes or (0.0, 0.0)
    figure.suptitle(
        f"{_heading(label, result.prepared.atoms)}, Young's modulus in GPa "
        f"({low:.1f} to {high:.1f}), IEEE standard axes"
    )
    save(figure, folder, "youngs_modulus")


def _heading(label: str, atoms: Atoms) -> str:
    """The name of the structure, and its formula unless they are the same."""
    formula: str = atoms.get_chemical_formula(empirical=True)
    return formula if label == formula else f"{label}: {formula}"
