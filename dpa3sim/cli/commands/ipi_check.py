"""Check that energies, forces and virials of the model pass through a real i-PI unchanged."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import DONE, UNPHYSICAL, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import introduction, read_structure

EXAMPLES = """\
dpa3sim ipi check --structure water.extxyz
dpa3sim ipi check --input run/input.xml
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim ipi check``."""
    parser.add_argument(
        "--structure",
        metavar="FILE",
        help="structure file with the elements in i-PI's order [that of the input]",
    )
    parser.add_argument(
        "--input", metavar="XML", help="i-PI input whose ffsocket or ffdirect is used"
    )
    add_settings(parser, "reading of structure files", ReadingSettings)
    add_settings(parser, "model", ModelSettings)
    add_config(parser)
    parser.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Print the differences; exit code 4 if they are too large."""
    from dpa3sim.clients.ipi.checking import check, read_input

    model, reading = resolve(args, ModelSettings, ReadingSettings)
    terminal = Terminal(args.quiet)
    forcefield, start = (None, None) if args.input is None else read_input(Path(args.input))
    name = args.structure or (start and str(start))
    if not name:
        raise InputError(
            "a structure is missing: --structure FILE, or --input with one in initialize"
        )
    source = read_structure(name, reading)
    atoms = source.atoms
    for line in introduction([source]):
        terminal.say(line)
    if args.structure and start is not None:
        theirs = read_structure(str(start), reading).atoms
        if list(theirs.numbers) != list(atoms.numbers):
            raise InputError(
                f"{args.structure} has other elements than {start} of the input, or another "
                "order of them: i-PI would send positions of the wrong atoms"
            )
    potential = terminal.load(model)
    report = check(atoms, potential, forcefield)
    terminal.say("largest differences of i-PI's output from the model:")
    for frame in report.frames:
        terminal.say(
            f"  {frame.name:<22}energy {frame.energy:.1e} eV  forces {frame.forces:.1e} eV/Å  "
            f"virial {frame.virial:.1e} eV  {'ok' if frame.passed else 'WRONG'}"
        )
    if report.strain is not None:
        terminal.say(
            f"virial from finite differences of the energy: up to {report.strain:.1e} eV off, of "
            f"{report.virial:.3g} eV"
        )
    if not report.passed:
        return UNPHYSICAL
    terminal.say("i-PI receives the energies, forces and virials of the model")
    return DONE
