"""What every command that runs a protocol does: structures in, run directories out."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpa3sim.cli import signals
from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import BAD_INPUT, Dpa3simError, Dpa3simWarning, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run.job import Job, JobOptions, exit_code, origins, system_errors
from dpa3sim.screen.calculation import Calculation
from dpa3sim.screen.screening import Screening, ScreenSettings, check_settings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import Source, read_structures


@dataclass(frozen=True)
class Command:
    """A command that runs a protocol.

    Attributes:
        job: what is done for each structure.
        plots: what is drawn, for the help.
    """

    job: type[Job]
    plots: str

    def configure(self, parser: Parser) -> None:
        """Arguments of the command."""
        count: Any = "+" if self.job.structures == 1 else self.job.structures
        parser.add_argument(
            "structures",
            nargs=count,
            metavar="STRUCTURE",
            help="file of any format that ASE reads; FILE@INDEX for a frame; - for standard input",
        )
        add_settings(parser, self.job.title, self.job.protocol.Settings)
        add_settings(parser, "model", ModelSettings)
        add_settings(parser, "reading of structure files", ReadingSettings)
        if self.job.screens:
            add_settings(parser, "screening: many structures, one database", ScreenSettings)
        add_config(parser)
        group = parser.add_argument_group("output")
        group.add_argument(
            "--out", metavar="DIR", help="run directory; with several structures, their parent"
        )
        group.add_argument("--force", action="store_true", help="replace an existing run directory")
        group.add_argument("--no-plot", action="store_true", help=f"do not draw {self.plots}")
        group.add_argument("--json", action="store_true", help="print only the results, as JSON")
        group.add_argument("--quiet", action="store_true", help="print only errors")

    def run(self, args: argparse.Namespace) -> int:
        """Do all calculations; a failure of one does not stop the others."""

        def execute(job: Job) -> tuple[dict[str, Any], int]:
            result = job.execute()
            return result, job.exit_code(result)

        resolved = self.resolved(args)
        if self.screen(resolved) is not None:
            return self._screen(args, *resolved)
        return self.each(args, resolved, execute)

    def resolved(self, args: argparse.Namespace) -> list[Any]:
        """The options of protocol, model, reading, and of a screening where there can be one."""
        classes = [self.job.protocol.Settings, ModelSettings, ReadingSettings]
        classes += [ScreenSettings] if self.job.screens else []
        return resolve(args, *classes)

    def screen(self, resolved: list[Any]) -> str | None:
        """The folder of the screening that is asked for, else None."""
        folder: str | None = resolved[-1].screen if self.job.screens else None
        return folder

    def each(
        self,
        args: argparse.Namespace,
        resolved: list[Any],
        do: Callable[[Job], tuple[dict[str, Any], int]],
    ) -> int:
        """Do something with every calculation that the arguments ask for.

        Args:
            args: the command line.
            resolved: its options, see :meth:`resolved`.
            do: returns what ``--json`` prints, and an exit code.
        """
        settings, model, reading, *_ = resolved
        terminal = Terminal(args.quiet or args.json)
        groups = self._groups(read_structures(args.structures, reading))
        if not any(isinstance(group, tuple) for group in groups):
            for error in groups:
                print(f"dpa3sim: error: {error}", file=sys.stderr)
            return BAD_INPUT
        potential = terminal.load(model.for_protocol(settings))

        codes: list[int] = []
        results: list[dict[str, Any]] = []
        for group in groups:
            if isinstance(group, InputError):
                print(f"dpa3sim: error: {group}", file=sys.stderr)
                codes.append(group.exit_code)
                continue
            path = _out(args, f"{group[0].label}.{self.job.name}", len(groups))
            signals.check()
            try:
                with system_errors(path), warnings.catch_warnings():
                    # Warnings about a result stand in the result, and are printed with it.
                    warnings.simplefilter("ignore", Dpa3simWarning)
                    result, code = do(
                        self.job(group, potential, settings, path, _options(args), terminal)
                    )
            except Dpa3simError as error:
                signals.check(put_off=False)  # which may be what went wrong
                print(f"dpa3sim: error: {origins(group)}: {error}", file=sys.stderr)
                codes.append(error.exit_code)
                continue
            results.append(result)
            codes.append(code)
        if args.json:
            shown: Any = results if len(groups) > 1 else next(iter(results), None)
            print(json.dumps(shown, indent=2, ensure_ascii=False))
        return exit_code(codes)

    def check_screening(self, args: argparse.Namespace, settings: Any) -> None:
        """Raise InputError for options that a screening cannot have."""
        check_settings(settings)
        if args.out:
            raise InputError("--out cannot be used with --screen, which names the folder")

    def _screen(
        self,
        args: argparse.Namespace,
        settings: Any,
        model: ModelSettings,
        reading: ReadingSettings,
        screen: ScreenSettings,
    ) -> int:
        """Compute all structures of the command line into one database."""
        self.check_screening(args, settings)
        folder, terminal = screen.folder(), Terminal(args.quiet or args.json)
        potential = terminal.load(model.for_protocol(settings))
        calculation = Calculation(self.job.name, settings, self.job.together)
        with Screening(
            folder, calculation, potential, screen, _options(args), terminal
        ) as screening:
            screening.register(args.structures, reading)
            code = screening.run()
            if args.json:
                print(json.dumps(screening.to_dict(), indent=2))
            return code

    def _groups(
        self, sources: Sequence[Source | InputError]
    ) -> Sequence[tuple[Source, ...] | InputError]:
        """The structures of each calculation, or the error of one that cannot be read."""
        wanted = self.job.structures
        if wanted == 1:
            return [s if isinstance(s, InputError) else (s,) for s in sources]
        good = [s for s in sources if isinstance(s, Source)]
        bad = [s for s in sources if isinstance(s, InputError)]
        if not bad and len(good) != wanted:
            bad = [InputError(f"needs {wanted} structures, {len(good)} were given")]
        return bad or [tuple(good)]


def _options(args: argparse.Namespace) -> JobOptions:
    return JobOptions(args.force, not args.no_plot, args.command_line, args.began)


def _out(args: argparse.Namespace, name: str, count: int) -> Path:
    if args.out is None:
        return Path(name)
    return Path(args.out) if count == 1 else Path(args.out) / name
