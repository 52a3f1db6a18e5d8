"""One calculation in its run directory: run, continued, or found done.

    job = EosJob((read_structure("POSCAR"),), Potential(), eos.Settings(), Path("POSCAR.eos"))
    stored = job.execute()

Each protocol has its :class:`Job` in :mod:`dpa3sim.run.jobs`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import (
    DONE,
    NOT_CONVERGED,
    SOME_FAILED,
    Dpa3simError,
    InputError,
    OutOfMemoryError,
    StorageError,
    memory_ran_out,
)
from dpa3sim.potential.interface import dispersion_of, rigidity_of
from dpa3sim.run import directory as rundir
from dpa3sim.run.certainty import certainty, certainty_lines
from dpa3sim.run.directory import RunDirectory
from dpa3sim.run.hints import hints
from dpa3sim.run.provenance import model_facts, session
from dpa3sim.run.reporter import Narrator, Reporter
from dpa3sim.run.store import StoredPotential
from dpa3sim.structures.reading import Source, introduction

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.potential import Potential
    from dpa3sim.protocols.base import Event, Property, Stage

# Options of the model that change the result.
PRECISION = ("dtype", "matmul", "truncate", "smooth_cutoff")


@dataclass(frozen=True)
class JobOptions:
    """How a calculation is run, which does not change its result.

    Attributes:
        force: replace another calculation in the directory.
        plots: draw pictures.
        command_line: noted in ``provenance.json``.
        began: when the process began, by :func:`time.monotonic`, for limits of time.
    """

    force: bool = False
    plots: bool = True
    command_line: Sequence[str] = ()
    began: float = field(default_factory=time.monotonic)


def calculation_facts(protocol: str, potential: Potential, settings: Any) -> dict[str, Any]:
    """Everything that decides the result of a calculation, besides its structure."""
    model, rigidity = potential.model, rigidity_of(potential)
    judged = {} if rigidity is None else {"uncertainty": rigidity.identity}
    dispersion = dispersion_of(potential)
    added = {} if dispersion is None else {"dispersion": dispersion.identity}
    return {
        "protocol": protocol,
        "model": model.name,
        "model_sha256": model.sha256,
        "head": model.head,
        **asdict(settings),
        **{name: getattr(potential, name) for name in PRECISION},
        **judged,
        **added,
    }


def fingerprint(facts: Mapping[str, Any], extending: Sequence[str]) -> str:
    """Hash that tells calculations apart, except by names and by what only continues them."""
    names = ("structure", "model", *extending)
    return rundir.fingerprint({k: v for k, v in facts.items() if k not in names})


def config(potential: Potential, settings: Any) -> dict[str, Any]:
    """All options of a calculation, in a form that ``--config`` reads."""
    model = asdict(potential.settings)
    del model["device"]  # a property of this machine
    return {**asdict(settings), **model}


def exit_code(codes: Sequence[int]) -> int:
    """One exit code for many calculations; mixed failures give 5, since the others are kept."""
    failures = set(codes) - {DONE}
    if not failures:
        return DONE
    if len(codes) == 1 or failures == {NOT_CONVERGED} or set(codes) == failures == {codes[0]}:
        return failures.pop()
    return SOME_FAILED


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into ours, so that they end one calculation and not all."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except OSError as error:
        raise StorageError.of(error, path) from None
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise OutOfMemoryError(
            "the memory of this machine is not enough; use a smaller structure or another machine"
        ) from None


def origins(sources: Sequence[Source]) -> str:
    """The files that structures come from, as one text."""
    return ", ".join(source.origin for source in sources)


class Job:
    """One calculation in its run directory: run, continued, or found done.

    Args:
        sources: the structures.
        potential: the model.
        settings: options of the protocol.
        path: the run directory.
        options: how to run.
        reporter: receives progress and results in words.

    Attributes:
        name: of the protocol, and the ending of its run directories.
        title: name of the property, for people.
        protocol: module with ``Settings``, ``check``, ``stages`` and ``run``.
        structures: number of structures that one calculation takes.
        screens: whether many structures can be screened, which takes one structure and one result.
        together: whether a screening puts the evaluations of many structures into one batch;
            otherwise the protocol makes batches itself.
        EXTENDING: options that continue a calculation instead of making another one.
        directory: the run directory, open while :meth:`execute` runs.

    Raises:
        InputError: a structure cannot be used.
    """

    name: str
    title: str
    protocol: Property
    structures: int = 1
    screens: bool = False
    together: bool = False
    EXTENDING: tuple[str, ...] = ("steps",)
    directory: RunDirectory

    def __init__(
        self,
        sources: tuple[Source, ...],
        potential: Potential,
        settings: Any,
        path: Path,
        options: JobOptions | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.sources, self.potential, self.settings = sources, potential, settings
        self.path, self.options = path, options or JobOptions()
        self.reporter = reporter or Reporter()
        self._narrator = Narrator(self.reporter, lambda line: self.directory.log(line))
        # Refuse a bad structure before a directory is made for it.
        for source in sources:
            potential.check(source.atoms)
        self.check()
        self.summary = self._summary()

    # -- what protocols define -------------------------------------------------------------------

    def check(self) -> None:
        """Raise InputError if the protocol cannot be applied to the structures."""
        self.protocol.check(*(s.atoms for s in self.sources), self.settings)

    def read(self) -> tuple[Source, ...]:
        """All structures that were read from files."""
        return self.sources

    def arguments(self) -> dict[str, Any]:
        """Further arguments of the protocol's ``run`` and ``stages``."""
        return {}

    def stages(self) -> list[Stage]:
        """The evaluations that the protocol is going to request."""
        structures = (source.atoms for source in self.sources)
        cutoff = self.potential.model.config.descriptor.e_rcut
        found: list[Stage] = self.protocol.stages(
            *structures, self.settings, cutoff, **self.arguments()
        )
        return found

    def compute(self) -> Any:
        """Run the protocol; returns its ``Result``."""
        raise NotImplementedError

    def write(self, folder: Path, result: Any) -> None:
        """Write structures and tables besides ``result.json``."""
        raise NotImplementedError

    def draw(self, folder: Path, result: Any, label: str) -> None:
        """Draw pictures of the result."""

    def lines(self, stored: dict[str, Any]) -> list[str]:
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

    def execute(self) -> dict[str, Any]:
        """Run, continue, or find done; returns the content of ``result.json``.

        Raises:
            InputError: the directory cannot be used; nothing was written then.
        """
        identity = fingerprint(self.summary, self.EXTENDING)
        with RunDirectory(
            self.path, identity, self.summary, force=self.options.force
        ) as self.directory:
            finished = self.directory.result
            if finished is not None and self._is_done(finished):
                return finished
            return self._execute()

    def _execute(self) -> dict[str, Any]:
        directory = self.directory
        started = session(self.potential, self.options.command_line)
        directory.write_provenance(started, self.summary)
        with directory.session(self.say) as ending:
            directory.write_config(config(self.potential, self.settings))
            for line in introduction(self.read(), str(directory.path)):
                self.say(line)
            with self.reporter.shown():
                result = self.compute()
            stored = self._finish(result)
            ending.exit_code = self.exit_code(stored)
            return stored

    def _is_done(self, stored: dict[str, Any]) -> bool:
        """Whether a stored result leaves nothing to do; then report it.

        Raises:
            InputError: the content is not that of a result.
        """
        try:
            if not self.is_final(stored):
                return False
            lines = self.lines(stored) + certainty_lines(stored)
            lines += [f"warning: {w}" for w in stored["warnings"]]
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
        """Report and log a line."""
        self._narrator.say(message)

    def follow(self, event: Event) -> None:
        """Show an event in the status line; report or log a line now and then."""
        self._narrator.follow(f"{event.stage}: {event.message}", event.done >= event.total)

    def _summary(self) -> dict[str, Any]:
        """Everything that decides the result, readable."""
        hashes = [source.sha256 for source in self.sources]
        names = [source.origin.rpartition("/")[2] for source in self.sources]
        one = len(self.sources) == 1
        return {
            "structure_sha256": hashes[0] if one else hashes,
            "structure": names[0] if one else names,
            **calculation_facts(self.name, self.potential, self.settings),
        }

    def _finish(self, result: Any) -> dict[str, Any]:
        content = {"protocol": self.name, "structure": origins(self.sources), **result.to_dict()}
        if "novelty_initial" not in content:
            starts = [source.atoms for source in self.sources]
            values, warnings = certainty(self.potential, starts, result)
            content |= values
            content["warnings"] = [*content["warnings"], *warnings]
        content["warnings"] = [
            *content["warnings"],
            *hints(self.potential, [source.atoms for source in self.sources]),
        ]
        before = [warning for source in self.read() for warning in source.warnings]
        content["warnings"] = list(dict.fromkeys([*before, *content["warnings"]]))
        content["warnings"] += self._written(result)
        content["model"] = model_facts(self.potential)
        content["dtype"] = self.potential.dtype
        content["directory"] = str(self.directory.path)
        self.directory.write_result(content, final=result.converged)
        stored = self.directory.result
        assert stored is not None
        for line in (*self.lines(stored), *certainty_lines(stored)):
            self.say(line)
        for warning in stored["warnings"]:
            if warning not in before:
                self.say(f"warning: {warning}")
        self.say(f"results in {self.directory.path}")
        return stored

    def _written(self, result: Any) -> list[str]:
        """Write the files beside the result; warn where a library cannot make one of them.

        The result is worth more than its pictures.
        """
        folder = self.directory.path
        try:
            self.write(folder, result)
            if self.options.plots:
                self.draw(folder, result, self.source.label)
        except (Dpa3simError, OSError):
            raise
        except Exception as error:
            if memory_ran_out(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return [f"files beside {rundir.RESULT} could not all be written ({reason})"]
        return []


class PropertyJob(Job):
    """A property protocol over a :class:`StoredPotential`: killed at any moment, it repeats none.

    Started again, the protocol runs from its beginning, and finds what was evaluated.
    """

    screens = True

    def compute(self) -> Any:
        """Run the protocol."""
        self._lock, self._began = threading.Lock(), time.monotonic()
        path = self.directory.path / rundir.EVALUATIONS
        with StoredPotential(self.potential, path, progress=self._evaluated) as stored:
            try:
                return self.protocol.run(
                    *(s.atoms for s in self.sources),
                    stored,
                    self.settings,
                    progress=self._record,
                    **self.arguments(),
                )
            finally:
                self.directory.note(evaluations=stored.statistics.to_dict())
                self.say(str(stored.statistics))

    def lines(self, stored: dict[str, Any]) -> list[str]:
        """Whether it converged, and the summary of the property."""
        state = "converged" if stored["converged"] else "NOT converged"
        return [f"{state}: {'; '.join(stored['reasons'])}", *self.findings(stored)]

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """The property in a few lines for people."""
        raise NotImplementedError

    def _evaluated(self, done: int, total: int) -> None:
        """Show how far a large request is."""
        with self._lock:
            self._narrator.follow(f"evaluations: {done} of {total}")

    def _record(self, event: Event) -> None:
        with self._lock:
            self.say(f"{event.stage}: {event.message}")
            if event.total:
                seconds = time.monotonic() - self._began
                self.reporter.show(f"{event.stage}: {event.done} of {event.total}, {seconds:.0f} s")
