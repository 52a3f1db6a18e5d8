"""Many structures in one folder: all of them computed, each result saved, resumable."""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common import settings as options_of
from dpa3sim.common.durations import elapsed, estimated
from dpa3sim.common.errors import Dpa3simWarning, InputError
from dpa3sim.common.option_files import read_options
from dpa3sim.common.settings import option, validate
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.run import directory as rundir
from dpa3sim.run.directory import RunDirectory
from dpa3sim.run.job import Job, JobOptions, calculation_facts, config, exit_code, fingerprint
from dpa3sim.run.jobs import job_of
from dpa3sim.run.provenance import session
from dpa3sim.run.reporter import LINE_SECONDS, Reporter
from dpa3sim.screen import results as results_of
from dpa3sim.screen.calculation import Calculation
from dpa3sim.screen.database import (
    FAILED,
    NAME,
    NOT_CONVERGED,
    WAITING,
    WORDS,
    Database,
    Outcome,
    bare_error,
)
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import introduction
from dpa3sim.structures.sources import Entry, entries

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential

# Options that name a file about one crystal.
OF_ONE_CRYSTAL = ("reference", "born")


@dataclass(frozen=True)
class ScreenSettings:
    """Options of a screening."""

    screen: str | None = option(
        None,
        "compute all structures of the files, patterns, folders, zip archives and ASE databases "
        "given into one database in this folder; the same command continues",
    )
    shard: str | None = option(
        None, "with --screen: only part I of N, such as 3/8, for N jobs at the same time"
    )
    at_once: int = option(64, "structures that are in the batches at the same time", minimum=1)
    executor: str = option(
        "local", "who computes: this process, or workers of Parsl", choices=("local", "parsl")
    )
    executor_config: str | None = option(
        None, "Python file that defines 'config', a parsl.config.Config [workers of this machine]"
    )
    workers: int = option(1, "processes on this machine, without an executor config", minimum=1)
    chunk: int = option(50, "structures that are sent to a worker together", minimum=1)

    def __post_init__(self) -> None:
        validate(self)
        if self.shard is not None:
            self.part()
            if self.screen is None:
                raise InputError("--shard needs --screen RUN")
        if self.screen is None and self.executor != "local":
            raise InputError(f"--executor {self.executor} needs --screen RUN")

    def part(self) -> tuple[int, int]:
        """Which shard of how many, from 1.

        Raises:
            InputError: the option does not have this form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "1/1")
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {self.shard}: write I/N with I from 1 to N, such as 3/8")
        return int(found[1]), int(found[2])

    def folder(self) -> Path:
        """Where this part is.

        Raises:
            InputError: the folder is divided in another way.
        """
        assert self.screen is not None
        whole = Path(self.screen)
        parts = results_of.part_folders(whole)
        if self.shard is None:
            if parts and parts != [whole]:
                raise InputError(f"{whole}: holds the shards of a screening; continue with --shard")
            return whole
        number, count = self.part()
        if whole in parts:
            raise InputError(f"{whole}: holds a screening without shards; continue without --shard")
        if any(not path.name.endswith(f"-of-{count}") for path in parts):
            names = ", ".join(path.name for path in parts)
            raise InputError(f"{whole}: is divided in another way ({names})")
        return whole / f"shard-{number}-of-{count}"


class Screening:
    """A screening in its folder, for this process alone, until it is closed.

    Args:
        folder: the folder.
        calculation: what is done with each structure.
        potential: the model.
        settings: how to compute.
        options: ``force`` replaces another calculation; ``command_line`` is noted.
        reporter: receives progress and results in words.

    Raises:
        InputError: the folder holds something else, or another process is at work in it.
    """

    def __init__(
        self,
        folder: Path,
        calculation: Calculation,
        potential: Potential,
        settings: ScreenSettings | None = None,
        options: JobOptions | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.folder, self.calculation, self.potential = folder, calculation, potential
        self.settings = settings or ScreenSettings()
        self.reporter = reporter or Reporter()
        options = options or JobOptions()
        self.facts = {
            "screening": True,
            **calculation_facts(calculation.protocol, potential, calculation.settings),
        }
        self.directory = RunDirectory(
            folder, fingerprint(self.facts, Job.EXTENDING), self.facts, force=options.force
        )
        try:
            # First what tells that this is a run: a kill leaves no folder that none can use.
            started = session(potential, options.command_line)
            self.directory.write_provenance(started, self.facts)
            self.directory.write_config(config(potential, calculation.settings))
            self.database = Database(folder / NAME, create=True)
        except BaseException:
            self.directory.close()
            raise

    def register(self, structures: list[str], reading: ReadingSettings) -> None:
        """Add the structures of this part that are not there yet.

        Raises:
            InputError: there is none, or one has changed.
        """
        part, count = self.settings.part()

        def mine() -> Iterator[tuple[int, Entry]]:
            for position, entry in enumerate(entries(structures, reading), start=1):
                # By name, so that a structure stays in its part when others come.
                digest = hashlib.sha256(entry.origin.encode()).digest()
                if int.from_bytes(digest[:8]) % count == part - 1:
                    yield position, entry

        def described(entry: Entry) -> None:
            if not isinstance(entry.atoms, InputError):
                for line in introduction([entry.source]):
                    self.directory.log(line)

        self.database.register(mine(), described)
        if self.calculation.continues:
            # More steps continue what ran out of them.
            self.database.requeue([NOT_CONVERGED], steps_below=self.calculation.settings.steps)

    def run(self) -> int:
        """Compute what waits; returns the exit code of the command."""
        with self.directory.session(self.say) as ending:
            counts = self.database.counts()
            known = sum(counts.values()) - counts[WAITING]
            self.say(
                f"{sum(counts.values())} structures, {known} of them known, {counts[WAITING]} to "
                f"do -> {self.folder}"
            )
            self._began, self._said, self._finished = time.monotonic(), time.monotonic(), 0
            with self.reporter.shown(), warnings.catch_warnings():
                warnings.simplefilter("ignore", Dpa3simWarning)  # they stand in the results
                self._compute(counts[WAITING])
            ending.exit_code = self._end()
        return ending.exit_code

    def close(self) -> None:
        """Let other processes into the folder."""
        self.database.close()
        self.directory.close()

    def __enter__(self) -> Screening:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, message: str) -> None:
        """Print and log a line."""
        self.directory.log(message)
        self.reporter.say(message)

    def _compute(self, total: int) -> None:
        def finished(number: int, outcome: Outcome) -> None:
            self._progress(total, outcome)

        if self.settings.executor == "parsl":
            from dpa3sim.screen import parsl_executor

            file = self.settings.executor_config
            parsl_executor.compute(
                self.database,
                self.calculation,
                replace(self.potential.settings, device="auto"),
                finished,
                folder=self.folder,
                config_file=Path(file) if file else None,
                workers=self.settings.workers,
                chunk=self.settings.chunk,
                at_once=self.settings.at_once,
            )
            return
        from dpa3sim.screen import runner  # with torch, which help does without

        runner.compute(
            self.database, self.calculation, self.potential, finished, at_once=self.settings.at_once
        )

    def _progress(self, total: int, outcome: Outcome) -> None:
        self._finished += 1
        if outcome.state == FAILED:
            self.directory.log(f"failed: {outcome.error}")
        seconds = time.monotonic() - self._began
        pace = self._finished / seconds
        left = (total - self._finished) / pace
        line = f"{self._finished} of {total}, {_pace(pace)}, {estimated(left)} left"
        self.reporter.show(line)
        if time.monotonic() - self._said >= LINE_SECONDS and self._finished < total:
            self._said = time.monotonic()
            self.directory.log(line)
            if not self.reporter.terminal:
                self.reporter.say(line)

    def _end(self) -> int:
        with results_of.Results(self.folder) as found:
            records = list(found.table())
        results_of.write_csv(self.folder / results_of.TABLE, records)
        seconds = time.monotonic() - self._began
        counts = self.database.counts()
        pace = (
            f" in {elapsed(seconds)}, {_pace(self._finished / seconds)}" if self._finished else ""
        )
        self.say(f"{state_line(counts)}{pace}")
        for error, labels in failures(records):
            self.say(f"  {error}: {labels}")
        self.say(f"table in {self.folder / results_of.TABLE}; see 'dpa3sim export'")
        return exit_code(list(self.database.exit_codes()))

    def to_dict(self) -> dict[str, Any]:
        """Where it is and how far, JSON-ready."""
        counts = self.database.counts()
        return {"directory": str(self.folder), "structures": sum(counts.values()), **counts}


def check_settings(settings: Any) -> None:
    """Raise InputError for options that many structures cannot have."""
    for name in OF_ONE_CRYSTAL:
        if getattr(settings, name, None):
            raise InputError(f"--{name} is about one crystal and cannot be used with --screen")


def reopen(
    folder: Path,
    *,
    steps: int | None = None,
    device: str = "auto",
    options: JobOptions | None = None,
    reporter: Reporter | None = None,
) -> Iterator[Screening]:
    """The parts of a screening, one after the other, as its folder describes them.

    Args:
        folder: of the screening.
        steps: largest number of steps, instead of the one before.
        device: where to compute.
        options, reporter: see :class:`Screening`.

    Raises:
        InputError: the folder does not say what was computed.
    """
    from dpa3sim.potential.potential import Potential

    parts = results_of.part_folders(folder)
    if not parts:
        raise InputError(f"{folder}: holds no results of a screening")
    for part in parts:
        job = job_of(str(results_of.provenance(part)["calculation"].get("protocol")))
        stored = read_options(part / rundir.CONFIG)
        if steps is not None:
            stored["steps"] = steps
        settings = _known(job.protocol.Settings(), stored)
        potential = Potential.load(_known(ModelSettings(device=device), stored))
        calculation = Calculation(job.name, settings, job.together)
        yield Screening(part, calculation, potential, None, options, reporter)


def _known(settings: Any, stored: dict[str, Any]) -> Any:
    """The settings with those of the stored options that they have."""
    known = options_of.options(settings)
    return options_of.replace_checked(settings, {k: v for k, v in stored.items() if k in known})


def state_line(counts: dict[str, int]) -> str:
    """How many structures are in which state, in words."""
    shown = [f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state]]
    return f"{sum(counts.values())} structures: {', '.join(shown) or 'none'}"


def failures(records: list[dict[str, Any]], most: int = 10) -> list[tuple[str, str]]:
    """What went wrong, the commonest first, with some of the structures it happened to."""
    groups: dict[str, list[str]] = {}
    for record in records:
        if record["state"] == FAILED:
            error = bare_error(record["error"], record["origin"])
            groups.setdefault(error, []).append(str(record["label"]))
    common = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = []
    for error, labels in common[:most]:
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        lines.append((error, ", ".join(labels[:3]) + more))
    if len(common) > most:
        lines.append(("other errors", f"{sum(len(g) for _, g in common[most:])} structures"))
    return lines


def _pace(per_second: float) -> str:
    return f"{per_second:.1f} structures/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"
