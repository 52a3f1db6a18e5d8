"""Pictures of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dpa3sim.protocols import relax


def pyplot() -> Any:
    """Pyplot of matplotlib, drawing into files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``, and let the figure go."""
    for ending in ("png", "svg"):
        figure.savefig(folder / f"{name}.{ending}", dpi=150)
    pyplot().close(figure)


def plot_relaxation(path: Path, result: relax.Result, title: str) -> None:
    """Energy, largest force and largest stress against the optimizer step."""
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
