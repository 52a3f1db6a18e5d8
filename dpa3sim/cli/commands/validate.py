"""Check models as they are, and compare them on one page.

Cheap physical checks, the same for every model, none of which needs training data: invariances,
steps of the energy along scans, conservation of energy in dynamics, two atoms at short distances,
reference crystals beside measured values, and speed. What they find wrong are warnings.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli import signals
from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import Dpa3simError, Dpa3simWarning
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run.job import JobOptions, exit_code, system_errors
from dpa3sim.validate.settings import ValidateSettings

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential

EXAMPLES = """\
dpa3sim validate                                      # the embedded model
dpa3sim validate --model my.pt dpa3-openlam           # two models side by side
dpa3sim validate --checks "scans dynamics" --smooth-cutoff 0.3 --truncate none
"""
PAGE = "report.html"
SETTINGS = {"checks": ValidateSettings}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim validate``."""
    parser.add_argument(
        "--model",
        dest="models",
        nargs="+",
        metavar="MODEL",
        default=[],
        help="checkpoint files or registry names [embedded dpa3-openlam]",
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_settings(parser, "model", ModelSettings)
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", metavar="DIR", default="validation", help="folder of all models [validation]"
    )
    group.add_argument("--force", action="store_true", help="replace existing run directories")
    group.add_argument("--no-plot", action="store_true", help="do not draw the dimers")
    group.add_argument("--json", action="store_true", help="print only the results, as JSON")
    group.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Check every model, and write the page of all that are in the folder."""
    from dpa3sim.common.files import atomic_write
    from dpa3sim.report.validation import read_validations, validation_page
    from dpa3sim.run.validating import ValidateRun, label

    folder, terminal = Path(args.out), Terminal(args.quiet or args.json)
    options = JobOptions(args.force, not args.no_plot, args.command_line, args.began)
    results: list[dict[str, Any]] = []

    def check(potential: Potential, settings: ValidateSettings) -> int:
        path = folder / label(potential)
        with system_errors(path):
            checks = ValidateRun(potential, settings, path, options, terminal)
            results.append(checks.execute())
            atomic_write(folder / PAGE, validation_page(folder, read_validations(folder)))
        return checks.exit_code(results[-1])

    code = each(args, terminal, check)
    if results:
        terminal.say(f"page: {folder / PAGE}")
    if args.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    return code


def each(args: argparse.Namespace, terminal: Terminal, do: Any) -> int:
    """Load the models one after the other; an error of one does not stop the others.

    Args:
        args: the command line. terminal: for what is said.
        do: with a model and the options of the checks; returns an exit code.
    """
    settings, model = resolve(args, ValidateSettings, ModelSettings)
    codes = []
    for name in args.models or [model.model]:
        signals.check()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Dpa3simWarning)  # the findings say it
                potential = terminal.load(replace(model, model=name).for_protocol(settings))
                with potential:
                    codes.append(do(potential, settings))
        except Dpa3simError as error:
            signals.check(put_off=False)
            which = "" if name is None else f"{name}: "
            text = str(error)
            print(
                f"dpa3sim: error: {text if text.startswith(which) else which + text}",
                file=sys.stderr,
            )
            codes.append(error.exit_code)
    return exit_code(codes)
