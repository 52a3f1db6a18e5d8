"""Elastic constants of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.protocols import elastic
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure


class ElasticJob(PropertyJob):
    """Elastic constants of crystals."""

    name, title, protocol = "elastic", "elastic constants", elastic

    def write(self, folder: Path, result: elastic.Result) -> None:
        """Write the relaxed structure."""
        write_structure(folder, "structure_relaxed", result.prepared.atoms)

    def draw(self, folder: Path, result: elastic.Result, label: str) -> None:
        """Draw the directional Young's modulus, which only a stable crystal has."""
        from dpa3sim.report.plots.properties import plot_youngs_modulus

        if result.moduli.born_stable:
            plot_youngs_modulus(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """The tensor in the standard orientation, its quality, and the moduli."""
        relaxed = stored["elastic_tensor_ieee_GPa"]
        kind = "relaxed ions" if relaxed else "clamped ions"
        text = [
            f"elastic tensor, {kind}, IEEE standard orientation (GPa; xx yy zz yz xz xy), "
            f"{stored['spacegroup']}, Laue class {stored['laue_class']}:"
        ]
        tensor = relaxed or stored["elastic_tensor_clamped_ieee_GPa"]
        text += ["  " + " ".join(f"{_zero(value):9.2f}" for value in row) for row in tensor]
        if relaxed:
            clamped = stored["elastic_tensor_clamped_ieee_GPa"]
            diagonal = " ".join(f"{clamped[i][i]:.2f}" for i in range(6))
            text.append(f"clamped ions, diagonal: {diagonal}")
        errors = stored["elastic_tensor_error_GPa"] or stored["elastic_tensor_clamped_error_GPa"]
        text.append(
            f"errors up to {max(map(max, errors)):.2g} GPa; deviation from symmetry up to "
            f"{stored['symmetry_residual_GPa']:.2g} GPa"
        )
        hill = [stored[f"{name}_modulus_hill_GPa"] for name in ("bulk", "shear")]
        text.append(
            f"Hill averages: K {hill[0]:.2f} GPa, G {hill[1]:.2f} GPa, "
            f"E {stored['youngs_modulus_GPa']:.2f} GPa, Poisson {stored['poisson_ratio']:.3f}; "
            f"universal anisotropy {stored['universal_anisotropy']:.3f}"
        )
        stable = "mechanically stable" if stored["born_stable"] else "mechanically UNSTABLE"
        debye = stored["debye_temperature_K"]
        text.append(stable + (f", Debye temperature {debye:.0f} K" if debye else ""))
        return text


def _zero(value: float) -> float:
    """The value, without the sign that rounding leaves on a zero of symmetry."""
    return value if abs(value) >= 0.005 else 0.0
