"""Make a small fast model that imitates a large one, the teacher, for your structures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import InputError
from dpa3sim.distill.settings import DistillOptions, StudentSettings, of_size
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run.job import JobOptions, system_errors
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structures

if TYPE_CHECKING:
    from dpa3sim.structures.reading import Source

EXAMPLES = """\
dpa3sim distill POSCAR --temperatures "300 600 1200"
dpa3sim distill a.cif b.cif --pressures "0 20" --size medium --target 30
dpa3sim distill water.xyz --model my.pt --head H2O --temperatures "300 400"
"""
_TITLES = (
    *("distillation", "frames", "student", "training", "learning rate", "optimizer", "loss"),
)
SETTINGS = dict(zip(_TITLES, DistillOptions.classes(), strict=True))


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim distill``."""
    parser.add_argument(
        "structures",
        nargs="*",
        metavar="STRUCTURE",
        help="file of any format that ASE reads; FILE@INDEX for a frame, FILE@: for all of them",
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_settings(parser, "teacher", ModelSettings)
    add_settings(parser, "reading of structure files", ReadingSettings)
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="run directory [NAME OF STRUCTURE.distill]")
    group.add_argument("--force", action="store_true", help="replace an existing run directory")
    group.add_argument("--no-plot", action="store_true", help="do not draw pictures")
    group.add_argument("--json", action="store_true", help="print only the result, as JSON")
    group.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Make a student, or continue."""
    from dpa3sim.run.distilling import DistillRun

    options, model, sources = prepare(args)
    terminal = Terminal(args.quiet or args.json)
    teacher = terminal.load(model)
    path = Path(args.out or f"{sources[0].label}.distill")
    job = JobOptions(args.force, not args.no_plot, args.command_line, args.began)
    with system_errors(path):
        distillation = DistillRun(sources, teacher, options, path, job, terminal)
        result = distillation.execute()
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return distillation.exit_code(result)


def prepare(args: argparse.Namespace) -> tuple[DistillOptions, ModelSettings, list[Source]]:
    """The options, those of the teacher, and the structures.

    Raises:
        InputError: bad options, no structure, or one that cannot be read.
    """
    classes = DistillOptions.classes()
    others = ModelSettings, ReadingSettings
    size = resolve(args, *classes, *others)[0].size
    # A size is where the options of the student start from; those that are given count.
    started = [of_size(size) if cls is StudentSettings else cls for cls in classes]
    *parts, model, reading = resolve(args, *started, *others)
    sources = []
    for source in read_structures(args.structures, reading):
        if isinstance(source, InputError):
            raise source
        sources.append(source)
    if not sources:
        raise InputError("no structures: name one or more of the system or chemistry")
    return DistillOptions(*parts), model, sources
