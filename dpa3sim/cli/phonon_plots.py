"""Pictures of phonons and of what follows from them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dpa3sim.protocols.phonon import Result

BLUE, GREY = "#1f4e9c", "0.6"


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``."""
    for kind in ("png", "svg"):
        figure.savefig(folder / f"{name}.{kind}", dpi=150)
    pyplot.close(figure)


def plot_bands(folder: Path, result: Result, title: str) -> None:
    """Bands beside the densities of states, total and of each element."""
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(8, 4.5), width_ratios=(3, 1), layout="constrained"
    )
    bands = result.phonon.band_structure
    assert bands is not None
    for distance, frequencies in zip(bands.distances, bands.frequencies, strict=True):
        left.plot(distance, frequencies, color=BLUE, linewidth=1)
    decorate_path(left, bands.distances, result.path.segments)
    left.set_ylabel("frequency (THz)")
    total = result.phonon.total_dos
    assert total is not None
    right.fill_betweenx(total.frequency_points, total.dos, color="0.9", linewidth=0)
    right.plot(total.dos, total.frequency_points, color="0.3", linewidth=1, label="total")
    for symbol, dos in _by_element(result).items():
        right.plot(dos, result.projected_dos.frequencies, linewidth=1, label=symbol)
    right.set_xlabel("density of states\n(1/THz/primitive cell)")
    right.set_xlim(left=0)
    right.axhline(0, color=GREY, linewidth=0.7)
    right.legend(fontsize="small", frameon=False)
    cells = result.prepared.cells
    formula = cells.primitive.atoms.get_chemical_formula(empirical=True)
    figure.suptitle(f"{title}: {formula}, {cells.label()}, {result.verdict.state}")
    save(figure, folder, "bands")


def decorate_path(
    axis: Any, distances: list[np.ndarray], segments: tuple[tuple[str, str], ...]
) -> None:
    """Labels of the special points; where the path jumps, both."""
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
    """Free energy, entropy and heat capacity of an atom against the temperature."""
    figure, axis = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
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
    """Projected densities of states of each element; none where there is only one."""
    sums: defaultdict[str, Any] = defaultdict(float)
    symbols = result.crystal.atoms.get_chemical_symbols()
    for symbol, dos in zip(symbols, result.projected_dos.values, strict=True):
        sums[symbol] = sums[symbol] + dos
    return dict(sums) if len(sums) > 1 else {}


def _pretty(label: str) -> str:
    """``X_1`` with a subscript."""
    return "|".join(
        f"{name.partition('_')[0]}$_{{{name.partition('_')[2]}}}$" if "_" in name else name
        for name in label.split("|")
    )
