"""Phonons of crystals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import DONE, UNPHYSICAL
from dpa3sim.protocols import phonon
from dpa3sim.protocols.harmonics import imaginary
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure, write_table

if TYPE_CHECKING:
    from dpa3sim.protocols.harmonics.force_constants import Harmonic
    from dpa3sim.protocols.phonon import Result

ROOM_TEMPERATURE = 300.0


class HarmonicJob(PropertyJob):
    """A property that may depend on a file with Born charges."""

    def _summary(self) -> dict[str, Any]:
        """Everything that affects the result, including the content of that file."""
        summary = super()._summary()
        if self.settings.born is not None:
            content = Path(self.settings.born).read_bytes()
            summary["born_sha256"] = hashlib.sha256(content).hexdigest()
        return summary


class PhononJob(HarmonicJob):
    """Phonons, which fail for an unstable crystal if that is requested."""

    name, title, protocol = "phonon", "phonons", phonon

    def exit_code(self, stored: dict[str, Any]) -> int:
        """The code is 4 for an unstable crystal with ``imaginary=error``."""
        code = super().exit_code(stored)
        unstable = stored["verdict"] == imaginary.UNSTABLE
        if code == DONE and unstable and self.settings.imaginary == "error":
            return UNPHYSICAL
        return code

    def write(self, folder: Path, result: Result) -> None:
        """Write structures, phonopy's files and tables."""
        from phonopy.phonon.dos import write_projected_dos, write_total_dos

        write_structure(folder, "structure_relaxed", result.prepared.atoms)
        write_structure(folder, "structure_primitive", result.crystal.atoms)
        if result.child is not None:
            write_structure(folder, "structure_child", result.child.atoms)
        write_phonopy(folder, result.crystal)
        found = result.phonon
        found.write_yaml_band_structure(filename=folder / "band.yaml")
        dos = result.dos
        write_total_dos(dos.frequencies, dos.total, filename=folder / "total_dos.dat")
        write_projected_dos(dos.frequencies, dos.projected, filename=folder / "projected_dos.dat")
        found.write_yaml_thermal_properties(filename=folder / "thermal_properties.yaml")
        thermal = result.thermal.to_dict(result.prepared.cells)
        write_table(folder / "thermal_properties.csv", columns(thermal))

    def draw(self, folder: Path, result: Result, label: str) -> None:
        """Draw bands, densities of states and thermal properties."""
        from dpa3sim.report.plots.phonons import plot_bands, plot_thermal

        plot_bands(folder, result, label)
        plot_thermal(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the stored result in a few lines."""
        optical = [mode for mode in stored["modes_gamma"] if not mode["acoustic"]]
        shown = ", ".join(
            f"{mode['frequency_THz']:.3f}{' ' + mode['irrep'] if mode['irrep'] else ''}"
            for mode in optical[:12]
        )
        more = f" and {len(optical) - 12} more" if len(optical) > 12 else ""
        text = [
            *supercell_lines(stored),
            f"optical modes at Γ: {shown or 'none'}{more} {'THz' if shown else ''}".rstrip(),
            f"frequencies {stored['lowest_frequency_THz']:.3f} to "
            f"{stored['highest_frequency_THz']:.3f} THz, {stored['verdict']}",
        ]
        text += _thermal_lines(stored)
        if "child_found" in stored:
            text.append(
                f"along the imaginary mode: {stored['child_spacegroup']}, "
                f"{1000 * stored['child_energy_gain_per_atom_eV']:.3f} meV/atom lower"
            )
        return text


def write_phonopy(folder: Path, crystal: Harmonic, ending: str = "") -> None:
    """Write what ``phonopy`` loads: cells, forces, symmetrized force constants."""
    from phonopy.file_IO import write_force_constants_to_hdf5, write_FORCE_SETS

    found = crystal.phonon
    found.save(
        folder / f"phonopy{ending}.yaml", settings={"force_sets": False, "force_constants": False}
    )
    if found.dataset is not None:
        write_FORCE_SETS(found.dataset, folder / f"FORCE_SETS{ending}")
    assert found.force_constants is not None
    write_force_constants_to_hdf5(
        found.force_constants,
        str(folder / f"force_constants{ending}.hdf5"),
        p2s_map=found.primitive.p2s_map,
        physical_unit="eV/angstrom^2",
    )


def columns(data: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """The entries with one value for each temperature."""
    length = len(data["temperatures_K"])
    return {k: v for k, v in data.items() if isinstance(v, list) and len(v) == length}


def supercell_lines(result: dict[str, Any]) -> list[str]:
    """The lines about the crystal and the supercell."""
    width = min(result["supercell_widths_A"])
    count = result["n_displacements"]
    how = f"finite displacements: {count}" if count else "analytic second derivatives"
    a, b, c = result["conventional_lengths_A"]
    return [
        f"{result['spacegroup']}, conventional a {a:.4f}  b {b:.4f}  c {c:.4f} Å",
        f"supercell of {result['n_atoms_supercell']} atoms, {width:.1f} Å wide; {how}",
    ]


def at_room_temperature(result: dict[str, Any]) -> int | None:
    """The index of 300 K in the list of temperatures; None if it is not in the list."""
    found = (i for i, t in enumerate(result["temperatures_K"]) if abs(t - ROOM_TEMPERATURE) < 1e-6)
    return next(found, None)


def _thermal_lines(result: dict[str, Any]) -> list[str]:
    at = at_room_temperature(result)
    if at is None:
        return []
    capacity = result["heat_capacity_per_atom_J_per_K_mol"][at]
    entropy = result["entropy_per_atom_J_per_K_mol"][at]
    zero = 1000 * result["zero_point_energy_per_atom_eV"]
    return [
        f"per atom: zero-point energy {zero:.2f} meV; at 300 K heat capacity {capacity:.3f} and "
        f"entropy {entropy:.3f} J/K/mol"
    ]
