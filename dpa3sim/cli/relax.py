"""Relax structures to their energy minimum and write one run directory for each."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.protocol import Command, Job, write_structure
from dpa3sim.common.errors import InputError
from dpa3sim.protocols import relax

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.protocols.base import Stage

TRAJECTORY = "trajectory.extxyz"
STRUCTURE = "structure_relaxed"
PLOT = "convergence.png"


class RelaxJob(Job):
    """The relaxation of one structure, which continues from the last step it saved."""

    settings: relax.Settings

    def check(self) -> None:
        """Raise InputError if the settings do not fit the structure."""
        relax.check(self.atoms, self.settings)

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether it has converged, or no steps are left."""
        return bool(stored["converged"] or stored["n_steps"] >= self.settings.steps)

    def stages(self) -> list[Stage]:
        """What the protocol is going to evaluate."""
        found: list[Stage] = relax.stages(self.atoms, self.settings, self.cutoff)
        return found

    def compute(self) -> relax.Result:
        """Relax from the last saved step."""
        atoms, history = self._restore()
        if history:
            self.say(f"continuing after step {history[-1].index}")
        self._began, self._computed = time.monotonic(), 0
        return relax.run(
            atoms,
            self.potential,
            self.settings,
            progress=lambda step, now: self._record(step, now, history),
            initial=self.atoms,
            history=tuple(history),
        )

    def write(self, result: relax.Result) -> None:
        """Write the relaxed structure and the plot of the convergence."""
        path = self.directory.path
        write_structure(path, STRUCTURE, result.atoms)
        if not self.args.no_plot:
            from dpa3sim.report.plots.properties import plot_relaxation

            plot_relaxation(path / PLOT, result, self.source.label)

    def summary_lines(self, result: dict[str, Any]) -> list[str]:
        """A summary of the result in a few lines."""
        state = "converged" if result["converged"] else "NOT converged"
        lines = [f"{state} after {result['n_steps']} steps: {'; '.join(result['reasons'])}"]
        lines.append(
            f"energy {result['energy_eV']:.6f} eV ({result['energy_per_atom_eV']:.6f} eV/atom), "
            f"{result['energy_eV'] - result['energy_initial_eV']:+.6f} eV from the start"
        )
        if result["cell_lengths_A"]:
            lines.append(_cell_line("cell        ", result, "cell_lengths_A", "cell_angles_deg"))
        if result["conventional_lengths_A"]:
            lengths, angles = "conventional_lengths_A", "conventional_angles_deg"
            lines.append(_cell_line("conventional", result, lengths, angles))
        if result["spacegroup_final"]:
            groups = f"{result['spacegroup_initial']} -> {result['spacegroup_final']}"
            lines.append(f"space group {groups}")
        return lines

    def _record(self, step: relax.Step, atoms: Atoms, history: list[relax.Step]) -> None:
        """Save one step: first the frame, then the state that refers to it."""
        from ase.io import write

        history.append(step)
        frame = atoms.copy()
        frame.constraints = []
        frame.info = {k: v for k, v in asdict(step).items() if v is not None}
        frame.arrays["forces"] = atoms.get_forces()
        write(self.directory.path / TRAJECTORY, frame, format="extxyz", append=step.index > 0)
        size = (self.directory.path / TRAJECTORY).stat().st_size
        state = relax.state(atoms, history)
        self.directory.write_checkpoint({**state, "trajectory_bytes": size})
        self.say(step_line(step))
        self._computed += 1
        pace = (time.monotonic() - self._began) / self._computed
        missing = "; ".join(relax.unmet(step, self.settings)) or "converged"
        self.show(
            f"step {step.index} of at most {self.settings.steps}, {pace:.2g} s each: {missing}"
        )

    def _restore(self) -> tuple[Atoms, list[relax.Step]]:
        """The last saved structure and the steps so far, or the initial structure."""
        state = self.directory.checkpoint
        if state is None:
            return self.atoms, []
        try:
            atoms, steps = relax.restore(self.atoms, state)
            # A frame written just before a kill has no state and is computed again.
            with (self.directory.path / TRAJECTORY).open("r+b") as file:
                if file.seek(0, os.SEEK_END) < state["trajectory_bytes"]:
                    raise ValueError(f"{TRAJECTORY} is shorter than recorded")
                file.truncate(state["trajectory_bytes"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(
                f"{self.directory.path}: damaged state ({error}); --force starts again"
            ) from None
        return atoms, list(steps)


EXAMPLES = """\
dpa3sim relax POSCAR --cell full                 # atoms and cell
dpa3sim relax a.cif b.extxyz@3 --out runs        # several structures, a frame of a trajectory
dpa3sim relax 'in/*.cif' --cell full --screen run   # any number of structures, one database
"""
COMMAND = Command(
    "relax", "relaxation", relax.Settings, RelaxJob, plots="the convergence", together=True
)
configure, run = COMMAND.configure, COMMAND.run


def step_line(step: relax.Step) -> str:
    """One line about a step, for terminal and log."""
    stress = "" if step.smax_GPa is None else f"  smax {step.smax_GPa:9.4f} GPa"
    volume = "" if step.volume_A3 is None else f"  V {step.volume_A3:10.3f} Å^3"
    return (
        f"step {step.index:4d}  E {step.energy_eV:14.6f} eV  "
        f"fmax {step.fmax_eV_per_A:8.4f} eV/Å{stress}{volume}"
    )


def _cell_line(name: str, result: dict[str, Any], lengths: str, angles: str) -> str:
    a, b, c = result[lengths]
    alpha, beta, gamma = result[angles]
    return (
        f"{name} a {a:.4f}  b {b:.4f}  c {c:.4f} Å  "
        f"alpha {alpha:.2f}  beta {beta:.2f}  gamma {gamma:.2f}"
    )
