"""Equations of state of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.protocols import eos
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure, write_table


class EosJob(PropertyJob):
    """Equations of state of crystals."""

    name, title, protocol = "eos", "equation of state", eos

    def write(self, folder: Path, result: eos.Result) -> None:
        """Write the relaxed structure, and the structures and numbers of all volumes."""
        from ase.io import write as write_frames

        write_structure(folder, "structure_relaxed", result.prepared.atoms)
        write_frames(folder / "volumes.extxyz", list(result.structures), format="extxyz")
        write_table(
            folder / "volumes.csv",
            {
                "volume_per_atom_A3": result.volumes.tolist(),
                "energy_per_atom_eV": result.energies.tolist(),
                "pressure_GPa": result.pressures.tolist(),
            },
        )

    def draw(self, folder: Path, result: eos.Result, label: str) -> None:
        """Draw the fits and their residuals."""
        from dpa3sim.report.plots.properties import plot_eos

        plot_eos(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """The fits as a table."""
        table = [
            f"{'equation':<16}  {'V0 (Å^3/atom)':>13}  {'B0 (GPa)':>17}  {'B0′':>15}  "
            "rms (meV/atom)"
        ]
        for name, fit in stored["fits"].items():
            b0 = f"{fit['bulk_modulus_GPa']:.2f} ± {fit['bulk_modulus_error_GPa']:.2f}"
            b1 = (
                f"{fit['bulk_modulus_derivative']:.2f} ± {fit['bulk_modulus_derivative_error']:.2f}"
            )
            table.append(
                f"{name:<16}  {fit['volume_per_atom_A3']:13.4f}  {b0:>17}  {b1:>15}  "
                f"{1000 * fit['rms_per_atom_eV']:.4f}"
            )
        return table
