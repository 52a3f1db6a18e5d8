"""Path integral molecular dynamics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpa3sim.protocols import pimd
from dpa3sim.run.job import Job
from dpa3sim.run.output import write_structure, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from dpa3sim.protocols.pimd import Result

STRUCTURE = "structure_final"
# Of the summary: key, text, unit.
_LINES = (
    ("temperature", "temperature", "K"),
    ("potential_energy", "potential energy", "eV/atom"),
    ("kinetic_energy", "kinetic energy, centroid virial", "eV/atom"),
    ("kinetic_energy_thermodynamic", "kinetic energy, thermodynamic", "eV/atom"),
    ("pressure", "pressure", "GPa"),
    ("volume", "volume", "Å^3"),
)


class PimdJob(Job):
    """The runs of one structure, which continue from i-PI's last saved state."""

    name, title, protocol = "pimd", "path integral molecular dynamics", pimd
    settings: pimd.Settings
    EXTENDING = ("steps", "equilibration", "classical")

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether all steps are done, and averaged as requested."""
        settings = self.settings
        return bool(
            stored["n_steps"] == settings.steps
            and stored["equilibration_steps"] == settings.equilibrated(settings.steps)
            and (stored["classical"] is not None) == settings.classical
        )

    def compute(self) -> Result:
        """Run i-PI, or continue its run."""
        return pimd.run(
            self.atoms,
            self.potential,
            self.settings,
            progress=self.follow,
            folder=self.directory.path,
        )

    def write(self, folder: Path, result: Result) -> None:
        """Write the last centroids and radial distribution functions."""
        write_structure(folder, STRUCTURE, result.atoms)
        _write_radial(folder, result)

    def draw(self, folder: Path, result: Result, label: str) -> None:
        """Draw energies and radial distributions."""
        from dpa3sim.report.plots.path_integrals import plot_path_integral

        plot_path_integral(folder, result, label)

    def lines(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the result in a few lines."""
        lines = [
            f"{'; '.join(stored['reasons'])} ({stored['simulated_ps']:g} ps, {stored['beads']} "
            f"beads); averages from step {stored['equilibration_steps']}:"
        ]
        classical = stored["classical"]
        if classical:
            lines.append(f"  {'':<34}{'quantum':<22}classical")
        for name, text, unit in _LINES:
            shown = _value(stored, name)
            if shown is None:
                continue
            other = f"  {_value(classical, name) or '':<20}" if classical else ""
            lines.append(f"  {text:<34}{shown:<20}{other} {unit}")
        for element, found in stored["elements"].items():
            kinetic = _with_error(found["kinetic_energy_eV"], found["kinetic_energy_error_eV"])
            radius = found["radius_of_gyration_A"], found["radius_of_gyration_error_A"]
            lines.append(
                f"  {element:<3} kinetic energy {kinetic} eV, radius of gyration "
                f"{_with_error(*radius)} Å"
            )
        return lines


def _value(result: dict[str, Any], name: str) -> str | None:
    """A quantity of the result with its error; None if the result does not have it."""
    for ending in ("_per_atom_eV", "_K", "_GPa", "_A3"):
        if name + ending in result:
            return _with_error(result[name + ending], result[f"{name}_error{ending}"])
    return None


def _with_error(value: float, error: float | None) -> str:
    """``1.234 ± 0.005``, with the digits that the error determines."""
    if not error:
        return f"{value:.6g}"
    from math import floor, log10

    digits = max(0, 1 - floor(log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _write_radial(folder: Path, result: Result) -> None:
    """Write ``rdf.csv``, the radial distributions of the beads and of the classical run."""
    quantum, classical = result.quantum, result.classical
    if not quantum.rdf:
        return
    table = {"r_A": quantum.rdf_r.tolist()}
    table |= {name: values.tolist() for name, values in quantum.rdf.items()}
    if classical is not None:
        table |= {f"{name}_classical": values.tolist() for name, values in classical.rdf.items()}
    write_table(folder / "rdf.csv", table)
