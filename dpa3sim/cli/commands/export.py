"""Write the results of a screening as a table, or its structures as a file or a database."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpa3sim.cli.options import Parser
from dpa3sim.common.errors import InputError
from dpa3sim.screen.database import DONE, STATES
from dpa3sim.screen.results import Results, write_csv, write_parquet, write_structures

TABLES = {".csv": write_csv, ".parquet": write_parquet}
STRUCTURES = (".extxyz", ".xyz", ".db", ".traj")

EXAMPLES = """\
dpa3sim export run table.csv
dpa3sim export run relaxed.extxyz --states done
"""


def configure(parser: Parser) -> None:
    """Arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="folder of a screening")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="table (.csv, .parquet), or structures with energies (.extxyz, .traj, ASE's .db)",
    )
    parser.add_argument(
        "--states",
        default=None,
        help=f"states to export, separated by commas: {', '.join(STATES)} [tables: all, else done]",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file, replacing it."""
    path, folder = Path(args.file), Path(args.run)
    kind = path.suffix.lower()
    if kind not in (*TABLES, *STRUCTURES):
        raise InputError(f"{path}: export writes {', '.join((*TABLES, *STRUCTURES))}")
    states = _states(args.states) or (list(STATES) if kind in TABLES else [DONE])
    with Results(folder) as results:
        try:
            if kind in TABLES:
                records = list(results.table(states))
                TABLES[kind](path, records)
                count = len(records)
            else:
                count = write_structures(path, results, states)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    if not count:
        raise InputError(f"{folder}: has no structure that is {' or '.join(states)}")
    print(f"{count} structures -> {path}")
    return 0


def _states(text: str | None) -> list[str]:
    states = [state.strip() for state in text.split(",")] if text else []
    for state in states:
        if state not in STATES:
            raise InputError(f"--states: {state!r} is not one of {', '.join(STATES)}")
    return states
