"""Compute the equation of state of crystals: equilibrium volume, bulk modulus, its derivative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.cli.protocol import PropertyCommand, PropertyJob, write_structure, write_table
from dpa3sim.protocols import eos


def write(folder: Path, result: eos.Result, label: str, plots: bool) -> None:
    """Write the relaxed structure, the structures and numbers of all volumes, and the plot."""
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
    if plots:
        from dpa3sim.report.plots.properties import plot_eos

        plot_eos(folder, result, label)


def lines(result: dict[str, Any]) -> list[str]:
    """The fits as a table."""
    table = [
        f"{'equation':<16}  {'V0 (Å^3/atom)':>13}  {'B0 (GPa)':>17}  {'B0′':>15}  rms (meV/atom)"
    ]
    for name, fit in result["fits"].items():
        b0 = f"{fit['bulk_modulus_GPa']:.2f} ± {fit['bulk_modulus_error_GPa']:.2f}"
        b1 = f"{fit['bulk_modulus_derivative']:.2f} ± {fit['bulk_modulus_derivative_error']:.2f}"
        table.append(
            f"{name:<16}  {fit['volume_per_atom_A3']:13.4f}  {b0:>17}  {b1:>15}  "
            f"{1000 * fit['rms_per_atom_eV']:.4f}"
        )
    return table


EXAMPLES = """\
dpa3sim eos POSCAR                                  # nine volumes within 6 %
dpa3sim eos POSCAR --volume-range 3 --points 7 --equation birch-murnaghan
"""
COMMAND = PropertyCommand(
    "eos",
    "equation of state",
    eos.Settings,
    PropertyJob,
    plots="the equation of state",
    protocol=eos,
    write=write,
    lines=lines,
)
configure, run = COMMAND.configure, COMMAND.run
