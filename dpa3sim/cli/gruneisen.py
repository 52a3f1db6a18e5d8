"""Relax crystals and compute their mode Grüneisen parameters, one run directory for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.cli.phonon import HarmonicJob, at_room_temperature, supercell_lines, write_phonopy
from dpa3sim.cli.protocol import PropertyCommand, write_structure, write_table
from dpa3sim.protocols import gruneisen

if TYPE_CHECKING:
    from dpa3sim.protocols.gruneisen import Result

VOLUMES = ("", "_smaller", "_larger")


def write(folder: Path, result: Result, label: str, plots: bool) -> None:
    """Write structures, phonopy's files for each volume, tables and a plot."""
    write_structure(folder, "structure_relaxed", result.prepared.atoms)
    for crystal, ending in zip(result.crystals, VOLUMES, strict=True):
        write_structure(folder, f"structure_primitive{ending}", crystal.atoms)
        write_phonopy(folder, crystal, ending)
    counted = np.isfinite(result.parameters)
    weights = np.broadcast_to(result.weights[:, None], counted.shape)
    write_table(
        folder / "gruneisen_mesh.csv",
        {
            "frequency_THz": result.frequencies[counted].tolist(),
            "gruneisen": result.parameters[counted].tolist(),
            "weight": weights[counted].tolist(),
        },
    )
    write_table(
        folder / "gruneisen_average.csv",
        {
            "temperature_K": result.temperatures.tolist(),
            "gruneisen_average": result.averages.tolist(),
        },
    )
    if plots:
        from dpa3sim.report.plots.phonons import plot_gruneisen

        plot_gruneisen(folder, result, label)


def lines(result: dict[str, Any]) -> list[str]:
    """A summary of the stored result in a few lines."""
    optical = zip(
        result["frequencies_gamma_optical_THz"], result["gruneisen_gamma_optical"], strict=True
    )
    told = ", ".join(f"{parameter:.3f} ({frequency:.2f} THz)" for frequency, parameter in optical)
    text = [
        *supercell_lines(result),
        f"optical modes at Γ: {told or 'none'}",
        f"all modes: {result['gruneisen_lowest']:.3f} to {result['gruneisen_highest']:.3f}",
    ]
    at = at_room_temperature(result)
    if at is not None:
        text.append(f"mean at 300 K, by heat capacity: {result['gruneisen_average'][at]:.3f}")
    return text


EXAMPLES = """\
dpa3sim gruneisen POSCAR
dpa3sim gruneisen POSCAR --strain 0.005 --supercell max-atoms=108
"""
COMMAND = PropertyCommand(
    "gruneisen",
    "Grüneisen parameters",
    gruneisen.Settings,
    HarmonicJob,
    plots="the parameters",
    protocol=gruneisen,
    write=write,
    lines=lines,
)
configure, run = COMMAND.configure, COMMAND.run
