"""Compute the elastic constants of crystals, with relaxed and with clamped ions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.cli.protocol import PropertyCommand, PropertyJob, write_structure
from dpa3sim.protocols import elastic


def write(folder: Path, result: elastic.Result, label: str, plots: bool) -> None:
    """Write the relaxed structure and the plot of the directional Young's modulus."""
    write_structure(folder, "structure_relaxed", result.prepared.atoms)
    if plots and result.moduli.born_stable:
        from dpa3sim.report.plots.properties import plot_youngs_modulus

        plot_youngs_modulus(folder, result, label)


def lines(result: dict[str, Any]) -> list[str]:
    """The tensor in the standard orientation, its quality, and the moduli."""
    relaxed = result["elastic_tensor_ieee_GPa"]
    kind = "relaxed ions" if relaxed else "clamped ions"
    text = [
        f"elastic tensor, {kind}, IEEE standard orientation (GPa; xx yy zz yz xz xy), "
        f"{result['spacegroup']}, Laue class {result['laue_class']}:"
    ]
    tensor = relaxed or result["elastic_tensor_clamped_ieee_GPa"]
    text += ["  " + " ".join(f"{_zero(value):9.2f}" for value in row) for row in tensor]
    if relaxed:
        clamped = result["elastic_tensor_clamped_ieee_GPa"]
        diagonal = " ".join(f"{clamped[i][i]:.2f}" for i in range(6))
        text.append(f"clamped ions, diagonal: {diagonal}")
    errors = result["elastic_tensor_error_GPa"] or result["elastic_tensor_clamped_error_GPa"]
    text.append(
        f"errors up to {max(map(max, errors)):.2g} GPa; deviation from symmetry up to "
        f"{result['symmetry_residual_GPa']:.2g} GPa"
    )
    hill = [result[f"{name}_modulus_hill_GPa"] for name in ("bulk", "shear")]
    text.append(
        f"Hill averages: K {hill[0]:.2f} GPa, G {hill[1]:.2f} GPa, "
        f"E {result['youngs_modulus_GPa']:.2f} GPa, Poisson {result['poisson_ratio']:.3f}; "
        f"universal anisotropy {result['universal_anisotropy']:.3f}"
    )
    stable = "mechanically stable" if result["born_stable"] else "mechanically UNSTABLE"
    debye = result["debye_temperature_K"]
    text.append(stable + (f", Debye temperature {debye:.0f} K" if debye else ""))
    return text


def _zero(value: float) -> float:
    """The value, without the sign that rounding leaves on a zero of symmetry."""
    return value if abs(value) >= 0.005 else 0.0


EXAMPLES = """\
dpa3sim elastic POSCAR                              # relaxed and clamped ions
dpa3sim elastic POSCAR --strain 1 --no-relax-ions   # larger strains, clamped ions only
"""
COMMAND = PropertyCommand(
    "elastic",
    "elastic constants",
    elastic.Settings,
    PropertyJob,
    plots="the directional Young's modulus",
    protocol=elastic,
    write=write,
    lines=lines,
)
configure, run = COMMAND.configure, COMMAND.run
