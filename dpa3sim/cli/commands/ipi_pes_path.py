"""Print the path of the PES file, for i-PI's <ffdirect> and for i-pi-py_driver -m custom."""

from __future__ import annotations

import argparse

from dpa3sim.cli.options import Parser
from dpa3sim.clients.ipi.inputs import pes_file

EXAMPLES = """\
dpa3sim ipi pes-path
i-pi-py_driver -u -a water -m custom -P $(dpa3sim ipi pes-path) -o structure=init.extxyz
"""


def configure(parser: Parser) -> None:
    """``dpa3sim ipi pes-path`` has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the absolute path, for ``<pes_path>`` and ``-P``."""
    print(pes_file())
    return 0
