"""Thermal conductivities of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.protocols import kappa
from dpa3sim.run.jobs.phonon import HarmonicJob
from dpa3sim.run.output import write_structure, write_table

if TYPE_CHECKING:
    from dpa3sim.protocols.anharmonics.transport import Transport
    from dpa3sim.protocols.base import Event
    from dpa3sim.protocols.kappa import Result

# Points of the tables over mean free paths and frequencies.
TABLE_POINTS = 200


class KappaJob(HarmonicJob):
    """Thermal conductivities of crystals."""

    name, title, protocol = "kappa", "thermal conductivity", kappa

    def write(self, folder: Path, result: Result) -> None:
        """Write structures, phono3py's files and tables."""
        write_structure(folder, "structure_relaxed", result.prepared.atoms)
        write_structure(folder, "structure_primitive", result.crystal.atoms)
        result.crystal.phonon.write_yaml_band_structure(filename=folder / "band.yaml")
        if result.third is None or result.transport is None:
            return
        write_phono3py(folder, result.third.ph3)
        write_modes(folder, result.transport, result.third.ph3)
        _write_tables(folder, result.transport)

    def draw(self, folder: Path, result: Result, label: str) -> None:
        """Draw conductivity against temperature, mean free path and frequency."""
        from dpa3sim.report.plots.conduction import plot_conduction

        if result.transport is not None:
            plot_conduction(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the stored result in a few lines."""
        a, b, c = stored["conventional_lengths_A"]
        text = [
            f"{stored['spacegroup']}, conventional a {a:.4f}  b {b:.4f}  c {c:.4f} Å",
            f"frequencies from {stored['lowest_frequency_THz']:.3f} THz, {stored['verdict']}",
        ]
        if stored["thermal_conductivity_W_per_m_K"] is None:
            return [*text, "no thermal conductivity"]
        mesh = "x".join(map(str, stored["mesh"]))
        return [
            *text,
            f"third order: {stored['n_displacements']} {stored['displacements']} displacements of "
            f"{stored['distance_fc3_A']:.3g} Å in {stored['n_atoms_supercell']} atoms",
            *_conductivity_lines(stored),
            f"mesh {mesh}: {stored['mesh_change_percent']:+.1f} % from one coarser by a third; "
            f"without third order beyond {kappa.REACH:g} Å: "
            f"{stored['fc3_cut_5A_change_percent']:+.1f} %",
        ]

    def _record(self, event: Event) -> None:
        """Tell of wave vectors now and then only, since there are hundreds."""
        if event.total and not event.stage.startswith("relax"):
            with self._lock:
                self.follow(event)
        else:
            super()._record(event)


def write_phono3py(folder: Path, ph3: Any) -> None:
    """Write what ``phono3py`` loads: cells, displacements, forces, force constants."""
    from phono3py.file_IO import write_fc2_to_hdf5, write_fc3_to_hdf5

    ph3.save(folder / "phono3py_params.yaml", settings={"force_sets": True})
    # The cells alone, for phono3py-kaccum.
    ph3.save(folder / "phono3py.yaml", settings={"force_sets": False, "displacements": False})
    p2s = ph3.primitive.p2s_map
    write_fc3_to_hdf5(ph3.fc3, filename=str(folder / "fc3.hdf5"), p2s_map=p2s)
    write_fc2_to_hdf5(
        ph3.fc2,
        filename=str(folder / "fc2.hdf5"),
        p2s_map=ph3.phonon_primitive.p2s_map,
        physical_unit="eV/angstrom^2",
    )


def write_modes(folder: Path, transport: Transport, ph3: Any) -> None:
    """Write ``kappa-mXYZ.hdf5`` with the names of phono3py, whose own function takes no folder."""
    import h5py
    from phono3py.conductivity.utils import get_unit_to_WmK

    found = transport.calculator
    mesh = "".join(map(str, transport.mesh))
    content = {
        "temperature": found.temperatures,
        "mesh": transport.mesh,
        "kappa": found.kappa[0],
        "mode_kappa": _mode_kappa(found, transport),
        "gamma": found.gamma[0],
        "gamma_isotope": None if found.gamma_isotope is None else found.gamma_isotope[0],
        "frequency": transport.frequencies,
        "group_velocity": transport.velocities,
        "gv_by_gv": getattr(found, "gv_by_gv", None),
        "heat_capacity": found.mode_heat_capacities,
        "qpoint": transport.q_points,
        "weight": transport.weights,
        "grid_point": found.grid_points,
        "boundary_mfp": transport.scattering.boundary,
        "kappa_unit_conversion": get_unit_to_WmK() / ph3.primitive.volume,
        "version": np.bytes_(ph3.version),
    }
    grid = found.bz_grid
    if grid.grid_matrix is not None:
        content |= {"grid_matrix": grid.grid_matrix, "P_matrix": grid.P, "Q_matrix": grid.Q}
    with h5py.File(folder / f"kappa-m{mesh}.hdf5", "w") as file:
        for name, data in content.items():
            if data is not None:
                file.create_dataset(name, data=data)


def _mode_kappa(found: Any, transport: Transport) -> np.ndarray:
    """What bands conduct ``(n_temperatures, n, bands, 6)``, pairs of bands left out."""
    if transport.coherences is not None:
        return np.asarray(np.einsum("tqiic->tqic", found.mode_kappa_matrix[0]))
    return np.asarray(found.mode_kappa[0])


def _write_tables(folder: Path, transport: Transport) -> None:
    """Write the conductivity over temperatures, and over mean free paths and frequencies."""
    tensors = transport.tensors
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    places = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    table = {"temperature_K": list(transport.scattering.temperatures)}
    table |= {
        f"kappa_{name}_W_per_m_K": tensors[:, i, j].tolist()
        for name, (i, j) in zip(names, places, strict=True)
    }
    write_table(folder / "kappa.csv", table)
    at = transport.scattering.nearest(kappa.ROOM_TEMPERATURE)
    paths, conducted = transport.cumulative(at)
    chosen = np.unique(np.linspace(0, len(paths) - 1, TABLE_POINTS).astype(int))
    write_table(
        folder / "kappa_cumulative.csv",
        {
            "mean_free_path_nm": paths[chosen].tolist(),
            "kappa_up_to_W_per_m_K": conducted[chosen].tolist(),
        },
    )
    frequencies, spectrum = transport.spectrum(at)
    write_table(
        folder / "kappa_spectrum.csv",
        {
            "frequency_THz": frequencies.tolist(),
            "kappa_W_per_m_K_THz": spectrum.tolist(),
        },
    )


def _conductivity_lines(stored: dict[str, Any]) -> list[str]:
    """The conductivity next to room temperature, and along axes where these differ."""
    temperatures = np.array(stored["temperatures_K"])
    at = int(np.abs(temperatures - kappa.ROOM_TEMPERATURE).argmin())
    tensor = np.array(stored["thermal_conductivity_tensor_W_per_m_K"][at])
    values = np.linalg.eigvalsh(tensor)
    axes = ""
    if np.ptp(values) > 1e-3 * values.max():
        axes = f" (principal values {', '.join(f'{v:.4g}' for v in values)})"
    lines = [
        f"kappa at {temperatures[at]:g} K: {stored['thermal_conductivity_W_per_m_K'][at]:.4g} "
        f"W/m/K{axes}, {stored['transport']}{'' if stored['isotopes'] else ', without isotopes'}"
    ]
    parts = {
        "coherences": stored["thermal_conductivity_coherences_tensor_W_per_m_K"],
        "without isotopes": stored["thermal_conductivity_without_isotopes_tensor_W_per_m_K"],
    }
    told = [
        f"{name} {np.trace(np.array(part[at])) / 3:.4g}" for name, part in parts.items() if part
    ]
    half = stored["mean_free_path_of_half_nm"][at]
    told.append(f"half of it by mean free paths below {half:.4g} nm")
    return [*lines, "; ".join(told)]
