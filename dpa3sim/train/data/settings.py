"""Options of reading training data."""

from __future__ import annotations

from dataclasses import dataclass

from dpa3sim.common.settings import option, validate


@dataclass(frozen=True)
class DataSettings:
    """How labels are called, and what is done with bad frames."""

    energy_key: str | None = option(
        None,
        "name of the energy (eV) in extended XYZ files, trajectories and databases "
        "[REF_energy, energy, total_energy, dft_energy or free_energy]",
    )
    forces_key: str | None = option(
        None,
        "name of the forces (eV/Å) there [REF_forces, forces, force, dft_forces or dft_force]",
    )
    stress_key: str | None = option(
        None, "name of the stress (eV/Å^3, sign of ASE) there [REF_stress, stress or dft_stress]"
    )
    virial_key: str | None = option(
        None,
        "name of the virial (eV, -dE/dstrain) there "
        "[REF_virials, REF_virial, virials, virial or dft_virial]",
    )
    skip_bad: bool = option(False, "list bad frames and leave them out, instead of refusing them")
    outlier_sigma: float = option(
        6.0,
        "a frame is bad if its energy per atom differs from a fit to the compositions of all "
        "frames by more than so many robust standard deviations; 0 accepts any energy",
        minimum=0.0,
    )

    def __post_init__(self) -> None:
        validate(self)
