"""Compute the elastic constants of crystals, with relaxed and with clamped ions."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.elastic import ElasticJob

EXAMPLES = """\
dpa3sim elastic POSCAR                              # relaxed and clamped ions
dpa3sim elastic POSCAR --strain 1 --no-relax-ions   # larger strains, clamped ions only
"""
COMMAND = Command(ElasticJob, plots="the directional Young's modulus")
configure, run = COMMAND.configure, COMMAND.run
