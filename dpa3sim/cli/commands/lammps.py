"""Run a LAMMPS input with the forces of the model.

The model computes the forces from the line 'fix dpa3 all external pf/callback 1 1' of the input on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.cli.signals import stopped_by_signals
from dpa3sim.common.errors import INTERRUPTED, Dpa3simError, InputError
from dpa3sim.potential.settings import ModelSettings

if TYPE_CHECKING:
    from dpa3sim.clients.lammps.script import Script

EXAMPLES = """\
dpa3sim lammps in.silicon --elements Si
dpa3sim lammps in.quartz --elements Si O -var T 300 --dtype float64
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim lammps``."""
    parser.usage = "dpa3sim lammps INPUT --elements Si O [-var NAME VALUE] [options]"
    parser.add_argument("input", metavar="INPUT", help="LAMMPS input file; - is the standard input")
    parser.add_argument(
        "--elements",
        nargs="+",
        required=True,
        metavar="X",
        help="one element for each atom type, in the order of the types",
    )
    group = parser.add_argument_group("options of LAMMPS")
    group.add_argument(
        "-var",
        "--var",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a variable of the input; can be repeated",
    )
    group.add_argument(
        "-log",
        "--log",
        metavar="FILE",
        default="log.lammps",
        help="log file of LAMMPS [log.lammps]",
    )
    add_settings(parser, "model", ModelSettings)
    add_config(parser)
    parser.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Run the input."""
    from dpa3sim.clients.lammps.library import start
    from dpa3sim.clients.lammps.ranks import mpi_ranks
    from dpa3sim.clients.lammps.script import Script

    (model,) = resolve(args, ModelSettings)
    elements = [e for word in args.elements for e in word.split(",") if e]
    script = Script.parse(_read(args.input), args.input)
    lmp = start(_arguments(args))
    try:
        if mpi_ranks(lmp) > 1:
            return _follow_together(script, lmp, model, elements, args.quiet)
        terminal = Terminal(args.quiet)
        return _follow(script, lmp, terminal.load(model), elements, terminal)
    finally:
        lmp.close()


def _follow_together(
    script: Script, lmp: Any, model: ModelSettings, elements: list[str], quiet: bool
) -> int:
    """Run the input on several MPI ranks, of which the first one speaks."""
    from dpa3sim.clients.lammps.ranks import First, join

    member = join(lmp, model)
    terminal = Terminal(quiet or member.rank > 0)
    try:
        if isinstance(member, First):
            terminal.introduce(member.potential)
        return _follow(script, lmp, member, elements, terminal)
    except Dpa3simError as error:
        if member.rank == 0:
            raise
        return error.exit_code  # rank 0 has the same one
    finally:
        member.close()


def _follow(
    script: Script, lmp: Any, potential: Any, elements: list[str], terminal: Terminal
) -> int:
    types = ", ".join(f"{number} {e}" for number, e in enumerate(elements, start=1))
    terminal.say(f"{script.name}: the model is fix {script.fix_id}; atom types {types}")
    sys.stdout.flush()  # LAMMPS writes past Python
    start = time.monotonic()
    try:
        coupling = script.begin(lmp, potential, elements)
        with stopped_by_signals(coupling.stop):
            script.finish(lmp, coupling)
    finally:
        lmp.flush_buffers()
    if coupling.stopped:
        terminal.say("interrupted; the run ended after its step, and later runs were left out")
        return INTERRUPTED
    if coupling.largest_novelty is not None:
        terminal.say(f"largest novelty of an atom {coupling.largest_novelty:.3g}")
    terminal.say(f"{coupling.evaluations} evaluations in {time.monotonic() - start:.1f} s")
    return 0


def _arguments(args: argparse.Namespace) -> list[str]:
    """LAMMPS's own command line."""
    arguments = ["-log", args.log, "-nocite"]
    for words in args.var:
        if len(words) < 2:
            raise InputError(f"-var {words[0]}: LAMMPS needs a name and a value")
        arguments += ["-var", *words]
    return arguments + (["-screen", "none"] if args.quiet else [])


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{name}: is not a text file") from None
