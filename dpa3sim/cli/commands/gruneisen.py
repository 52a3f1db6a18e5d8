"""Relax crystals and compute their mode Grüneisen parameters, one run directory for each."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.gruneisen import GruneisenJob

EXAMPLES = """\
dpa3sim gruneisen POSCAR
dpa3sim gruneisen POSCAR --strain 0.005 --supercell max-atoms=108
"""
COMMAND = Command(GruneisenJob, plots="the parameters")
configure, run = COMMAND.configure, COMMAND.run
