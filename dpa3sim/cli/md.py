"""Run molecular dynamics and write one run directory for each structure."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.options import Parser
from dpa3sim.cli.protocol import Command, Job, write_structure, write_table
from dpa3sim.cli.signals import stopped_by_signals
from dpa3sim.protocols import md

if TYPE_CHECKING:
    from pathlib import Path

    from dpa3sim.protocols.base import Stage
    from dpa3sim.protocols.dynamics.results import Result

STRUCTURE = "structure_final"
UNITS = {"A3": "Å^3", "per_atom_eV": "eV/atom", "meV_per_atom_per_ps": "meV/atom/ps"}


@dataclass(frozen=True)
class MDCommand(Command):
    """The command, which records when it began."""

    def configure(self, parser: Parser) -> None:
        """Arguments of the command."""
        super().configure(parser)
        parser.set_defaults(began=time.monotonic())


class MDJob(Job):
    """The simulation of one structure, which continues from the last saved state."""

    settings: md.Settings
    EXTENDING = ("steps", "equilibration", "max_hours")

    def check(self) -> None:
        """Raise InputError if the settings do not fit the structure."""
        self._plan = md.check(self.atoms, self.settings)

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether all steps are done, and averaged as requested."""
        done: int = stored["n_steps"]
        wanted = self._plan.equilibration(done)
        return done >= self.settings.steps and stored["equilibration_steps"] == wanted

    def stages(self) -> list[Stage]:
        """What the protocol is going to evaluate."""
        found: list[Stage] = md.stages(self.atoms, self.settings, self.cutoff)
        return found

    def compute(self) -> Result:
        """Simulate from the last saved state."""
        from dpa3sim.run.recorder import FileRecorder

        settings, folder = self.settings, self.directory.path
        stop = threading.Event()
        with (
            FileRecorder(folder, settings.replicas, settings.trajectory_format) as recorder,
            stopped_by_signals(stop.set),
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
                began=self.args.began,
            )

    def write(self, result: Result) -> None:
        """Write the last structures, tables and plots."""
        folder, several = self.directory.path, len(result.atoms) > 1
        for k, atoms in enumerate(result.atoms):
            write_structure(folder, f"{STRUCTURE}_{k}" if several else STRUCTURE, atoms)
        _write_analysis(folder, result)
        if not self.args.no_plot:
            from dpa3sim.report.plots.dynamics import plot_simulation

            plot_simulation(folder, result, self.source.label)

    def summary_lines(self, result: dict[str, Any]) -> list[str]:
        """A summary of the result in a few lines."""
        lines = [
            f"{'; '.join(result['reasons'])} ({result['simulated_ps']:g} ps); averages from step "
            f"{result['equilibration_steps']}:"
        ]
        quantities = [
            ("temperature", "K", ".2f"),
            ("pressure", "GPa", ".4f"),
            ("potential_energy", "per_atom_eV", ".6f"),
            ("volume", "A3", ".3f"),
            ("drift", "meV_per_atom_per_ps", ".2g"),
        ]
        for name, unit, form in quantities:
            if (value := result.get(f"{name}_{unit}")) is None:
                continue
            error = result[f"{name}_error_{unit}"]
            shown = format(value, form)
            if error:  # zero for a fixed volume
                shown += f" ± {error:.2g}"
            lines.append(f"  {name.replace('_', ' '):<22}{shown} {UNITS.get(unit, unit)}")
        for element, found in result["diffusion"].items():
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


EXAMPLES = """\
dpa3sim md POSCAR --temperature 300 --steps 20000              # NVT, Langevin
dpa3sim md POSCAR --ensemble npt --pressure 0 --replicas 4     # four runs in one batch
dpa3sim md POSCAR --steps 1000000 --max-hours 23.5             # within the limit of a job
"""
COMMAND = MDCommand(
    "md", "molecular dynamics", md.Settings, MDJob, plots="energies, structure and motion"
)
configure, run = COMMAND.configure, COMMAND.run
