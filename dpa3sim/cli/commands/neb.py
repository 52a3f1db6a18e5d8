"""Find the minimum energy path and the barrier between two structures."""

from __future__ import annotations

from dpa3sim.cli.command import Command
from dpa3sim.run.jobs.neb import NebJob

EXAMPLES = """\
dpa3sim neb initial.vasp final.vasp                 # both are relaxed first
dpa3sim neb initial.vasp final.vasp --images 11 --fmax 0.02
"""
COMMAND = Command(NebJob, plots="the path")
configure, run = COMMAND.configure, COMMAND.run
