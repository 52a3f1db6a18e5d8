"""Give i-PI the forces: a client for its sockets."""

from __future__ import annotations

import argparse

from dpa3sim.cli.options import Parser
from dpa3sim.errors import InputError

# Each is a module of its own, `dpa3sim.cli.ipi_NAME`, that is run instead of this one.
SUBCOMMANDS = {
    "pes-path": "print the path of the PES file for <ffdirect>",
}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim ipi``."""
    parser.usage = "dpa3sim ipi " + " | ".join(SUBCOMMANDS)


def run(args: argparse.Namespace) -> int:
    """Subcommands run in their own modules."""
    raise InputError(f"ipi needs a subcommand: {', '.join(SUBCOMMANDS)}")
