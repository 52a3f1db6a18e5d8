"""Reference crystals: lattice, bulk modulus, elastic constants, phonons, beside measured values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.common.errors import Dpa3simError
from dpa3sim.protocols.base import Event, Progress, Stage, silent
from dpa3sim.validate.check import Findings
from dpa3sim.validate.literature import CRYSTALS, THZ, Crystal

if TYPE_CHECKING:
    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.protocols import elastic, eos, phonon
    from dpa3sim.validate.settings import ValidateSettings


def known(elements: Sequence[str], settings: ValidateSettings) -> dict[str, Crystal]:
    """The crystals that were asked for and consist of these elements."""
    numbers = {ATOMIC_NUMBERS[symbol] for symbol in elements}
    wanted = settings.crystals.split()
    return {
        name: crystal
        for name, crystal in CRYSTALS.items()
        if name in wanted and numbers.issuperset(crystal.atoms(name).numbers)
    }


def stages(elements: Sequence[str], settings: ValidateSettings, cutoff: float) -> list[Stage]:
    """See :class:`~dpa3sim.validate.check.Check`."""
    from dpa3sim.protocols import elastic, eos, phonon

    found: list[Stage] = []
    for name, crystal in known(elements, settings).items():
        atoms = crystal.atoms(name)
        for module, options in (
            (eos, _eos(settings)),
            (elastic, _elastic(settings)),
            (phonon, _phonon(settings)),
        ):
            found += module.stages(atoms, options, cutoff)
    return found


def run(potential: BatchPotential, settings: ValidateSettings, progress: Progress) -> Findings:
    """See :class:`~dpa3sim.validate.check.Check`.

    An error of one crystal is a problem, and the others go on.
    """
    crystals = known(potential.model.elements, settings)
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    problems: list[str] = []
    for done, (name, crystal) in enumerate(crystals.items()):
        row: dict[str, Any] = {"crystal": name}
        for part in (_equation, _constants, _phonons):
            try:
                row |= part(name, crystal, potential, settings, problems)
            except Dpa3simError as error:
                problems.append(f"{name}: {error}")
        rows.append(row)
        if row.get("verdict") == "unstable":
            warnings.append(
                f"{name} is unstable: lowest frequency {row['lowest_frequency_THz']:.2f} THz"
            )
        if row.get("born_stable") is False:
            warnings.append(f"{name} is elastically unstable")
        progress(Event("crystals", name, done + 1, len(crystals)))
    if not crystals:
        warnings.append(
            f"no reference crystal consists of the elements of this model: "
            f"{' '.join(potential.model.elements)}"
        )
    values = {"crystals": rows, **deviations(rows)}
    return Findings(values, tuple(warnings), tuple(problems))


def deviations(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean absolute deviations from measured values, %, of what was computed."""
    groups = {
        "lattice": ("lattice_A",),
        "bulk_modulus": ("bulk_modulus_GPa",),
        "elastic": ("C11_GPa", "C12_GPa", "C44_GPa", "C33_GPa", "C13_GPa"),
        "optical_mode": ("optical_mode_THz",),
    }
    found: dict[str, float | None] = {}
    for name, keys in groups.items():
        values = [
            100 * abs(row[key] / row[f"measured_{key}"] - 1)
            for row in rows
            for key in keys
            if row.get(key) is not None and f"measured_{key}" in row
        ]
        found[f"deviation_{name}_percent"] = float(np.mean(values)) if values else None
    return found


def _eos(settings: ValidateSettings) -> eos.Settings:
    from dpa3sim.protocols import eos

    return eos.Settings(dtype=settings.dtype)


def _elastic(settings: ValidateSettings) -> elastic.Settings:
    from dpa3sim.protocols import elastic

    return elastic.Settings(dtype=settings.dtype)


def _phonon(settings: ValidateSettings) -> phonon.Settings:
    from dpa3sim.protocols import phonon

    return phonon.Settings(dtype=settings.dtype, supercell=settings.supercell)


def _equation(
    name: str,
    crystal: Crystal,
    potential: BatchPotential,
    settings: ValidateSettings,
    problems: list[str],
) -> dict[str, Any]:
    """Lattice and bulk modulus; a constant pressure of the stress shows whether both agree."""
    from dpa3sim.protocols import eos

    result = eos.run(crystal.atoms(name), potential, _eos(settings), progress=silent)
    data = result.to_dict()
    if not result.converged:
        problems.append(f"{name}, equation of state: {'; '.join(result.reasons)}")
    return {
        "lattice_A": lattice(data["conventional_lengths_A"])[0],
        "measured_lattice_A": crystal.lattice[0],
        "bulk_modulus_GPa": data.get("bulk_modulus_GPa"),
        "measured_bulk_modulus_GPa": crystal.bulk_modulus,
        "bulk_modulus_derivative": data.get("bulk_modulus_derivative"),
    }


def _constants(
    name: str,
    crystal: Crystal,
    potential: BatchPotential,
    settings: ValidateSettings,
    problems: list[str],
) -> dict[str, Any]:
    from dpa3sim.protocols import elastic

    result = elastic.run(crystal.atoms(name), potential, _elastic(settings), progress=silent)
    if not result.converged:
        problems.append(f"{name}, elastic constants: {'; '.join(result.reasons)}")
    found = constants(crystal, result.to_dict()["elastic_tensor_ieee_GPa"])
    row: dict[str, Any] = {"born_stable": result.moduli.born_stable}
    for key, value in crystal.elastic.items():
        row |= {f"{key}_GPa": found[key], f"measured_{key}_GPa": value}
    return row


def _phonons(
    name: str,
    crystal: Crystal,
    potential: BatchPotential,
    settings: ValidateSettings,
    problems: list[str],
) -> dict[str, Any]:
    from dpa3sim.protocols import phonon

    result = phonon.run(crystal.atoms(name), potential, _phonon(settings), progress=silent)
    if not result.converged:
        problems.append(f"{name}, phonons: {'; '.join(result.reasons)}")
    row: dict[str, Any] = {
        "verdict": result.verdict.state,
        "lowest_frequency_THz": result.verdict.lowest,
        "n_atoms_supercell": len(result.phonon.supercell),
    }
    if crystal.mode is not None:
        irrep, wave_number = crystal.mode
        found = [m.frequency for m in result.modes if m.irrep == irrep and not m.acoustic]
        row["optical_mode_THz"] = max(found, default=None)
        row["measured_optical_mode_THz"] = wave_number * THZ
    return row


def constants(crystal: Crystal, tensor: Any) -> dict[str, float]:
    """Means of the constants that are equal in the crystal, and how much they differ, GPa.

    Args:
        crystal: cubic or hexagonal. tensor: ``(6, 6)`` GPa in its standard orientation.
    """
    c = np.asarray(tensor, dtype=float)
    if "C33" not in crystal.elastic:
        groups = {"C11": [(0, 0), (1, 1), (2, 2)], "C12": [(0, 1), (0, 2), (1, 2)]}
        groups["C44"] = [(3, 3), (4, 4), (5, 5)]
    else:
        groups = {"C11": [(0, 0), (1, 1)], "C12": [(0, 1)], "C44": [(3, 3), (4, 4)]}
        groups |= {"C33": [(2, 2)], "C13": [(0, 2), (1, 2)]}
    values = {key: [c[place] for place in places] for key, places in groups.items()}
    spread = max(float(np.ptp(v)) for v in values.values())
    return {key: float(np.mean(v)) for key, v in values.items()} | {"spread": spread}


def lattice(lengths: Any) -> list[float]:
    """The different ones of a, b, c, Å."""
    a, _, c = lengths
    return [a] if abs(c / a - 1) < 0.01 else [a, c]
