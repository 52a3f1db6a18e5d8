"""Compute energies, forces and stresses of structures as they are."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.sp import SinglePointJob

EXAMPLES = """\
dpa3sim sp POSCAR --json
dpa3sim sp trajectory.extxyz --screen run           # every frame, in one database
"""
COMMAND = Command(SinglePointJob, plots="anything (there are no plots)")
configure, run = COMMAND.configure, COMMAND.run
