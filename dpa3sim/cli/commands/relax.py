"""Relax structures to their energy minimum and write one run directory for each."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.relax import RelaxJob

EXAMPLES = """\
dpa3sim relax POSCAR --cell full                 # atoms and cell
dpa3sim relax a.cif b.extxyz@3 --out runs        # several structures, a frame of a trajectory
dpa3sim relax 'in/*.cif' --cell full --screen run   # any number of structures, one database
"""
COMMAND = Command(RelaxJob, plots="the convergence")
configure, run = COMMAND.configure, COMMAND.run
