"""Molecular dynamics."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from dpa3sim.protocols import md
from dpa3sim.run.job import Job
from dpa3sim.run.output import write_structure, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from dpa3sim.protocols.md import Result

STRUCTURE = "structure_final"
UNITS = {"A3": "Å^3", "per_atom_eV": "eV/atom", "meV_per_atom_per_ps": "meV/atom/ps"}


class MDJob(Job):
    """The simulation of one structure, which continues from the last saved state."""

    name, title, protocol = "md", "molecular dynamics", md
    settings: md.Settings
    EXTENDING = ("steps", "equilibration", "max_hours", "novelty_stop")

    def check(self) -> None:
        """Raise InputError if the settings do not fit the structure, or the model."""
        md.check_uncertainty(self.potential, self.settings)
        self._plan = md.check(self.atoms, self.settings)

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether all steps are done, and averaged as requested."""
        done: int = stored["n_steps"]
        wanted = self._plan.equilibration(done)
        return done >= self.settings.steps and stored["equilibration_steps"] == wanted

    def compute(self) -> Result:
        """Simulate from the last saved state."""
        from dpa3sim.run.recorder import FileRecorder

        settings, folder = self.settings, self.directory.path
        stop = threading.Event()
        with (
            FileRecorder(
                *(folder, settings.replicas, settings.trajectory_format),
                uncertain=settings.novelty_keep is not None,
            ) as recorder,
            self.reporter.stopping(stop.set),
        ):
            if recorder.state is not None:
                self.say(f"continuing after step {recorder.state.step}")
            return md.run(
                self.atoms,
                self.potential,
                settings,
                progress=self.follow,
                recorder=recorder,
                stop=stop.is_set,
                began=self.options.began,
            )

    def write(self, folder: Path, result: Result) -> None:
        """Write the last structures and tables."""
        several = len(result.atoms) > 1
        for k, atoms in enumerate(result.atoms):
            write_structure(folder, f"{STRUCTURE}_{k}" if several else STRUCTURE, atoms)
        _write_analysis(folder, result)

    def draw(self, folder: Path, result: Result, label: str) -> None:
        """Draw energies, structure and motion."""
        from dpa3sim.report.plots.dynamics import plot_simulation

        plot_simulation(folder, result, label)

    def lines(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the result in a few lines."""
        lines = [
            f"{'; '.join(stored['reasons'])} ({stored['simulated_ps']:g} ps); averages from step "
            f"{stored['equilibration_steps']}:"
        ]
        quantities = [
            ("temperature", "K", ".2f"),
            ("pressure", "GPa", ".4f"),
            ("potential_energy", "per_atom_eV", ".6f"),
            ("volume", "A3", ".3f"),
            ("drift", "meV_per_atom_per_ps", ".2g"),
        ]
        for name, unit, form in quantities:
            if (value := stored.get(f"{name}_{unit}")) is None:
                continue
            error = stored[f"{name}_error_{unit}"]
            shown = format(value, form)
            if error:  # zero for a fixed volume
                shown += f" ± {error:.2g}"
            lines.append(f"  {name.replace('_', ' '):<22}{shown} {UNITS.get(unit, unit)}")
        for element, found in stored["diffusion"].items():
            if found["diffusive"]:
                error = found["error_m2_per_s"]
                shown = f"{found['coefficient_m2_per_s']:.3g}"
                shown += f" ± {error:.1g}" if error is not None else ""
                lines.append(f"  {'diffusion of ' + element:<22}{shown} m^2/s")
        return lines


def _write_analysis(folder: Path, result: Result) -> None:
    """Write the tables of structure and motion that the analysis has."""
    analysis = result.analysis
    tables = {
        "rdf": {"r_A": analysis.rdf_r, **analysis.rdf},
        "msd": {
            "time_ps": analysis.msd_time,
            **{f"{name}_A2": values for name, values in analysis.msd.items()},
        },
        "vacf": {"time_ps": analysis.vacf_time, **analysis.vacf},
        "vdos": {
            "frequency_THz": analysis.frequency,
            **{f"{name}_per_THz": values for name, values in analysis.vdos.items()},
        },
    }
    for name, table in tables.items():
        if len(table) > 1:
            write_table(folder / f"{name}.csv", {k: list(v) for k, v in table.items()})
