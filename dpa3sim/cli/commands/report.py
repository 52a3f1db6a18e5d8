"""Write an HTML page about a run or a screening: state, results, plots, provenance."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.cli.options import Parser
from dpa3sim.common.errors import SOME_FAILED, Dpa3simError, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run.jobs import JOBS, job_of
from dpa3sim.train.options import FinetuneOptions, Options

if TYPE_CHECKING:
    from dpa3sim.report.page import Option

EXAMPLES = """\
dpa3sim report POSCAR.relax --open         # writes into the run directory; shows in the browser
dpa3sim report *.phonon --output pages     # one page for each run, in one folder
"""
# The number of characters of a file that show whether it is one of our pages.
HEAD_CHARACTERS = 400


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim report``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directory, or folder of a screening"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file for the page, or folder for several pages [report.html in each run directory]",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that dpa3sim report did not write"
    )
    parser.add_argument("--open", action="store_true", help="show the pages in the web browser")


def run(args: argparse.Namespace) -> int:
    """Write a page for each run."""
    codes, pages = [], []
    for name in args.runs:
        try:
            pages.append(_write(Path(name), args))
            print(pages[-1])
            codes.append(0)
        except Dpa3simError as error:
            print(f"dpa3sim: error: {error}", file=sys.stderr)
            codes.append(error.exit_code)
    if args.open:
        import webbrowser

        for page in pages:
            webbrowser.open(page.resolve().as_uri())
    return max(codes) if not pages or not any(codes) else SOME_FAILED


def _write(folder: Path, args: argparse.Namespace) -> Path:
    """The page of one run, or of a screening; where it was written."""
    from dpa3sim.common.files import atomic_write
    from dpa3sim.report.page import run_page
    from dpa3sim.report.reading import read_run
    from dpa3sim.report.screening import read_screening, screening_page
    from dpa3sim.screen.results import part_folders

    target = _target(folder, args.output, len(args.runs))
    if part_folders(folder):
        found = read_screening(folder)
        page = screening_page(found, *_about(found.protocol))
    else:
        run = read_run(folder)
        page = run_page(run, *_about(run.protocol))
    if not args.force:
        _check_replaceable(target)
    try:
        atomic_write(target, page)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror}); choose another --output"
        ) from None
    return target


def _target(folder: Path, output: str | None, count: int) -> Path:
    from dpa3sim.report.reading import REPORT

    if output is None:
        return folder / REPORT
    path = Path(output)
    if path.is_dir():
        return path / f"{folder.resolve().name}.html"
    if count > 1:
        raise InputError(f"--output {output}: is not a folder, which {count} pages need")
    return path


def _check_replaceable(target: Path) -> None:
    """Raise InputError for an existing file that is not one of our pages."""
    from dpa3sim.report.page import is_report

    try:
        with target.open(encoding="utf-8", errors="replace") as file:
            ours = is_report(file.read(HEAD_CHARACTERS))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    if not ours:
        raise InputError(
            f"{target}: exists and was not written by dpa3sim report; choose another --output, "
            "or --force to replace it"
        )


def _about(protocol: str | None) -> tuple[str, Sequence[Option]]:
    """The title and the options of a protocol; for an unknown one, only those of the model."""
    kinds: dict[str | None, tuple[str, type[Options] | type[FinetuneOptions]]] = {
        "train": ("training", Options),
        "finetune": ("fine-tuning", FinetuneOptions),
    }
    if protocol in kinds:
        title, own = kinds[protocol]
        return title, [option for kind in own.classes() for option in _options(kind)]
    if protocol not in JOBS:
        return protocol or "calculation", _options(ModelSettings)
    job = job_of(protocol)
    return job.title, [*_options(job.protocol.Settings), *_options(ModelSettings)]


def _options(settings: type) -> list[Option]:
    from dpa3sim.checkpoints.registry import DEFAULT_MODEL
    from dpa3sim.common import settings as options_of
    from dpa3sim.report.page import Option

    defaults, options = settings(), []
    for name, (_, info) in options_of.options(settings).items():
        default = getattr(defaults, name)
        if settings is ModelSettings:
            default = DEFAULT_MODEL if name == "model" else default
        # A configuration records the head and the precision of the checkpoint as defaults.
        is_open = settings is ModelSettings and name in ("head", "dtype")
        options.append(Option(name, info.help, info.unit or "", default, is_open))
    return options
