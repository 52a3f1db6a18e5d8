"""Make training structures from given ones: varied, different from each other, with labels."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run.job import JobOptions, system_errors
from dpa3sim.sample.settings import LabelSettings, PoolSettings, SampleSettings, words
from dpa3sim.structures.given import ReadingSettings

if TYPE_CHECKING:
    from dpa3sim.structures.reading import Source

EXAMPLES = """\
dpa3sim sample POSCAR --label model                              # for distillation, or a start
dpa3sim sample a.cif b.cif --frames 300 --write "vasp espresso"  # inputs for DFT
dpa3sim sample POSCAR --known train.xyz --substitute Si=Ge --label ase.calculators.emt:EMT
dpa3sim sample --from-files md.traj --frames 50                  # the 50 most different frames
"""
SETTINGS = {"candidates": SampleSettings, "frames": PoolSettings, "labels": LabelSettings}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim sample``."""
    parser.add_argument(
        "structures",
        nargs="*",
        metavar="STRUCTURE",
        help="file of any format that ASE reads; FILE@INDEX for a frame, FILE@: for all of them",
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_settings(parser, "model", ModelSettings)
    add_settings(parser, "reading of structure files", ReadingSettings)
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="run directory [NAME OF STRUCTURE.sample]")
    group.add_argument("--force", action="store_true", help="replace an existing run directory")
    group.add_argument("--json", action="store_true", help="print only the result, as JSON")
    group.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Make, choose and label frames, or continue."""
    from dpa3sim.run.sampling import SampleRun
    from dpa3sim.structures.reading import read_structures

    classes = SampleSettings, PoolSettings, LabelSettings, ModelSettings, ReadingSettings
    settings, files, labelling, model, reading = resolve(args, *classes)
    sources = [_good(source) for source in read_structures(args.structures, reading)]
    pool = _frames("from_files", files.from_files, reading)
    known = _frames("known", files.known, reading)
    if not sources and not pool:
        raise InputError("no structures: name some, or use --from-files FILE")
    terminal = Terminal(args.quiet or args.json)
    potential = terminal.load(model)
    path = Path(args.out or f"{(sources or pool)[0].label}.sample")
    job = JobOptions(args.force, False, args.command_line, args.began)
    with system_errors(path):
        sampling = SampleRun(
            sources, pool, known, potential, settings, files, labelling, path, job, terminal
        )
        result = sampling.execute()
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return sampling.exit_code(result)


def _frames(name: str, text: str, reading: ReadingSettings) -> list[Source]:
    """All frames of the files that an option names.

    Raises:
        InputError: one of them cannot be read.
    """
    from dpa3sim.structures.sources import entries

    return [entry.source for entry in entries(words(name, text), reading)]


def _good(source: Source | InputError) -> Source:
    if isinstance(source, InputError):
        raise source
    return source
