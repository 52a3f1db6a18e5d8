"""Compute the equation of state of crystals: equilibrium volume, bulk modulus, its derivative."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.eos import EosJob

EXAMPLES = """\
dpa3sim eos POSCAR                                  # nine volumes within 6 %
dpa3sim eos POSCAR --volume-range 3 --points 7 --equation birch-murnaghan
"""
COMMAND = Command(EosJob, plots="the equation of state")
configure, run = COMMAND.configure, COMMAND.run
