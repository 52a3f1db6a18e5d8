"""What every command that runs a protocol does: structures in, run directories out.

A command gives its :class:`Command`; a property of a crystal needs no more than a
:class:`PropertyCommand`: the protocol module and three functions that write its extra files,
draw its plots and say its summary.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli import screening, signals
from dpa3sim.cli.live import LINE_SECONDS, LiveLine
from dpa3sim.cli.options import Parser, add_config, add_settings, announce, resolve
from dpa3sim.cli.screening import ScreenSettings
from dpa3sim.common.errors import (
    BAD_INPUT,
    DONE,
    INTERRUPTED,
    NOT_CONVERGED,
    SOME_FAILED,
    Dpa3simError,
    Dpa3simWarning,
    InputError,
    OutOfMemoryError,
    StorageError,
    memory_ran_out,
)
from dpa3sim.common.files import atomic_write
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run import directory as rundir
from dpa3sim.run.directory import RunDirectory
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import Source, read_structures

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console

    from dpa3sim.potential.potential import Potential
    from dpa3sim.protocols.base import Event, Stage


@dataclass(frozen=True)
class Command:
    """A command that runs a protocol.

    Attributes:
        name: of the command, and the ending of its run directories.
        title: of its group of options.
        settings: the protocol's options.
        job: what is done for each structure.
        plots: what is drawn, for the help.
        structures: how many structures one calculation takes; each of those of the command line
            is a calculation of its own where this is 1, else they are one together.
        together: in a screening, whether many structures share batches; else the protocol of one
            structure makes them.
    """

    name: str
    title: str
    settings: type
    job: type[Job]
    plots: str
    structures: int = 1
    together: bool = False

    @property
    def screens(self) -> bool:
        """Whether there is ``--screen``: one structure gives one result, by a protocol alone."""
        return self.together

    def configure(self, parser: Parser) -> None:
        """Arguments of the command."""
        count: Any = "+" if self.structures == 1 else self.structures
        parser.add_argument(
            "structures",
            nargs=count,
            metavar="STRUCTURE",
            help="file of any format that ASE reads; FILE@INDEX for a frame; - for standard input",
        )
        add_settings(parser, self.title, self.settings)
        add_settings(parser, "model", ModelSettings)
        add_settings(parser, "what structure files do not say", ReadingSettings)
        if self.screens:
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
        if self.screens and resolved[-1].screen is not None:
            return screening.run(self, args, resolved, self.console(args))
        return self.each(args, execute)

    def resolved(self, args: argparse.Namespace) -> list[Any]:
        """The options of protocol, model, reading, and of a screening where there can be one."""
        classes = [self.settings, ModelSettings, ReadingSettings]
        classes += [ScreenSettings] if self.screens else []
        return resolve(args, *classes)

    def console(self, args: argparse.Namespace) -> Console:
        """Where to print."""
        from rich.console import Console

        return Console(quiet=args.quiet or args.json, highlight=False, soft_wrap=True)

    def each(
        self, args: argparse.Namespace, do: Callable[[Job], tuple[dict[str, Any], int]]
    ) -> int:
        """Do something with every calculation that the arguments ask for.

        Args:
            args: the command line.
            do: gives what ``--json`` prints, and an exit code.
        """
        settings, model, reading, *_ = self.resolved(args)
        console = self.console(args)
        groups = self._groups(read_structures(args.structures, reading))
        if not any(isinstance(group, tuple) for group in groups):
            for error in groups:
                print(f"dpa3sim: error: {error}", file=sys.stderr)
            return BAD_INPUT
        potential = model.load_for(settings)
        announce(console, potential)

        codes: list[int] = []
        results: list[dict[str, Any]] = []
        for group in groups:
            if isinstance(group, InputError):
                print(f"dpa3sim: error: {group}", file=sys.stderr)
                codes.append(group.exit_code)
                continue
            path = _out(args, self.name, group, len(groups))
            signals.check()
            try:
                with _told(path), warnings.catch_warnings():
                    # What limits a result stands in the result, and is printed with it.
                    warnings.simplefilter("ignore", Dpa3simWarning)
                    job = self.job(self, group, potential, settings, args, path, console)
                    result, code = do(job)
            except Dpa3simError as error:
                signals.check(put_off=False)  # which may be what went wrong
                print(f"dpa3sim: error: {_origin(group)}: {error}", file=sys.stderr)
                codes.append(error.exit_code)
                continue
            results.append(result)
            codes.append(code)
        if args.json:
            shown: Any = results if len(groups) > 1 else next(iter(results), None)
            print(json.dumps(shown, indent=2, ensure_ascii=False))
        return exit_code(codes)

    def _groups(
        self, sources: Sequence[Source | InputError]
    ) -> Sequence[tuple[Source, ...] | InputError]:
        """The structures of each calculation, or the error of one that cannot be read."""
        if self.structures == 1:
            return [s if isinstance(s, InputError) else (s,) for s in sources]
        good = [s for s in sources if isinstance(s, Source)]
        bad = [s for s in sources if isinstance(s, InputError)]
        if not bad and len(good) != self.structures:
            bad = [InputError(f"needs {self.structures} structures, {len(good)} were given")]
        return bad or [tuple(good)]


def command_of(name: str) -> Command:
    """The command that screens by a protocol.

    Raises:
        InputError: there is none of this name.
    """
    from importlib import import_module

    from dpa3sim.cli.main import COMMANDS

    if name in COMMANDS:
        command = getattr(import_module(f"dpa3sim.cli.{name}"), "COMMAND", None)
        if isinstance(command, Command) and command.screens:
            return command
    raise InputError(f"{name!r} is no protocol that screens structures")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the system as ours, so that they end one calculation and not all."""
    try:
        yield
    except BrokenPipeError:  # of what we print
        raise
    except OSError as error:
        raise StorageError.of(error, path) from None
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise OutOfMemoryError(
            "the memory of this machine is not enough; use a smaller structure or another machine"
        ) from None


def exit_code(codes: Sequence[int]) -> int:
    """One code for all structures; mixed failures are 5, the others having been kept."""
    failures = set(codes) - {DONE}
    if not failures:
        return DONE
    if len(codes) == 1 or failures == {NOT_CONVERGED} or set(codes) == failures == {codes[0]}:
        return failures.pop()
    return SOME_FAILED


def _out(args: argparse.Namespace, name: str, group: Sequence[Source], count: int) -> Path:
    name = f"{group[0].label}.{name}"
    if args.out is None:
        return Path(name)
    return Path(args.out) if count == 1 else Path(args.out) / name


def _origin(group: Sequence[Source]) -> str:
    return ", ".join(source.origin for source in group)


# Options of the model that change the result.
PRECISION = ("dtype", "matmul", "truncate", "smooth_cutoff")


def calculation_facts(protocol: str, potential: Potential, settings: Any) -> dict[str, Any]:
    """What decides the result of a calculation, besides its structure."""
    model = potential.model
    return {
        "protocol": protocol,
        "model": model.name,
        "model_sha256": model.sha256,
        "head": model.head,
        **asdict(settings),
        **{name: getattr(potential, name) for name in PRECISION},
    }


def fingerprint(facts: Mapping[str, Any], extending: Sequence[str]) -> str:
    """What tells a calculation from others: not by names, nor by what only continues it."""
    names = ("structure", "model", *extending)
    return rundir.fingerprint({k: v for k, v in facts.items() if k not in names})


def config(potential: Potential, settings: Any) -> dict[str, Any]:
    """All options of a calculation, such that ``--config`` takes them."""
    model = asdict(potential.settings)
    del model["device"]  # of this machine
    return {**asdict(settings), **model}


class Job:
    """One calculation in its run directory: run, continued, or found done.

    A command overrides :meth:`check`, :meth:`stages`, :meth:`compute`, :meth:`write` and
    :meth:`summary_lines`.

    Args:
        command: which one. sources: its structures. potential: the model. settings: the options.
        args: the command line. path: the run directory. console: where to print.

    Attributes:
        directory: at ``path``, from :meth:`execute` on.

    Raises:
        InputError: a structure that cannot be used.
    """

    directory: RunDirectory

    # Options that continue a calculation instead of making it another one.
    EXTENDING: tuple[str, ...] = ("steps",)

    def __init__(
        self,
        command: Command,
        sources: tuple[Source, ...],
        potential: Potential,
        settings: Any,
        args: argparse.Namespace,
        path: Path,
        console: Console,
    ) -> None:
        self.command, self.sources, self.potential = command, sources, potential
        self.settings, self.args, self.console = settings, args, console
        self._live = LiveLine(console)
        self._said = 0.0
        # Refuse a bad structure before a directory is made for it.
        for source in sources:
            potential.check(source.atoms)
        self.check()
        self.path, self.summary = path, self._summary()

    # -- what commands define --------------------------------------------------------------------

    def check(self) -> None:
        """Raise InputError if the protocol cannot be applied to the structures."""

    def read(self) -> tuple[Source, ...]:
        """All structures that were read from files."""
        return self.sources

    def stages(self) -> list[Stage]:
        """What the protocol is going to evaluate."""
        raise NotImplementedError

    def compute(self) -> Any:
        """Run the protocol; returns its ``Result``."""
        raise NotImplementedError

    def write(self, result: Any) -> None:
        """Write structures, tables and plots into the run directory."""
        raise NotImplementedError

    def summary_lines(self, result: dict[str, Any]) -> list[str]:
        """The stored result in a few lines for people."""
        raise NotImplementedError

    def is_final(self, stored: dict[str, Any]) -> bool:
        """Whether a stored result leaves nothing to do for the present settings."""
        return bool(stored["converged"])

    def exit_code(self, stored: dict[str, Any]) -> int:
        """Exit code of a calculation that has a result."""
        return DONE if stored["converged"] else NOT_CONVERGED

    # -- the course of all of them ---------------------------------------------------------------

    @property
    def source(self) -> Source:
        """The first structure, which names the outputs."""
        return self.sources[0]

    @property
    def atoms(self) -> Atoms:
        """The first structure."""
        return self.source.atoms

    @property
    def cutoff(self) -> float:
        """Of the model, Å."""
        return self.potential.model.config.descriptor.e_rcut

    def execute(self) -> dict[str, Any]:
        """Run, continue, or find done; returns the content of ``result.json``.

        Raises:
            InputError: the directory cannot be used; nothing was written then.
        """
        identity = fingerprint(self.summary, self.EXTENDING)
        with RunDirectory(
            self.path, identity, self.summary, force=self.args.force
        ) as self.directory:
            return self._execute()

    def _execute(self) -> dict[str, Any]:
        directory = self.directory
        finished = directory.result
        if finished is not None and self._report_finished(finished):
            return finished
        from dpa3sim.run.provenance import session

        directory.write_provenance(session(self.potential, self.args.command_line), self.summary)
        code = INTERRUPTED
        try:
            directory.write_config(config(self.potential, self.settings))
            for line in introduction(self.read(), str(directory.path)):
                self.say(line)
            with self._live.shown():
                result = self.compute()
            stored = self._finish(result)
            code = self.exit_code(stored)
            return stored
        except KeyboardInterrupt:
            # Whoever reads us, and rich makes an exit of that, may be gone by the same Ctrl-C.
            with suppress(OSError, SystemExit):
                self.say(f"interrupted; the same command continues (state in {directory.path})")
            raise
        except Dpa3simError as error:
            code = error.exit_code
            with suppress(OSError):
                directory.log(f"failed: {error}")
            raise
        finally:
            directory.end_session(code)

    def _report_finished(self, stored: dict[str, Any]) -> bool:
        """Whether a stored result leaves nothing to do; then it is told.

        Raises:
            InputError: it is none of ours.
        """
        try:
            if not self.is_final(stored):
                return False
            lines = self.summary_lines(stored) + [f"warning: {w}" for w in stored["warnings"]]
            self.exit_code(stored)
        except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.directory.path / rundir.RESULT}: damaged "
                f"({type(error).__name__}: {error}); --force starts again"
            ) from None
        for line in (*lines, f"already done in {self.directory.path}"):
            self.say(line)
        return True

    def say(self, message: str) -> None:
        """Print and log a line."""
        self.directory.log(message)
        self.console.print(message)

    def show(self, status: str) -> None:
        """On a terminal, replace the live line below the printed ones."""
        self._live.show(status)

    def follow(self, event: Event) -> None:
        """On a terminal a live line; else, and in the log, a line now and then."""
        line = f"{event.stage}: {event.message}"
        self.show(line)
        now = time.monotonic()
        if now - self._said < LINE_SECONDS and event.done < event.total:
            return
        self._said = now
        if self.console.is_terminal:
            self.directory.log(line)
        else:
            self.say(line)

    def _summary(self) -> dict[str, Any]:
        """What decides the result, readable."""
        structures: dict[str, Any] = {
            "structure_sha256": self.source.sha256,
            "structure": _name(self.source),
        }
        if len(self.sources) > 1:
            structures = {
                "structure_sha256": [source.sha256 for source in self.sources],
                "structure": [_name(source) for source in self.sources],
            }
        return {
            **structures,
            **calculation_facts(self.command.name, self.potential, self.settings),
        }

    def _finish(self, result: Any) -> dict[str, Any]:
        from dpa3sim.run.provenance import model_facts

        content = {
            "protocol": self.command.name,
            "structure": _origin(self.sources),
            **result.to_dict(),
        }
        before = [warning for source in self.read() for warning in source.warnings]
        content["warnings"] = list(dict.fromkeys([*before, *content["warnings"]]))
        content["warnings"] += self._written(result)
        content["model"] = model_facts(self.potential.model)
        content["dtype"] = self.potential.dtype
        content["directory"] = str(self.directory.path)
        self.directory.write_result(content, final=result.converged)
        stored = self.directory.result
        assert stored is not None
        self._report(stored, f"results in {self.directory.path}")
        return stored

    def _written(self, result: Any) -> list[str]:
        """Write the files beside the result; warnings where a library cannot make one of them.

        The result is worth more than its pictures.
        """
        try:
            self.write(result)
        except (Dpa3simError, OSError):
            raise
        except Exception as error:
            if memory_ran_out(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return [f"files beside {rundir.RESULT} could not all be written ({reason})"]
        return []

    def _report(self, result: dict[str, Any], where: str) -> None:
        for line in self.summary_lines(result):
            self.say(line)
        told = {warning for source in self.read() for warning in source.warnings}
        for warning in result["warnings"]:
            if warning not in told:
                self.say(f"warning: {warning}")
        self.say(where)


@dataclass(frozen=True)
class PropertyCommand(Command):
    """A command that runs a property protocol, resumable by its saved evaluations.

    Attributes:
        protocol: the module, with ``run(*atoms, potential, settings, progress=)`` and
            ``check(*atoms, settings)``.
        write: ``write(folder, result, label, plots)``: writes the files besides ``result.json``,
            pictures only if ``plots``.
        lines: ``lines(stored)``: the summary of a stored result, for people.
    """

    protocol: Any = None
    write: Callable[[Path, Any, str, bool], None] | None = None
    lines: Callable[[dict[str, Any]], list[str]] | None = None

    @property
    def screens(self) -> bool:
        """Whether there is ``--screen``: of protocols that take one structure."""
        return self.structures == 1


class PropertyJob(Job):
    """A property protocol over a :class:`StoredPotential`: killed at any moment, it repeats none.

    Started again, the protocol runs from its beginning, and finds what was evaluated.
    """

    command: PropertyCommand

    def check(self) -> None:
        """Raise InputError if the protocol cannot be applied to the structures."""
        self.command.protocol.check(*(s.atoms for s in self.sources), self.settings)

    def arguments(self) -> dict[str, Any]:
        """Further arguments of the protocol's ``run`` and ``stages``."""
        return {}

    def stages(self) -> list[Stage]:
        """What the protocol is going to evaluate."""
        structures = (source.atoms for source in self.sources)
        found: list[Stage] = self.command.protocol.stages(
            *structures, self.settings, self.cutoff, **self.arguments()
        )
        return found

    def compute(self) -> Any:
        """Run the protocol."""
        from dpa3sim.run.store import StoredPotential

        self._lock, self._began = threading.Lock(), time.monotonic()
        with StoredPotential(self.potential, self.directory.path / rundir.EVALUATIONS) as stored:
            try:
                return self.command.protocol.run(
                    *(s.atoms for s in self.sources),
                    stored,
                    self.settings,
                    progress=self._record,
                    **self.arguments(),
                )
            finally:
                self.directory.note(evaluations=stored.statistics.to_dict())
                self.say(str(stored.statistics))

    def write(self, result: Any) -> None:
        """Write the files of the command."""
        assert self.command.write is not None
        plots = not self.args.no_plot
        self.command.write(self.directory.path, result, self.source.label, plots)

    def summary_lines(self, result: dict[str, Any]) -> list[str]:
        """Whether it converged, and the summary of the command."""
        assert self.command.lines is not None
        state = "converged" if result["converged"] else "NOT converged"
        return [f"{state}: {'; '.join(result['reasons'])}", *self.command.lines(result)]

    def _record(self, event: Event) -> None:
        with self._lock:
            self.say(f"{event.stage}: {event.message}")
            if event.total:
                seconds = time.monotonic() - self._began
                self.show(f"{event.stage}: {event.done} of {event.total}, {seconds:.0f} s")


def _name(source: Source) -> str:
    return source.origin.rpartition("/")[2]


def introduction(sources: Sequence[Source], where: str = "") -> list[str]:
    """Structures in a line that a person can check, and what is suspicious of them."""
    kinds = "; ".join(source.line for source in sources)
    lines = [f"{_origin(sources)}: {kinds}" + (f" -> {where}" if where else "")]
    return lines + [f"warning: {warning}" for s in sources for warning in s.warnings]


def write_structure(folder: Path, name: str, atoms: Atoms) -> None:
    """Write ``name.extxyz``, with what its calculator knows, and ``name.vasp``.

    The latter has its species grouped; a molecule gets a box, which the format demands.
    """
    from ase.io import write

    from dpa3sim.structures.isotopes import as_elements, with_symbols

    write(folder / f"{name}.extxyz", atoms, format="extxyz")
    atoms = with_symbols(atoms).copy()
    if atoms.cell.rank < 3:
        atoms.center(vacuum=10.0, axis=[i for i in range(3) if not atoms.pbc[i]])
    if abs(atoms.cell.volume) > 0.0:
        write_poscar = partial(write, format="vasp", direct=True, sort=True)
        with as_elements():
            try:
                write_poscar(folder / f"{name}.vasp", atoms)
            except RuntimeError:  # constraints in a direction that the format cannot hold
                atoms.set_constraint()
                write_poscar(folder / f"{name}.vasp", atoms)


def write_table(path: Path, table: Mapping[str, Sequence[float]]) -> None:
    """A csv file with a column for each entry."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(
        [f"{value:.10g}" for value in row] for row in zip(*table.values(), strict=True)
    )
    atomic_write(path, text.getvalue())
