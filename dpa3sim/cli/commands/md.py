"""Run molecular dynamics and write one run directory for each structure."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.md import MDJob

EXAMPLES = """\
dpa3sim md POSCAR --temperature 300 --steps 20000              # NVT, Langevin
dpa3sim md POSCAR --ensemble npt --pressure 0 --replicas 4     # four runs in one batch
dpa3sim md POSCAR --steps 1000000 --max-hours 23.5             # within the limit of a job
"""
COMMAND = Command(MDJob, plots="energies, structure and motion")
configure, run = COMMAND.configure, COMMAND.run
