"""Repeat the failed structures of a screening, with the options that it was started with."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from dpa3sim.cli.options import Parser
from dpa3sim.cli.screening import reopen
from dpa3sim.screen.database import FAILED, NOT_CONVERGED

EXAMPLES = """\
dpa3sim retry run
dpa3sim retry run --not-converged --steps 2000
"""


def configure(parser: Parser) -> None:
    """Arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="folder of a screening")
    parser.add_argument(
        "--not-converged",
        action="store_true",
        help="also the structures that did not converge; see --steps",
    )
    parser.add_argument(
        "--steps", type=int, help="new largest number of steps; relaxations continue"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... [auto]")
    parser.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Compute; the exit code is that of the screening."""
    from dpa3sim.cli.protocol import exit_code

    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    states = [FAILED, NOT_CONVERGED] if args.not_converged else [FAILED]
    codes = []
    for screening in reopen(Path(args.run), args, console):
        with screening:
            screening.database.requeue(states)
            codes.append(screening.run())
    return exit_code(codes)
