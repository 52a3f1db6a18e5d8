"""Relax crystals and compute their thermal expansion, one run directory for each."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.qha import QhaJob

EXAMPLES = """\
dpa3sim qha POSCAR --largest 0.08                   # volumes up to 8 % larger
dpa3sim qha POSCAR --supercell max-atoms=108 --t-max 600
"""
COMMAND = Command(QhaJob, plots="volume, expansion, bulk modulus and heat capacity")
configure, run = COMMAND.configure, COMMAND.run
