"""Plots of phonons and of the properties that follow from them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.report.plots.properties import pyplot, save

if TYPE_CHECKING:
    from dpa3sim.protocols.crystals.cells import Cells
    from dpa3sim.protocols.gruneisen import Result as Grueneisen
    from dpa3sim.protocols.phonon import Result
    from dpa3sim.protocols.qha import Result as Qha

BLUE, GREY = "#1f4e9c", "0.6"


def plot_bands(folder: Path, result: Result, title: str) -> None:
    """Plot bands beside the densities of states, total and by element."""
    figure, (left, right) = pyplot().subplots(
        1, 2, sharey=True, figsize=(8, 4.5), width_ratios=(3, 1), layout="constrained"
    )
    bands = result.phonon.band_structure
    assert bands is not None
    for distance, frequencies in zip(bands.distances, bands.frequencies, strict=True):
        left.plot(distance, frequencies, color=BLUE, linewidth=1)
    decorate_path(left, bands.distances, result.path.segments)
    left.set_ylabel("frequency (THz)")
    total, frequencies = result.dos.total, result.dos.frequencies
    right.fill_betweenx(frequencies, total, color="0.9", linewidth=0)
    right.plot(total, frequencies, color="0.3", linewidth=1, label="total")
    for symbol, dos in _by_element(result).items():
        right.plot(dos, frequencies, linewidth=1, label=symbol)
    right.set_xlabel("density of states\n(1/THz/primitive cell)")
    right.set_xlim(left=0)
    right.axhline(0, color=GREY, linewidth=0.7)
    right.legend(fontsize="small", frameon=False)
    figure.suptitle(f"{title}: {_what(result.prepared.cells)}, {result.verdict.state}")
    save(figure, folder, "bands")


def decorate_path(
    axis: Any, distances: list[np.ndarray], segments: tuple[tuple[str, str], ...]
) -> None:
    """Labels of the special points; both labels where the path jumps."""
    ticks: dict[float, str] = {}
    for distance, (start, end) in zip(distances, segments, strict=True):
        for at, name in ((float(distance[0]), start), (float(distance[-1]), end)):
            near = next((t for t in ticks if abs(t - at) < 1e-8), None)
            known = None if near is None else ticks[near]
            key = at if near is None else near
            ticks[key] = name if known in (None, name) else f"{known}|{name}"
    for at in ticks:
        axis.axvline(at, color=GREY, linewidth=0.7)
    axis.axhline(0, color=GREY, linewidth=0.7)
    axis.set_xticks(list(ticks), [_pretty(name) for name in ticks.values()])
    axis.set_xlim(min(ticks), max(ticks))


def plot_thermal(folder: Path, result: Result, title: str) -> None:
    """Plot free energy, entropy and heat capacity per atom against the temperature."""
    figure, axis = pyplot().subplots(figsize=(6, 4.2), layout="constrained")
    thermal = result.thermal
    for values, name in (
        (thermal.free_energy, "free energy (kJ/mol)"),
        (thermal.entropy, "entropy (J/K/mol)"),
        (thermal.heat_capacity, "heat capacity $C_V$ (J/K/mol)"),
    ):
        axis.plot(thermal.temperatures, values / thermal.n_atoms, label=name)
    axis.axhline(0, color=GREY, linewidth=0.7)
    axis.set_xlabel("temperature (K)")
    axis.set_ylabel("per atom")
    axis.set_title(f"{title}: harmonic thermal properties")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    save(figure, folder, "thermal_properties")


def _by_element(result: Result) -> dict[str, np.ndarray]:
    """Projected densities of states by element; empty if there is only one element."""
    sums: defaultdict[str, Any] = defaultdict(float)
    symbols = result.crystal.atoms.get_chemical_symbols()
    for symbol, dos in zip(symbols, result.dos.projected, strict=True):
        sums[symbol] = sums[symbol] + dos
    return dict(sums) if len(sums) > 1 else {}


def _pretty(label: str) -> str:
    """The label ``X_1`` with a subscript."""
    return "|".join(
        f"{name.partition('_')[0]}$_{{{name.partition('_')[2]}}}$" if "_" in name else name
        for name in label.split("|")
    )


def plot_gruneisen(folder: Path, result: Grueneisen, title: str) -> None:
    """Plot parameters along the path, and of all modes against their frequency."""
    figure, (left, right) = pyplot().subplots(
        1, 2, sharey=True, figsize=(9, 4.5), width_ratios=(3, 2), layout="constrained"
    )
    for distance, values in zip(result.distances, result.band_parameters, strict=True):
        left.plot(distance, values, ".", color=BLUE, markersize=2)
    decorate_path(left, result.distances, result.path.segments)
    left.set_ylabel("mode Grüneisen parameter")
    right.plot(result.frequencies.ravel(), result.parameters.ravel(), ".", color=BLUE, markersize=2)
    right.axhline(0, color=GREY, linewidth=0.7)
    right.set_xlabel("frequency (THz)")
    counted = result.parameters[np.isfinite(result.parameters)]
    # A few modes near Γ can be far from all others.
    low, high = np.percentile(counted, [0.2, 99.8])
    margin = 0.1 * (high - low) + 0.1
    left.set_ylim(min(low, 0) - margin, high + margin)
    figure.suptitle(f"{title}: {_what(result.prepared.cells)}")
    save(figure, folder, "gruneisen")


def plot_qha(folder: Path, result: Qha, title: str) -> None:
    """Plot volume, expansion, bulk modulus and heat capacity against the temperature."""
    figure, axes = pyplot().subplots(2, 2, sharex=True, figsize=(8, 6), layout="constrained")
    n = len(result.crystals[0].atoms)
    t = result.temperatures
    for axis, values, name in (
        (axes[0, 0], result.equilibrium_volumes / n, "volume (Å$^3$/atom)"),
        (axes[0, 1], 1e6 * result.expansion, "volumetric expansion (10$^{-6}$/K)"),
        (axes[1, 0], result.bulk_moduli, "bulk modulus (GPa)"),
        (axes[1, 1], result.heat_capacities / n, "$C_P$ (J/K/mol/atom)"),
    ):
        axis.plot(t, values, color=BLUE)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("temperature (K)")
    figure.suptitle(f"{title}: {_what(result.prepared.cells)}, quasi-harmonic")
    save(figure, folder, "quasi_harmonic")
    _plot_free_energies(folder, result, title)


def _plot_free_energies(folder: Path, result: Qha, title: str) -> None:
    """Plot free energies against the volume, with the equilibrium volume at each temperature."""
    figure, axis = pyplot().subplots(figsize=(6, 4.5), layout="constrained")
    n, kept = len(result.crystals[0].atoms), result.kept
    free = np.asarray(result.found.helmholtz_volume[:kept]) / n
    gibbs = np.asarray(result.found.gibbs_free_energies[:kept]) / n
    shown = range(0, kept, max(1, kept // 10))
    for row in shown:
        axis.plot(result.volumes / n, free[row], marker="o", markersize=3, color=GREY, linewidth=1)
    lowest = result.equilibrium_volumes / n
    axis.plot(
        lowest[list(shown)],
        gibbs[list(shown)],
        marker="x",
        color="tab:red",
        label="minimum at each temperature",
    )
    axis.set_xlabel("volume (Å$^3$/atom)")
    axis.set_ylabel("free energy (eV/atom)")
    axis.set_title(f"{title}: {result.temperatures[0]:g} to {result.temperatures[kept - 1]:g} K")
    axis.legend(frameon=False, loc="lower left")
    save(figure, folder, "free_energy_volume")


def _what(cells: Cells) -> str:
    """The title, with formula and space group."""
    formula = cells.primitive.atoms.get_chemical_formula(empirical=True)
    return f"{formula}, {cells.label()}"
