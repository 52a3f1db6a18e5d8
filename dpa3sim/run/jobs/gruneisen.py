"""Mode Grüneisen parameters of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.protocols import gruneisen
from dpa3sim.run.jobs.phonon import HarmonicJob, at_room_temperature, supercell_lines, write_phonopy
from dpa3sim.run.output import write_structure, write_table

if TYPE_CHECKING:
    from dpa3sim.protocols.gruneisen import Result

VOLUMES = ("", "_smaller", "_larger")


class GruneisenJob(HarmonicJob):
    """Mode Grüneisen parameters of crystals."""

    name, title, protocol = "gruneisen", "Grüneisen parameters", gruneisen

    def write(self, folder: Path, result: Result) -> None:
        """Write structures, phonopy's files of each volume, and tables."""
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

    def draw(self, folder: Path, result: Result, label: str) -> None:
        """Draw the parameters of all modes."""
        from dpa3sim.report.plots.phonons import plot_gruneisen

        plot_gruneisen(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the stored result in a few lines."""
        optical = zip(
            stored["frequencies_gamma_optical_THz"], stored["gruneisen_gamma_optical"], strict=True
        )
        shown = ", ".join(
            f"{parameter:.3f} ({frequency:.2f} THz)" for frequency, parameter in optical
        )
        text = [
            *supercell_lines(stored),
            f"optical modes at Γ: {shown or 'none'}",
            f"all modes: {stored['gruneisen_lowest']:.3f} to {stored['gruneisen_highest']:.3f}",
        ]
        at = at_room_temperature(stored)
        if at is not None:
            text.append(f"mean at 300 K, by heat capacity: {stored['gruneisen_average'][at]:.3f}")
        return text
