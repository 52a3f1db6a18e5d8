"""Plots of thermal conductivities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.report.plots.phonons import BLUE, GREY
from dpa3sim.report.plots.properties import pyplot, save

if TYPE_CHECKING:
    from dpa3sim.protocols.anharmonics.transport import Transport
    from dpa3sim.protocols.kappa import Result

ROOM_TEMPERATURE = 300.0
# Mean free paths that conduct less than this share in all are not shown.
SHOWN = 1e-3


def plot_conduction(folder: Path, result: Result, title: str) -> None:
    """Plot the conductivity against mean free path, frequency, and temperature if it varies."""
    transport = result.transport
    assert transport is not None
    count = 3 if len(transport.scattering.temperatures) > 1 else 2
    figure, axes = pyplot().subplots(1, count, figsize=(4 * count, 3.8), layout="constrained")
    at = transport.scattering.nearest(ROOM_TEMPERATURE)
    paths, conducted = transport.cumulative(at)
    shown = (paths > 0) & (conducted > SHOWN * conducted[-1])
    axes[0].semilogx(paths[shown], conducted[shown], color=BLUE)
    axes[0].axhline(conducted[-1], color=GREY, linewidth=0.7)
    axes[0].set_xlabel("mean free path (nm)")
    axes[0].set_ylabel("conducted up to it (W/m/K)")
    axes[1].plot(*transport.spectrum(at), color=BLUE)
    axes[1].set_xlabel("frequency (THz)")
    axes[1].set_ylabel("spectrum (W/m/K/THz)")
    for axis in axes[:2]:
        axis.set_title(f"{transport.scattering.temperatures[at]:g} K", fontsize="medium")
        axis.set_ylim(bottom=0)
    if count == 3:
        _plot_temperatures(axes[2], transport)
    for axis in axes:
        axis.grid(alpha=0.3)
    formula = result.crystal.atoms.get_chemical_formula(empirical=True)
    figure.suptitle(f"{title}: {formula}, {result.prepared.cells.label()}")
    save(figure, folder, "kappa")


def _plot_temperatures(axis: Any, transport: Transport) -> None:
    """Plot principal values against the temperature, equal ones once."""
    values = np.linalg.eigvalsh(transport.tensors)
    for column in range(3):
        if column and np.allclose(values[:, column], values[:, column - 1], rtol=1e-3):
            continue
        axis.plot(transport.scattering.temperatures, values[:, column], marker=".", color=BLUE)
    axis.set_xlabel("temperature (K)")
    axis.set_ylabel("principal values (W/m/K)")
    axis.set_ylim(bottom=0)
