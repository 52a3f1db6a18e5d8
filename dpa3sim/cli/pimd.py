"""Run path integral molecular dynamics, with quantum nuclei, with i-PI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpa3sim.cli.protocol import Command, Job, write_structure, write_table
from dpa3sim.protocols import pimd

if TYPE_CHECKING:
    from pathlib import Path

    from dpa3sim.protocols.base import Stage
    from dpa3sim.protocols.dynamics.path_integrals import Result

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

    settings: pimd.Settings
    EXTENDING = ("steps", "equilibration", "classical")

    def check(self) -> None:
        """Raise InputError if the settings do not fit the structure."""
        pimd.check(self.atoms, self.settings)

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether all steps are done, and averaged as requested."""
        settings = self.settings
        return bool(
            stored["n_steps"] == settings.steps
            and stored["equilibration_steps"] == settings.equilibrated(settings.steps)
            and (stored["classical"] is not None) == settings.classical
        )

    def stages(self) -> list[Stage]:
        """What the protocol is going to evaluate."""
        found: list[Stage] = pimd.stages(self.atoms, self.settings, self.cutoff)
        return found

    def compute(self) -> Result:
        """Run i-PI, or continue its run."""
        return pimd.run(
            self.atoms,
            self.potential,
            self.settings,
            progress=self.follow,
            folder=self.directory.path,
        )

    def write(self, result: Result) -> None:
        """Write the last centroids, radial distribution functions and plots."""
        folder = self.directory.path
        write_structure(folder, STRUCTURE, result.atoms)
        _write_radial(folder, result)
        if not self.args.no_plot:
            from dpa3sim.report.plots.path_integrals import plot_path_integral

            plot_path_integral(folder, result, self.source.label)

    def summary_lines(self, result: dict[str, Any]) -> list[str]:
        """A summary of the result in a few lines."""
        lines = [
            f"{'; '.join(result['reasons'])} ({result['simulated_ps']:g} ps, {result['beads']} "
            f"beads); averages from step {result['equilibration_steps']}:"
        ]
        classical = result["classical"]
        if classical:
            lines.append(f"  {'':<34}{'quantum':<22}classical")
        for name, text, unit in _LINES:
            shown = _value(result, name)
            if shown is None:
                continue
            other = f"  {_value(classical, name) or '':<20}" if classical else ""
            lines.append(f"  {text:<34}{shown:<20}{other} {unit}")
        for element, found in result["elements"].items():
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


EXAMPLES = """\
dpa3sim pimd water.extxyz --beads 32 --temperature 300 --steps 20000 --classical
dpa3sim pimd POSCAR --beads 8 --ensemble npt --pressure 0.1
"""
COMMAND = Command(
    "pimd",
    "path integral molecular dynamics",
    pimd.Settings,
    PimdJob,
    plots="energies and radial distribution functions",
)
configure, run = COMMAND.configure, COMMAND.run
