"""Compute energies, forces and stresses of structures as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.cli.protocol import PropertyCommand, PropertyJob, write_structure
from dpa3sim.protocols import sp


def write(folder: Path, result: sp.Result, label: str, plots: bool) -> None:
    """Write the structure with its energy, forces and stress."""
    write_structure(folder, "structure", result.atoms)


def lines(result: dict[str, Any]) -> list[str]:
    """Energy, largest force, pressure."""
    energy, per_atom = result["energy_eV"], result["energy_per_atom_eV"]
    text = [
        f"energy {energy:.6f} eV ({per_atom:.6f} eV/atom)",
        f"largest force {result['fmax_eV_per_A']:.4f} eV/Å",
    ]
    if result["pressure_GPa"] is not None:
        text.append(f"pressure {result['pressure_GPa']:.4f} GPa")
    return text


EXAMPLES = """\
dpa3sim sp POSCAR --json
dpa3sim sp trajectory.extxyz --screen run           # every frame, in one database
"""
COMMAND = PropertyCommand(
    "sp",
    "single point",
    sp.Settings,
    PropertyJob,
    plots="anything (there are no plots)",
    protocol=sp,
    write=write,
    lines=lines,
    together=True,
)
configure, run = COMMAND.configure, COMMAND.run
