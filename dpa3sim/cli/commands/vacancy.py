"""Compute the formation energies of vacancies on every kind of site of a crystal."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.vacancy import VacancyJob

EXAMPLES = """\
dpa3sim vacancy POSCAR                              # every kind of site
dpa3sim vacancy MgO.cif --reference Mg.cif,O2.xyz --supercell 16A
"""
COMMAND = Command(VacancyJob, plots="the convergence with the size")
configure, run = COMMAND.configure, COMMAND.run
