"""Plots of molecular dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.report.plots.properties import pyplot, save

if TYPE_CHECKING:
    from dpa3sim.protocols.md import Result


def plot_simulation(folder: Path, result: Result, label: str) -> None:
    """All plots for which there are data, as ``.png`` and ``.svg``."""
    formula = result.atoms[0].get_chemical_formula(empirical=True)
    title = label if label == formula else f"{label}: {formula}"
    _plot_thermo(folder, result, title)
    analysis = result.analysis
    if analysis.rdf:
        _plot_rdf(folder, result, title)
    if analysis.msd:
        _plot_msd(folder, result, title)
    if analysis.vdos:
        _plot_vdos(folder, result, title)


def _plot_thermo(folder: Path, result: Result, title: str) -> None:
    """Plot temperature, energies, pressure and volume against time."""
    plan, n_atoms = result.plan, len(result.atoms[0])
    curves = [s.curves for s in result.statistics]
    first = curves[0]
    panels: list[tuple[str, str, Any]] = [
        ("temperature", "K", lambda c: c["temperature_K"]),
        ("potential energy", "meV/atom", lambda c: _change(c["potential_eV"], n_atoms)),
    ]
    if np.isfinite(first["conserved_eV"]).all():
        panels.append(
            ("conserved quantity", "meV/atom", lambda c: _change(c["conserved_eV"], n_atoms))
        )
    if plan.periodic:
        panels.append(("pressure", "GPa", lambda c: c["pressure_GPa"]))
    if plan.barostat != "none":
        panels.append(("volume", "Å³/atom", lambda c: c["volume_A3"] / n_atoms))
    figure, axes = pyplot().subplots(
        len(panels), 1, sharex=True, figsize=(7, 1.9 * len(panels)), layout="constrained"
    )
    style = {"linewidth": 0.8, "alpha": 0.8 if len(curves) > 1 else 1.0}
    for axis, (name, unit, values) in zip(axes, panels, strict=True):
        for k, curve in enumerate(curves):
            axis.plot(curve["time_ps"], values(curve), label=f"replica {k}", **style)
        axis.set_ylabel(f"{name}\n({unit})")
        axis.grid(alpha=0.3)
        axis.axvline(plan.time(result.equilibration), color="gray", linestyle=":", linewidth=1)
        axis.ticklabel_format(axis="y", useOffset=False)
    _draw_averages(axes, panels, result)
    if 1 < len(curves) <= 8:
        axes[0].legend(fontsize="x-small", ncols=4)
    axes[-1].set_xlabel("time (ps)")
    ensemble = plan.settings.ensemble.upper()
    how = ", ".join(m for m in (plan.thermostat, plan.barostat) if m != "none")
    axes[0].set_title(f"{title}, {ensemble}{f' ({how})' if how else ''}, {plan.timestep:g} fs")
    save(figure, folder, "thermo")


def _draw_averages(axes: Any, panels: list[tuple[str, str, Any]], result: Result) -> None:
    """Draw the mean of a quantity over the averaged part."""
    columns = {"temperature": "temperature_K", "pressure": "pressure_GPa"}
    for axis, (name, unit, _) in zip(axes, panels, strict=True):
        if name in columns and all(columns[name] in s.averages for s in result.statistics):
            value, error = result.mean(columns[name])
            text = f"mean {value:.4g}" + (f" ± {error:.2g}" if error is not None else "")
            axis.axhline(value, color="black", linestyle="--", linewidth=0.8)
            axis.text(
                0.99, 0.93, f"{text} {unit}", transform=axis.transAxes, ha="right", va="top",
                fontsize="small", bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none"},
            )  # fmt: skip


def _change(energy: np.ndarray, n_atoms: int) -> np.ndarray:
    """The difference from the first value, meV/atom."""
    return 1000 * (energy - energy[0]) / n_atoms


def _plot_rdf(folder: Path, result: Result, title: str) -> None:
    figure, axis = pyplot().subplots(figsize=(6, 4), layout="constrained")
    for name, values in result.analysis.rdf.items():
        axis.plot(result.analysis.rdf_r, values, label=name, linewidth=1.2)
    axis.axhline(1, color="gray", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, result.analysis.rdf_r[-1])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("distance (Å)")
    axis.set_ylabel("radial distribution g(r)")
    axis.set_title(title)
    axis.legend(fontsize="small")
    save(figure, folder, "rdf")


def _plot_msd(folder: Path, result: Result, title: str) -> None:
    figure, axis = pyplot().subplots(figsize=(6, 4), layout="constrained")
    analysis = result.analysis
    for name, values in analysis.msd.items():
        found = analysis.diffusion[name]
        text = name
        if found.diffusive:
            error = "" if found.error is None else f" ± {found.error:.1g}"
            text = f"{name}: D = {found.coefficient:.2g}{error} m²/s"
        axis.plot(analysis.msd_time, values, label=text, linewidth=1.2)
    axis.set_xlim(0, analysis.msd_time[-1])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("time (ps)")
    axis.set_ylabel("mean squared displacement (Å²)")
    axis.set_title(title)
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)
    save(figure, folder, "msd")


def _plot_vdos(folder: Path, result: Result, title: str) -> None:
    """Plot the density of states, and the correlation function from which it follows."""
    analysis = result.analysis
    figure, (top, bottom) = pyplot().subplots(
        2, 1, figsize=(6, 6), layout="constrained", height_ratios=(3, 2)
    )
    single = len(analysis.vacf) == 1
    for name, values in analysis.vdos.items():
        if single and name != "total":
            continue
        style = {"color": "black"} if name == "total" else {}
        top.plot(analysis.frequency, values, label=name, linewidth=1.2, **style)
    total = analysis.vdos["total"]
    # Frequencies beyond the last visible mode are left out.
    shown = analysis.frequency[np.cumsum(total) <= 0.9995 * total.sum()]
    top.set_xlim(0, 1.15 * shown[-1] if len(shown) else None)
    top.set_ylim(bottom=min(0.0, 1.1 * total.min()))
    top.set_xlabel("frequency (THz)")
    top.set_ylabel("vibrational density of states\n(1/THz per atom)")
    top.set_title(title)
    for name, values in analysis.vacf.items():
        bottom.plot(analysis.vacf_time, values, label=name, linewidth=1.0)
    bottom.axhline(0, color="gray", linewidth=0.8)
    bottom.set_xlabel("time (ps)")
    bottom.set_ylabel("velocity autocorrelation")
    if not single:
        top.legend(fontsize="small")
        bottom.legend(fontsize="small")
    save(figure, folder, "vdos")
