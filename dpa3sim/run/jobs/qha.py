"""Thermal expansion of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.protocols import qha
from dpa3sim.run.jobs.phonon import (
    ROOM_TEMPERATURE,
    HarmonicJob,
    columns,
    supercell_lines,
    write_phonopy,
)
from dpa3sim.run.output import write_structure, write_table

if TYPE_CHECKING:
    from dpa3sim.protocols.qha import Result


class QhaJob(HarmonicJob):
    """Thermal expansion of crystals."""

    name, title, protocol = "qha", "quasi-harmonic approximation", qha

    def write(self, folder: Path, result: Result) -> None:
        """Write structures, phonopy's files of each volume, and tables."""
        write_structure(folder, "structure_relaxed", result.prepared.atoms)
        for number, crystal in enumerate(result.crystals):
            ending = f"_{number:02d}"
            write_structure(folder, f"structure_primitive{ending}", crystal.atoms)
            write_phonopy(folder, crystal, ending)
        data = result.to_dict()
        write_table(folder / "quasi_harmonic.csv", columns(data))
        free = result.found.helmholtz_volume[: result.kept].T / len(result.crystals[0].atoms)
        names = [f"{volume:.6f}" for volume in data["grid_volumes_per_atom_A3"]]
        write_table(
            folder / "free_energy_volume.csv",
            {
                "temperature_K": data["temperatures_K"],
                **{
                    f"free_energy_per_atom_eV_at_{n}_A3": f.tolist()
                    for n, f in zip(names, free, strict=True)
                },
            },
        )

    def draw(self, folder: Path, result: Result, label: str) -> None:
        """Draw volume, expansion, bulk modulus and heat capacity against temperature."""
        from dpa3sim.report.plots.phonons import plot_qha

        plot_qha(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the stored result in a few lines."""
        text = supercell_lines(stored)
        t = stored["temperatures_K"]
        wanted = {0.0, ROOM_TEMPERATURE, t[-1]}
        for i in (i for i, value in enumerate(t) if any(abs(value - w) < 1e-6 for w in wanted)):
            parts = [
                f"{t[i]:g} K: volume {stored['volume_per_atom_A3'][i]:.4f} Å^3/atom",
                f"bulk modulus {stored['bulk_modulus_GPa'][i]:.2f} GPa",
            ]
            if i > 0:
                alpha = 1e6 * stored["thermal_expansion_volumetric_per_K"][i]
                cp = stored["heat_capacity_cp_per_atom_J_per_K_mol"][i]
                parts += [
                    f"expansion {alpha:.2f}e-6/K (of the volume)",
                    f"Cp {cp:.3f} J/K/mol/atom",
                ]
            text.append(", ".join(parts))
        return text
