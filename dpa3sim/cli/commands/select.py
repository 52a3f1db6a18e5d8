"""Choose the structures to label: those that add most to what a model knows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dpa3sim.cli.commands.score import read_all
from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import DONE, SOME_FAILED
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.uncertainty.settings import SelectSettings

EXAMPLES = """\
dpa3sim select trajectory.extxyz --number 50                 # diverse frames, no two alike
dpa3sim select 'pool/*.cif' --uncertainty train.npz --model best.safetensors --out label.xyz
"""
SETTINGS = {
    "choice": SelectSettings,
    "model": ModelSettings,
    "reading of structure files": ReadingSettings,
}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim select``."""
    parser.add_argument(
        "structures", nargs="+", metavar="STRUCTURE", help="files; all frames of each"
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    parser.add_argument("-n", dest="number", type=int, default=argparse.SUPPRESS, help="--number")
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FILE", help="structures to write [selected.extxyz]")
    group.add_argument("--json", action="store_true", help="print only the choice, as JSON")


def run(args: argparse.Namespace) -> int:
    """Choose and write."""
    from ase.io import write

    from dpa3sim.uncertainty.choice import choose

    own, model, reading = resolve(args, *SETTINGS.values())
    names, structures, failed = read_all(args.structures, reading)
    terminal = Terminal(args.json)
    potential = terminal.load(model)
    chosen = choose(potential.features(structures), own.number, potential.rigidity)
    path = Path(args.out or "selected.extxyz")
    write(path, [structures[index] for index, _ in chosen], format="extxyz")
    if args.json:
        rows = [{"structure": names[index], "gain": gain} for index, gain in chosen]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    for index, gain in chosen:
        terminal.say(f"{gain:12.4g}  {names[index]}")
    terminal.say(f"{len(chosen)} of {len(structures)} structures -> {path}")
    return SOME_FAILED if failed else DONE
