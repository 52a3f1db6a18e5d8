"""Repeat the failed structures of a screening, with the options that it was started with."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser
from dpa3sim.run.job import JobOptions, exit_code
from dpa3sim.screen.database import FAILED, NOT_CONVERGED
from dpa3sim.screen.screening import reopen

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
    states = [FAILED, NOT_CONVERGED] if args.not_converged else [FAILED]
    codes = []
    for screening in reopen(
        Path(args.run),
        steps=args.steps,
        device=args.device,
        options=JobOptions(command_line=args.command_line),
        reporter=Terminal(args.quiet),
    ):
        with screening:
            screening.database.requeue(states)
            codes.append(screening.run())
    return exit_code(codes)
