"""Minimum energy paths between two structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.protocols import neb
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure


class NebJob(PropertyJob):
    """Minimum energy paths between two structures."""

    name, title, protocol = "neb", "nudged elastic band", neb
    structures = 2
    screens = False

    def write(self, folder: Path, result: neb.Result) -> None:
        """Write every image to its own file, all images to one, and the saddle point."""
        from ase.io import write as write_frames

        digits = max(2, len(str(len(result.images) - 1)))
        for number, image in enumerate(result.images):
            write_frames(folder / f"image-{number:0{digits}d}.extxyz", image, format="extxyz")
        write_frames(folder / "path.extxyz", list(result.images), format="extxyz")
        if result.has_barrier:
            write_structure(folder, "saddle", result.images[result.highest])

    def draw(self, folder: Path, result: neb.Result, label: str) -> None:
        """Draw the energy along the path."""
        from dpa3sim.report.plots.defects import plot_path

        plot_path(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """The energies along the path, and the barriers."""
        table = ["image  path (Å)  energy (eV)  force along it (eV/Å)"]
        zero = stored["energies_eV"][0]
        for number, (path, energy, force) in enumerate(
            zip(
                stored["path_A"],
                stored["energies_eV"],
                stored["forces_along_path_eV_per_A"],
                strict=True,
            )
        ):
            mark = "  saddle point" if number == stored["saddle_image"] else ""
            table.append(f"{number:5d}  {path:8.3f}  {energy - zero:11.4f}  {force:21.4f}{mark}")
        table.append(
            f"barrier {stored['barrier_forward_eV']:.4f} eV, back "
            f"{stored['barrier_backward_eV']:.4f} eV, reaction energy "
            f"{stored['reaction_energy_eV']:+.4f} eV"
        )
        if stored["has_barrier"]:
            table.append(f"largest force at the saddle {stored['saddle_fmax_eV_per_A']:.4f} eV/Å")
        return table
