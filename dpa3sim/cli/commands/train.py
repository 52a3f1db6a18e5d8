"""Train a model on structures with energies, forces and stresses."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import options as options_of
from dpa3sim.run.job import JobOptions, system_errors
from dpa3sim.train.options import Options, Parts

if TYPE_CHECKING:
    from dpa3sim.train.prepare import Prepared
    from dpa3sim.train.settings import SourceSettings

T = TypeVar("T", bound=Parts)
EXAMPLES = """\
dpa3sim train frames.xyz --steps 20000 --out water.train           # holds out 5 % to validate
dpa3sim train train.xyz --validation valid.xyz --nlayers 3 --n-dim 64 --e-dim 32 --a-dim 16
dpa3sim train PBE=pbe.xyz SCAN=scan.db --steps 50000               # two functionals, one model
dpa3sim train --input input.json                                   # a training of deepmd-kit
"""
_TITLES = "data", "reading", "model", "training", "learning rate", "optimizer", "loss"
SETTINGS = dict(zip(_TITLES, Options.classes(), strict=True))
Prepare = Callable[[argparse.Namespace], "tuple[Prepared, dict[str, Any], str]"]


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim train``."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="[TASK=]DATA",
        help="files and folders of training frames: extended XYZ, ASE databases, deepmd-kit's "
        "folders and HDF5 files, screenings",
    )
    parser.add_argument(
        "--input", metavar="FILE", help="training input of deepmd-kit for DPA3 (input.json)"
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_config(parser)
    add_output(parser, "train")


def add_output(parser: Parser, ending: str) -> None:
    """Arguments for what a training writes; its directory ends in ``.ENDING``."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help=f"run directory [NAME OF DATA.{ending}]")
    group.add_argument("--force", action="store_true", help="replace an existing run directory")
    group.add_argument("--no-plot", action="store_true", help="do not draw the learning curve")
    group.add_argument("--json", action="store_true", help="print only the result, as JSON")
    group.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Train, or continue."""
    return execute(args, prepare, "train")


def execute(args: argparse.Namespace, prepare: Prepare, ending: str) -> int:
    """Do what was prepared in a run directory; returns the exit code."""
    from dpa3sim.parallel.processes import place
    from dpa3sim.run.training import TrainingRun

    me = place()
    follows = me is not None and me.rank > 0
    terminal = Terminal(args.quiet or args.json or follows)
    prepared, settings, name = prepare(args)
    path = Path(args.out or f"{name}.{ending}")
    job = JobOptions(args.force, not args.no_plot, args.command_line, args.began)
    with system_errors(path):
        training = TrainingRun(prepared, settings, path, job, terminal)
        if follows:
            return training.follow()
        result = training.execute()
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return training.exit_code(result)


def prepare(args: argparse.Namespace) -> tuple[Prepared, dict[str, Any], str]:
    """What to do, the options for ``config.resolved.yaml``, and the name of the data.

    Raises:
        InputError: bad options or data.
    """
    from dpa3sim.train.prepare import from_deepmd, from_options

    options = resolved(args, Options)
    if args.input:
        if options.sources.data or options.sources.validation:
            raise InputError(f"--input {args.input} names its data; leave out other files")
        given = _given(args)
        prepared = from_deepmd(Path(args.input), options.data, given)
        return prepared, {**given, "input": args.input}, Path(args.input).stem
    prepared = from_options(options)
    return prepared, options.values(), name_of(options.sources)


def resolved(args: argparse.Namespace, kind: type[T]) -> T:
    """The options of a training, with the files of the command line among its data."""
    if args.files:
        words = [shlex.join(args.files), getattr(args, "data", "")]
        args.data = " ".join(filter(None, words))
    return kind(*resolve(args, *kind.classes()))


def name_of(sources: SourceSettings) -> str:
    """The name of the first file of the training data."""
    first = next(iter(sources.by_task("data").values()))[0]
    return Path(first.rpartition("#")[0] or first).stem


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the command line that may replace those of an input of deepmd-kit.

    Raises:
        InputError: an option that such an input decides alone.
    """
    if args.config or args.set:
        raise InputError("--input cannot be combined with --config and --set; use flags")
    _, data, _, *run_classes = Options.classes()
    allowed = {name for cls in (data, *run_classes) for name in options_of(cls)}
    given = {
        name: getattr(args, name)
        for cls in Options.classes()
        for name in options_of(cls)
        if hasattr(args, name)
    }
    for name in given:
        if name not in allowed:
            raise InputError(f"--input {args.input} decides {name}; change it there")
    return given
