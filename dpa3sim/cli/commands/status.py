"""Show the progress of a screening, and which structures failed."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from dpa3sim.cli.options import Parser
from dpa3sim.common.files import lock_folder
from dpa3sim.run.directory import LOG
from dpa3sim.screen.database import FAILED, NOT_CONVERGED
from dpa3sim.screen.results import Results
from dpa3sim.screen.screening import failures, state_line

EXAMPLES = """\
dpa3sim status run
dpa3sim status run --list                           # also the structures that failed
"""


def configure(parser: Parser) -> None:
    """Arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="folder of a screening")
    parser.add_argument(
        "--list", action="store_true", help="list every structure that failed or did not converge"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the states; the exit code is always 0."""
    with Results(Path(args.run)) as results:
        parts = {part.folder: part.database.counts() for part in results.parts}
        records = list(results.table([FAILED, NOT_CONVERGED]))
        counts = results.counts()
    running = {folder: _is_running(folder) for folder in parts}
    if args.json:
        names = ("label", "origin", "state", "error")
        troubles = [{name: record[name] for name in names} for record in records]
        content = {"running": any(running.values()), **counts, "troubles": troubles}
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    print(state_line(counts) + (", running" if any(running.values()) else ""))
    if len(parts) > 1:
        for folder, some in parts.items():
            print(f"  {folder.name}: {state_line(some)}" + (", running" if running[folder] else ""))
    if args.list:
        for record in records:
            print(f"  {record['label']} ({record['origin']}), {record['state']}: {record['error']}")
    else:
        for error, labels in failures(records):
            print(f"  {error}: {labels}")
    return 0


def _is_running(folder: Path) -> bool:
    """Whether a process is computing there."""
    try:
        handle = lock_folder(folder / LOG)
    except BlockingIOError:
        return True
    except OSError:  # no log: nobody has been there
        return False
    if handle is not None:
        os.close(handle)
    return False
