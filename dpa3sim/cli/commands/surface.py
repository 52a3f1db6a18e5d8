"""Compute surface energies from slabs that are cut out of the relaxed crystal."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.surface import SurfaceJob

EXAMPLES = """\
dpa3sim surface POSCAR                              # all faces with indices 0 and ±1
dpa3sim surface POSCAR --miller 1,1,1 --miller 1,0,0 --thickness 20
"""
COMMAND = Command(SurfaceJob, plots="the energies of the surfaces")
configure, run = COMMAND.configure, COMMAND.run
