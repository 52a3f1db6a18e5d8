"""Find the minimum energy path and the barrier between two structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.cli.protocol import PropertyCommand, PropertyJob, write_structure
from dpa3sim.protocols import neb


def write(folder: Path, result: neb.Result, label: str, plots: bool) -> None:
    """Write every image to its own file, all images to one, the saddle point, and the plot."""
    from ase.io import write as write_frames

    digits = max(2, len(str(len(result.images) - 1)))
    for number, image in enumerate(result.images):
        write_frames(folder / f"image-{number:0{digits}d}.extxyz", image, format="extxyz")
    write_frames(folder / "path.extxyz", list(result.images), format="extxyz")
    if result.has_barrier:
        write_structure(folder, "saddle", result.images[result.highest])
    if plots:
        from dpa3sim.report.plots.defects import plot_path

        plot_path(folder, result, label)


def lines(result: dict[str, Any]) -> list[str]:
    """The energies along the path, and the barriers."""
    table = ["image  path (Å)  energy (eV)  force along it (eV/Å)"]
    zero = result["energies_eV"][0]
    for number, (path, energy, force) in enumerate(
        zip(
            result["path_A"],
            result["energies_eV"],
            result["forces_along_path_eV_per_A"],
            strict=True,
        )
    ):
        mark = "  saddle point" if number == result["saddle_image"] else ""
        table.append(f"{number:5d}  {path:8.3f}  {energy - zero:11.4f}  {force:21.4f}{mark}")
    table.append(
        f"barrier {result['barrier_forward_eV']:.4f} eV, back "
        f"{result['barrier_backward_eV']:.4f} eV, reaction energy "
        f"{result['reaction_energy_eV']:+.4f} eV"
    )
    if result["has_barrier"]:
        table.append(f"largest force at the saddle {result['saddle_fmax_eV_per_A']:.4f} eV/Å")
    return table


EXAMPLES = """\
dpa3sim neb initial.vasp final.vasp                 # both are relaxed first
dpa3sim neb initial.vasp final.vasp --images 11 --fmax 0.02
"""
COMMAND = PropertyCommand(
    "neb",
    "nudged elastic band",
    neb.Settings,
    PropertyJob,
    plots="the path",
    structures=2,
    protocol=neb,
    write=write,
    lines=lines,
)
configure, run = COMMAND.configure, COMMAND.run
