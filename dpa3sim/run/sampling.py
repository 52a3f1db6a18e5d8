"""Making training structures in a run directory: begun, continued, or found done.

A simulation that was killed is replayed from its saved evaluations. The chosen frames are saved
before they are labelled, and each label is saved when it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import DONE, UNPHYSICAL, Dpa3simWarning, InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.protocols.base import Event
from dpa3sim.run import directory as rundir
from dpa3sim.run.directory import RunDirectory
from dpa3sim.run.job import JobOptions, calculation_facts, config, exit_code, fingerprint
from dpa3sim.run.provenance import model_facts, session
from dpa3sim.run.reporter import Narrator, Reporter
from dpa3sim.run.store import StoredPotential
from dpa3sim.sample.export import FRAMES, export, from_extxyz, to_extxyz
from dpa3sim.sample.frames import PARENT, kind_of, marked, plain
from dpa3sim.sample.generation import LEFT_OUT, generate
from dpa3sim.sample.labelling import (
    MODEL,
    Failure,
    Label,
    arguments,
    calculator,
    labelled,
    labels,
)
from dpa3sim.sample.selection import select
from dpa3sim.sample.settings import (
    POOL,
    LabelSettings,
    PoolSettings,
    SampleSettings,
    by_kind,
    formats,
    least_shares,
    words,
)
from dpa3sim.structures.reading import Source, introduction
from dpa3sim.structures.system import System
from dpa3sim.train.data.labels import WEIGHT
from dpa3sim.train.data.reading import read_frames
from dpa3sim.train.data.settings import DataSettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.potential import Potential

NAME = "sample"
CHOSEN, LABELS = "chosen.extxyz", "labels.jsonl"


class SampleRun:
    """Candidates, choice, labels and files of one set of training structures.

    Args:
        sources: the structures that candidates are made of.
        pool: frames that are candidates as they are. known: frames that are there already.
        potential: the model. settings, files, labelling: options; ``files`` is only noted.
        path: the run directory. options: how to run. reporter: receives progress in words.

    Raises:
        InputError: the labels cannot be computed by what is asked for.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        pool: Sequence[Source],
        known: Sequence[Source],
        potential: Potential,
        settings: SampleSettings,
        files: PoolSettings,
        labelling: LabelSettings,
        path: Path,
        options: JobOptions | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._sources, self._pool, self._known = sources, pool, known
        self._potential, self._settings = potential, settings
        self._files, self._labelling = files, labelling
        self._path, self._options = path, options or JobOptions()
        self._reporter = reporter or Reporter()
        log = lambda line: self._directory.log(line)  # noqa: E731
        self._narrator = Narrator(self._reporter, log, time.monotonic())
        self._left_out: list[str] = []
        self._labeller = self._make_labeller()

    def execute(self) -> dict[str, Any]:
        """Run, continue, or find done; returns the content of ``result.json``.

        Raises:
            InputError: a structure or the directory cannot be used.
        """
        summary = self._summary()
        with RunDirectory(
            self._path, fingerprint(summary, ()), summary, force=self._options.force
        ) as self._directory:
            done = self._directory.result
            if done is not None and self._is_done(done):
                return done
            return self._execute(summary)

    @staticmethod
    def exit_code(result: Mapping[str, Any]) -> int:
        """Exit code of a run that has a result: frames without labels count as unphysical."""
        failed = len(result["failed_frames"])
        return exit_code([DONE] * (result["frames"] - failed) + [UNPHYSICAL] * failed)

    def _execute(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        directory = self._directory
        started = session(self._potential, self._options.command_line)
        directory.write_provenance(started, summary)
        with directory.session(self._say) as ending:
            options = config(self._potential, self._settings)
            directory.write_config(options | asdict(self._files) | asdict(self._labelling))
            for source in self._sources:
                for line in introduction((source,), str(directory.path)):
                    self._say(line)
            # Warnings of the model stand in the result, and are printed with it.
            with self._reporter.shown(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", Dpa3simWarning)
                frames, facts = self._chosen()
                outcomes = self._labels(frames)
            told = [str(w.message) for w in caught if issubclass(w.category, Dpa3simWarning)]
            result = self._finish(frames, facts, outcomes, list(dict.fromkeys(told)))
            ending.exit_code = self.exit_code(result)
            return result

    # -- which frames ------------------------------------------------------------------------------

    def _chosen(self) -> tuple[list[Atoms], dict[str, Any]]:
        """The chosen frames as they are on disk, and facts about the choice."""
        path, state = self._directory.path / CHOSEN, self._directory.checkpoint
        if state is None:
            self._check_folders()
            frames, state = self._choose()
            text = to_extxyz(frames)
            atomic_write(path, text)
            state["frames_sha256"] = hashlib.sha256(text.encode()).hexdigest()
            self._directory.write_checkpoint(state)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != state["frames_sha256"]:
            raise InputError(f"{path}: damaged; --force starts again")
        # As rounded in the file: labels belong to what a training reads.
        return from_extxyz(path), state

    def _check_folders(self) -> None:
        """Raise InputError for inputs of another run: results of other programs may be there."""
        for kind in formats(self._labelling):
            folder = self._directory.path / kind
            if folder.exists():
                raise InputError(f"{folder}: has inputs of another run; move it away")

    def _choose(self) -> tuple[list[Atoms], dict[str, Any]]:
        candidates: list[Atoms] = []
        if self._sources:
            with StoredPotential(
                self._potential, self._directory.path / rundir.EVALUATIONS
            ) as stored:
                candidates = generate(
                    [_named(s) for s in self._sources],
                    stored,
                    self._settings,
                    progress=self._follow,
                )
        candidates += [marked(plain(s.atoms), POOL, s.origin) for s in self._pool]
        counts = Counter(map(kind_of, candidates))
        self._say(f"{len(candidates)} candidates: {_in_words(counts)}")
        found = select(
            candidates,
            self._potential,
            self._settings.frames,
            known=[_named(s) for s in self._known],
            shares=least_shares(self._settings),
            progress=self._follow,
        )
        if not found.indices:
            raise InputError("every candidate is like a known frame; nothing is left to choose")
        finite = [d for d in found.distances if d < float("inf")]
        facts = {
            "candidates": dict(counts),
            "left_out": self._left_out,
            "last_distance": min(finite, default=None),
        }
        return [candidates[k] for k in found.indices], facts

    # -- labels ------------------------------------------------------------------------------------

    def _make_labeller(self) -> Any:
        settings = self._labelling
        if settings.label is None or settings.label == MODEL:
            return None if settings.label is None else self._potential
        options = arguments(words("label_options", settings.label_options))
        return calculator(settings.label, options)

    def _labels(self, frames: Sequence[Atoms]) -> dict[int, Label | Failure]:
        """A label or a failure for every frame; nothing if none are asked for."""
        if self._labeller is None:
            return {}
        with LabelFile(self._directory.path / LABELS) as saved:
            found: dict[int, Label | Failure] = dict(saved.labels)
            if found:
                self._say(f"{len(found)} labels from {LABELS}")
            missing = [k for k in range(len(frames)) if k not in found]
            for place, outcome in labels([frames[k] for k in missing], self._labeller):
                number = missing[place]
                found[number] = outcome
                if isinstance(outcome, Label):
                    saved.add(number, outcome)
                else:
                    self._say(f"frame {number} ({kind_of(frames[number])}): {outcome.reason}")
                done = len(found)
                self._follow(Event("label", f"{done} of {len(frames)}", done, len(frames)))
        return found

    # -- the end -----------------------------------------------------------------------------------

    def _finish(
        self,
        frames: Sequence[Atoms],
        facts: Mapping[str, Any],
        outcomes: Mapping[int, Label | Failure],
        told: Sequence[str],
    ) -> dict[str, Any]:
        """Write the frames, the result and the other files.

        Args:
            frames: the chosen ones. facts: about the choice. outcomes: see :meth:`_labels`.
            told: warnings of the model.
        """
        folder = self._directory.path
        failed = {k: o.reason for k, o in sorted(outcomes.items()) if isinstance(o, Failure)}
        kept = [k for k in range(len(frames)) if k not in failed]
        weights = by_kind("weights", self._labelling.weights)
        written = []
        for k in kept:
            frame = labelled(frames[k], outcomes[k]) if k in outcomes else frames[k].copy()
            if kind_of(frame) in weights:
                frame.info[WEIGHT] = weights[kind_of(frame)]
            written.append(frame)
        atomic_write(folder / FRAMES, to_extxyz(written) if written else "")
        export(frames, folder, formats(self._labelling))
        chosen = Counter(map(kind_of, frames))
        doubts = _doubts(folder / FRAMES) if outcomes and written else []
        content = {
            "protocol": NAME,
            "structure": [source.origin for source in self._sources],
            "converged": not failed,
            "reasons": [self._reason(len(frames), len(failed))],
            "warnings": [*told, *self._warnings(frames, facts), *doubts],
            "frames": len(frames),
            "atoms": sum(map(len, frames)),
            "candidates_of_kinds": dict(facts["candidates"]),
            "chosen_of_kinds": dict(chosen),
            "labelled_of_kinds": dict(Counter(kind_of(frames[k]) for k in kept if k in outcomes)),
            "last_distance": facts["last_distance"],
            "left_out": list(facts["left_out"]),
            "failed_frames": [
                {"frame": k, "kind": kind_of(frames[k]), "reason": reason}
                for k, reason in failed.items()
            ],
            "settings": {**asdict(self._settings), **asdict(self._labelling)},
            "model": model_facts(self._potential),
            "dtype": self._potential.dtype,
            "directory": str(folder),
        }
        self._directory.write_result(content, final=not failed)
        if not failed:
            for name in (CHOSEN, LABELS):
                (folder / name).unlink(missing_ok=True)
        stored = self._directory.result
        assert stored is not None
        for line in (*self._lines(stored), f"results in {folder}"):
            self._say(line)
        return stored

    def _reason(self, count: int, failed: int) -> str:
        if self._labelling.label is None:
            return f"{count} frames without labels"
        done = f"{count - failed} frames with labels of {self._labelling.label}"
        return f"{done}, {failed} failed; the same command tries them again" if failed else done

    def _warnings(self, frames: Sequence[Atoms], facts: Mapping[str, Any]) -> list[str]:
        wanted, found = self._settings.frames, []
        if len(frames) < wanted:
            total = sum(facts["candidates"].values())
            found.append(
                f"only {len(frames)} of {wanted} frames: of {total} candidates, the others are "
                "like those that were chosen or known"
            )
        return found

    def _lines(self, stored: Mapping[str, Any]) -> list[str]:
        """The result in a few lines."""
        state = "done" if stored["converged"] else "NOT done"
        distance = stored["last_distance"]
        tail = "" if distance is None else f"; the last differ by {distance:.3g}"
        return [
            f"{state}: {'; '.join(stored['reasons'])}",
            f"chosen: {_in_words(stored['chosen_of_kinds'])}{tail}",
            *(f"warning: {warning}" for warning in stored["warnings"]),
        ]

    def _is_done(self, stored: Mapping[str, Any]) -> bool:
        """Whether a stored result leaves nothing to do; then report it."""
        try:
            if not stored["converged"]:
                return False
            lines = self._lines(stored)
            self.exit_code(stored)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self._directory.path / rundir.RESULT}: damaged "
                f"({type(error).__name__}: {error}); --force starts again"
            ) from None
        for line in (*lines, f"already done in {self._directory.path}"):
            self._say(line)
        return True

    def _summary(self) -> dict[str, Any]:
        """Everything that decides the result, readable."""
        return {
            "structure": [source.origin.rpartition("/")[2] for source in self._sources],
            "structure_sha256": [_hash([source]) for source in self._sources],
            "pool_sha256": _hash(self._pool),
            "known_sha256": _hash(self._known),
            **calculation_facts(NAME, self._potential, self._settings),
            **asdict(self._labelling),
        }

    def _say(self, message: str) -> None:
        self._narrator.say(message)

    def _follow(self, event: Event) -> None:
        """Show an event; report or log a line now and then."""
        if event.stage == LEFT_OUT:
            self._left_out.append(event.message)
            self._say(f"left out: {event.message}")
            return
        self._narrator.follow(f"{event.stage}: {event.message}")


class LabelFile:
    """Labels that are saved one by one, each a line with its checksum.

    A line that a kill left incomplete is removed. To be closed.

    Args:
        path: the file; made if absent.

    Attributes:
        labels: those that were saved already, by the number of the frame.

    Raises:
        InputError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.labels: dict[int, Label] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            digest, _, data = line.partition(b" ")
            if hashlib.sha256(data).hexdigest().encode() != digest:
                raise InputError(f"{path}: damaged; --force starts again")
            number, saved = json.loads(data)
            self.labels[number] = Label.from_dict(saved)
        self._file = path.open("ab")
        self._file.truncate(len(whole))

    def add(self, number: int, label: Label) -> None:
        """Save the label of a frame; it is on the disk when this returns."""
        data = json.dumps([number, label.to_dict()]).encode()
        self._file.write(hashlib.sha256(data).hexdigest().encode() + b" " + data + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _doubts(path: Path) -> list[str]:
    """A warning if a training would refuse some of the labelled frames."""
    try:
        _, rejected = read_frames([path], DataSettings(skip_bad=True))
    except InputError as error:
        return [f"a training refuses these frames: {error}"]
    if not rejected:
        return []
    return [
        f"a training refuses {len(rejected)} of the frames, the first: {rejected[0]}; energies of "
        "dimers and compressed cells are far from any fit, and --outlier-sigma 0 accepts them"
    ]


def _named(source: Source) -> Atoms:
    """The structure, which says where it comes from."""
    atoms = source.atoms.copy()
    atoms.info[PARENT] = source.origin
    return atoms


def _hash(sources: Sequence[Source]) -> str:
    """Hash of everything in structures that a model sees."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(repr(System.from_atoms(source.atoms).key()).encode())
    return digest.hexdigest()


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())
