"""Surface energies of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.protocols import surface
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure


class SurfaceJob(PropertyJob):
    """Surface energies of crystals."""

    name, title, protocol = "surface", "surfaces", surface

    def write(self, folder: Path, result: surface.Result) -> None:
        """Write the relaxed crystal and the thickest slab of each surface."""
        write_structure(folder, "structure_relaxed", result.prepared.atoms)
        for face in result.surfaces:
            name = "slab" + "".join(f"_{n}" for n in face.miller)
            if result.settings.terminations > 1:
                name += f"-cut{face.termination}"
            write_structure(folder, name, face.slabs[-1].atoms)

    def draw(self, folder: Path, result: surface.Result, label: str) -> None:
        """Draw the energies of all faces, and against the thickness."""
        from dpa3sim.report.plots.defects import plot_surfaces

        plot_surfaces(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """A table of all faces, sorted by energy."""
        several = stored["settings"]["terminations"] > 1
        table = ["face           atoms  thickness (Å)  energy (J/m^2)  unrelaxed  fit     (eV/Å^2)"]
        for face in stored["surfaces"]:
            name = "(" + " ".join(str(n) for n in face["miller"]) + ")"
            if several:
                name += f" cut {face['termination']}"
            fit = face.get("surface_energy_fit_J_per_m2")
            table.append(
                f"{name:<14} {face['n_atoms_slab']:5d}  {face['thickness_A']:13.2f}  "
                f"{face['surface_energy_J_per_m2']:14.4f}  "
                f"{face['surface_energy_unrelaxed_J_per_m2']:9.4f}  "
                f"{'-' if fit is None else format(fit, '.4f'):<6}  "
                f"{face['surface_energy_eV_per_A2']:.5f}"
            )
        return table
