"""Relaxations."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import InputError
from dpa3sim.protocols import relax
from dpa3sim.run.job import Job
from dpa3sim.run.output import write_structure

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms


TRAJECTORY = "trajectory.extxyz"
STRUCTURE = "structure_relaxed"
PLOT = "convergence.png"


class RelaxJob(Job):
    """The relaxation of one structure, which continues from the last step it saved."""

    name, title, protocol = "relax", "relaxation", relax
    screens = together = True
    settings: relax.Settings

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether it has converged, or no steps are left."""
        return bool(stored["converged"] or stored["n_steps"] >= self.settings.steps)

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

    def write(self, folder: Path, result: relax.Result) -> None:
        """Write the relaxed structure."""
        write_structure(folder, STRUCTURE, result.atoms)

    def draw(self, folder: Path, result: relax.Result, label: str) -> None:
        """Draw forces, stresses and energies against the steps."""
        from dpa3sim.report.plots.properties import plot_relaxation

        plot_relaxation(folder / PLOT, result, label)

    def lines(self, stored: dict[str, Any]) -> list[str]:
        """A summary of the result in a few lines."""
        state = "converged" if stored["converged"] else "NOT converged"
        lines = [f"{state} after {stored['n_steps']} steps: {'; '.join(stored['reasons'])}"]
        lines.append(
            f"energy {stored['energy_eV']:.6f} eV ({stored['energy_per_atom_eV']:.6f} eV/atom), "
            f"{stored['energy_eV'] - stored['energy_initial_eV']:+.6f} eV from the start"
        )
        if stored["cell_lengths_A"]:
            lines.append(_cell_line("cell        ", stored, "cell_lengths_A", "cell_angles_deg"))
        if stored["conventional_lengths_A"]:
            lengths, angles = "conventional_lengths_A", "conventional_angles_deg"
            lines.append(_cell_line("conventional", stored, lengths, angles))
        if stored["spacegroup_final"]:
            groups = f"{stored['spacegroup_initial']} -> {stored['spacegroup_final']}"
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
        self.reporter.show(
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
