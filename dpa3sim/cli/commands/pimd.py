"""Run path integral molecular dynamics, with quantum nuclei, with i-PI."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.pimd import PimdJob

EXAMPLES = """\
dpa3sim pimd water.extxyz --beads 32 --temperature 300 --steps 20000 --classical
dpa3sim pimd POSCAR --beads 8 --ensemble npt --pressure 0.1
"""
COMMAND = Command(PimdJob, plots="energies and radial distribution functions")
configure, run = COMMAND.configure, COMMAND.run
