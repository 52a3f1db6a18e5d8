"""Compute surface energies from slabs that are cut out of the relaxed crystal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.cli.protocol import PropertyCommand, PropertyJob, write_structure
from dpa3sim.protocols import surface


def write(folder: Path, result: surface.Result, label: str, plots: bool) -> None:
    """Write the relaxed crystal, the thickest slab of each surface, and the plot."""
    write_structure(folder, "structure_relaxed", result.prepared.atoms)
    for face in result.surfaces:
        name = "slab" + "".join(f"_{n}" for n in face.miller)
        if result.settings.terminations > 1:
            name += f"-cut{face.termination}"
        write_structure(folder, name, face.slabs[-1].atoms)
    if plots:
        from dpa3sim.report.plots.defects import plot_surfaces

        plot_surfaces(folder, result, label)


def lines(result: dict[str, Any]) -> list[str]:
    """A table of all faces, sorted by energy."""
    several = result["settings"]["terminations"] > 1
    table = ["face           atoms  thickness (Å)  energy (J/m^2)  unrelaxed  fit     (eV/Å^2)"]
    for face in result["surfaces"]:
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


EXAMPLES = """\
dpa3sim surface POSCAR                              # all faces with indices 0 and ±1
dpa3sim surface POSCAR --miller 1,1,1 --miller 1,0,0 --thickness 20
"""
COMMAND = PropertyCommand(
    "surface",
    "surfaces",
    surface.Settings,
    PropertyJob,
    plots="the energies of the surfaces",
    protocol=surface,
    write=write,
    lines=lines,
)
configure, run = COMMAND.configure, COMMAND.run
