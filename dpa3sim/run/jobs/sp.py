"""Energies, forces and stresses of structures as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.protocols import sp
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure


class SinglePointJob(PropertyJob):
    """Energies, forces and stresses of structures as they are."""

    name, title, protocol = "sp", "single point", sp
    together = True

    def write(self, folder: Path, result: sp.Result) -> None:
        """Write the structure with its energy, forces and stress."""
        write_structure(folder, "structure", result.atoms)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """Energy, largest force, pressure."""
        energy, per_atom = stored["energy_eV"], stored["energy_per_atom_eV"]
        text = [
            f"energy {energy:.6f} eV ({per_atom:.6f} eV/atom)",
            f"largest force {stored['fmax_eV_per_A']:.4f} eV/Å",
        ]
        if stored["pressure_GPa"] is not None:
            text.append(f"pressure {stored['pressure_GPa']:.4f} GPa")
        return text
