"""Relax crystals and compute their lattice thermal conductivity, one run directory for each."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.kappa import KappaJob

EXAMPLES = """\
dpa3sim kappa POSCAR                                # relaxation times, 300 K, natural isotopes
dpa3sim kappa POSCAR --temperatures 100:1000:100 --transport wigner
dpa3sim kappa POSCAR --preset phonondb              # as in Matbench Discovery's benchmark
"""
COMMAND = Command(KappaJob, plots="the conductivity")
configure, run = COMMAND.configure, COMMAND.run
