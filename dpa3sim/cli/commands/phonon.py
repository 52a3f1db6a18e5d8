"""Relax crystals and compute their phonons, one run directory for each."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.phonon import PhononJob

EXAMPLES = """\
dpa3sim phonon POSCAR                               # bands, densities, thermal properties
dpa3sim phonon POSCAR --supercell 2,2,2             # twice the cell in the file
dpa3sim phonon POSCAR --imaginary follow            # the phase that an unstable crystal relaxes to
"""
COMMAND = Command(PhononJob, plots="bands and thermal properties")
configure, run = COMMAND.configure, COMMAND.run
