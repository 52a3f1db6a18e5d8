"""A training in its run directory: begun, continued, or found done."""

from __future__ import annotations

import csv
import io
import json
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

import dpa3sim
from dpa3sim.checkpoints import SUFFIX, ModelFile, write_native, write_training
from dpa3sim.checkpoints.covariance import Covariance
from dpa3sim.common.durations import elapsed
from dpa3sim.common.elements import ATOMIC_NUMBERS, SYMBOLS
from dpa3sim.common.errors import (
    DONE,
    INTERRUPTED,
    NOT_CONVERGED,
    CheckpointError,
    InputError,
)
from dpa3sim.common.files import atomic_write
from dpa3sim.model.weights import Weights
from dpa3sim.parallel.processes import place
from dpa3sim.potential import Potential
from dpa3sim.protocols.base import Event, Progress, silent
from dpa3sim.run import directory as rundir
from dpa3sim.run.directory import RunDirectory
from dpa3sim.run.job import JobOptions
from dpa3sim.run.provenance import process_facts
from dpa3sim.run.reporter import Narrator, Reporter
from dpa3sim.train.prepare import Prepared
from dpa3sim.train.ranks import run as run_on_ranks
from dpa3sim.train.recipe import Recipe, Task
from dpa3sim.train.recording import Models, Row, State
from dpa3sim.train.settings import SINGLE
from dpa3sim.train.team import Team
from dpa3sim.train.trainer import STOPPED, Outcome, Trainer

NAME, FINETUNE = "train", "finetune"
STATE, CURVE, ERRORS = f"state{SUFFIX}", "lcurve.csv", "errors.csv"
# Options that continue a training instead of making another one.
EXTENDING = (
    *("steps", "epochs", "max_hours", "patience"),
    *("report_every", "save_every", "validate_every", "device", "ranks", "covariance"),
)
_METADATA, _VERSION = "dpa3sim_training", 1
# Steps from which the time of all is estimated.
_TRIAL_STEPS = 3


class FolderRecorder:
    """Keeps what a training produces in a run directory.

    Args:
        folder: the directory, which gives the model its name. recipe: what is trained.
        prefix: the beginning of the names of all files; one directory can hold several trainings.
    """

    def __init__(self, folder: Path, recipe: Recipe, prefix: str = "") -> None:
        self._folder, self._config, self._truncate = folder, recipe.config, recipe.truncate
        self._prefix = prefix
        names = {"model": "started_from", "sha256": "started_from_sha256", "head": "started_head"}
        names |= {"teacher": "teacher", "teacher_sha256": "teacher_sha256"}
        origin = recipe.origin
        self._origin = {names[name]: x for name, x in origin.items() if name in names and x}

    def load(self) -> State | None:
        """See :class:`~dpa3sim.train.recording.Recorder`, like the other methods.

        Raises:
            InputError: the state is damaged.
        """
        path = self._path(STATE)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                content = json.loads(file.metadata()[_METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            return State(content["step"], content["facts"], tensors)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path}: damaged state ({error}); --force starts again") from None

    def save(self, state: State) -> None:
        """Save a state in place of the last one, which stays whole if this is interrupted."""
        content = {"version": _VERSION, "step": state.step, "facts": state.facts}
        tensors = {name: x.detach().cpu().contiguous() for name, x in state.tensors.items()}
        data = to_safetensors(tensors, metadata={_METADATA: json.dumps(content)})
        atomic_write(self._path(STATE), data)

    def curve(self, rows: Sequence[Row]) -> None:
        """Write the learning curve."""
        write_curve(self._path(CURVE), rows)

    def models(self, kind: str, weights: Models) -> None:
        """Write one file for each task."""
        for task, arrays in weights.items():
            write_native(self.model(task, arrays), self._path(model_file(kind, task)))

    def best(self, task: str) -> ModelFile:
        """The best model of a task."""
        from dpa3sim.checkpoints import read_model

        return read_model(self._path(model_file("best", task)))

    def add_covariance(self, task: str, covariance: Covariance) -> None:
        """Write into the best model of a task how certain it is."""
        path = self._path(model_file("best", task))
        write_native(replace(self.best(task), covariance=covariance), path)

    def models_for_deepmd(self, tasks: Sequence[str]) -> str | None:
        """Write the best of all tasks to one ``.pt``; the reason if deepmd-kit has no such."""
        found = {task: self.best(task) for task in tasks}
        one = found[SINGLE] if list(found) == [SINGLE] else found
        try:
            write_training(one, self._path("best.pt"))
        except CheckpointError as error:
            return str(error)
        return None

    def graphs(self, name: str) -> Path | None:
        """Edges are kept here as long as the training is not done."""
        return self._path(f"edges.{name}")

    def clean(self) -> None:
        """Remove what only a continuation needs, but for the state."""
        for path in self._folder.glob(f"{self._prefix}edges.*"):
            path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._prefix}{name}"

    def model(self, task: str, arrays: Weights) -> ModelFile:
        """A model with these weights, as if it came from a file of this directory."""
        return ModelFile(
            self._config,
            arrays,
            self._folder.stem,
            Path(model_file("best", task)),
            "native",
            "",
            head=None if task == SINGLE else task,
            origin={"trained_with": f"dpa3sim {dpa3sim.__version__}", **self._origin},
            truncate=self._truncate,
        )


def write_curve(path: Path, rows: Sequence[Row]) -> None:
    """Write a learning curve as CSV; what was not measured at a step is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(name) for name in columns)
        writer.writerow(["" if x is None else f"{x:.10g}" for x in values])
    atomic_write(path, text.getvalue())


def model_file(kind: str, task: str) -> str:
    """Name of the file of a model: ``best.safetensors``, or with the task."""
    return f"{kind}{SUFFIX}" if task == SINGLE else f"{kind}.{task}{SUFFIX}"


def never() -> bool:
    """Do not stop."""
    return False


def add_certainty(recorder: FolderRecorder, task: Task, device: torch.device) -> str | None:
    """Write into the best model of a task how certain it is, or return the reason if that fails.

    The model is worth more than that.
    """
    from dpa3sim.train.certainty import certainty_of

    try:
        potential = Potential(recorder.best(task.name), device=device)
        found = certainty_of(potential, task.training, task.validation)
        recorder.add_covariance(task.name, found)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"{task.name}: the model has no uncertainty ({reason})"
    return None


@dataclass(frozen=True)
class _Work:
    """What each process does; only the first one reports, and knows whether all is done already."""

    recipe: Recipe
    folder: Path
    began: float
    prefix: str = ""
    progress: Progress = silent
    stop: Callable[[], bool] = never
    done: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _Work, (self.recipe, self.folder, self.began, self.prefix)

    def __call__(self, team: Team) -> Outcome | None:
        if team.any(self.done):
            return None
        recorder = FolderRecorder(self.folder, self.recipe, self.prefix)
        stop = self.stop
        return Trainer(
            self.recipe, recorder, team, self.progress, stop, self.began, give_up=stop
        ).run()


def train(
    recipe: Recipe,
    folder: Path,
    began: float,
    reporter: Reporter,
    *,
    prefix: str = "",
    progress: Progress = silent,
    done: bool = False,
) -> Outcome | None:
    """Train, or continue, on as many processes as the recipe says; None if the first says ``done``.

    The first signal of the user ends it with a saved state.

    Args:
        recipe: what to do. folder, prefix: see :class:`FolderRecorder`.
        began: when the command began, by :func:`time.monotonic`. reporter: hears signals.
        progress: receives events. done: whether there is nothing to do.
    """
    stopped: list[bool] = []
    with reporter.shown(), reporter.stopping(lambda: stopped.append(True)):
        work = _Work(recipe, folder, began, prefix, progress, lambda: bool(stopped), done)
        return run_on_ranks(recipe.train.ranks, work, recipe.device)


class TrainingRun:
    """One training.

    Args:
        prepared: what to do.
        settings: the options, for ``config.resolved.yaml``.
        path: the run directory.
        options: how to run. reporter: receives progress and results in words.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: Mapping[str, Any],
        path: Path,
        options: JobOptions,
        reporter: Reporter,
    ) -> None:
        self.recipe, self._prepared = prepared.recipe, prepared
        self._settings, self._path = settings, path
        self._name = FINETUNE if prepared.recipe.start is not None else NAME
        self._options, self._reporter = options, reporter
        self._narrator = Narrator(reporter, lambda line: self._directory.log(line))

    def execute(self) -> dict[str, Any]:
        """Train, continue, or find done; returns the content of ``result.json``.

        The first process of torchrun or srun calls this, the others call :meth:`follow`.

        Raises:
            InputError: the directory cannot be used; nothing was written then.
        """
        summary = self._summary()
        identity = rundir.fingerprint({k: v for k, v in summary.items() if k not in EXTENDING})
        with RunDirectory(
            self._path, identity, summary, force=self._options.force
        ) as self._directory:
            done = self._directory.result
            if done is not None and self._is_done(done):
                if place() is not None:
                    self._train(done=True)
                return done
            return self._execute(summary)

    def follow(self) -> int:
        """Train as one of several processes of torchrun or srun, but not the first one.

        Returns:
            The exit code.
        """
        outcome = self._train()
        return DONE if outcome is None else _exit_code(outcome.finished, outcome.reason)

    @staticmethod
    def exit_code(result: Mapping[str, Any]) -> int:
        """Exit code of a training that has a result."""
        return _exit_code(result["converged"], *result["reasons"])

    def _execute(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        directory = self._directory
        directory.write_provenance(
            process_facts(self._options.command_line) | {"device": str(self.recipe.device)}, summary
        )
        with directory.session(self._say) as ending:
            directory.write_config(self._settings)
            for line in self._introduction():
                self._say(line)
            outcome = self._train(self._follow)
            assert outcome is not None
            result = self._finish(outcome)
            ending.exit_code = self.exit_code(result)
            return result

    def _train(self, progress: Progress = silent, done: bool = False) -> Outcome | None:
        """What all processes do; None if the first one says that it is done."""
        began, reporter = self._options.began, self._reporter
        return train(self.recipe, self._path, began, reporter, progress=progress, done=done)

    def _introduction(self) -> list[str]:
        """What is going to be trained on what."""
        recipe, found = self.recipe, []
        for reason in self._prepared.ignored:
            found.append(f"ignored: {reason}")
        for bad in self._prepared.rejected:
            found.append(f"left out: {bad}")
        for task in recipe.tasks:
            name = "" if task.name == SINGLE else f"{task.name}: "
            held = 0 if task.validation is None else len(task.validation)
            labels = [
                f"{kind} in {int(has.sum())}"
                for kind, has in (
                    ("energies", task.training.has_energy),
                    ("forces", task.training.has_forces),
                    ("virials", task.training.has_virial),
                )
            ]
            found.append(
                f"{name}{len(task.training)} training frames ({', '.join(labels)}), "
                f"{held} to validate with"
            )
        d = recipe.config.descriptor
        found.append(
            f"model: {' '.join(recipe.config.type_map[:12])}"
            f"{' ...' if recipe.config.ntypes > 12 else ''}; {d.nlayers} layers of "
            f"{d.n_dim}/{d.e_dim}/{d.a_dim}, {d.precision}, on {recipe.device}"
        )
        return found

    def _summary(self) -> dict[str, Any]:
        """Everything that decides the result, readable."""
        recipe = self.recipe
        data = {
            task.name: [
                task.training.sha256,
                None if task.validation is None else task.validation.sha256,
            ]
            for task in recipe.tasks
        }
        losses = {task.name: asdict(task.loss) for task in recipe.tasks}
        return {
            "protocol": self._name,
            "data_sha256": data,
            "model": recipe.config.to_dict(),
            "initial": dict(recipe.initial),
            "frozen": list(recipe.frozen),
            "loss": losses,
            "batches": {task.name: repr((task.batch, task.by_system)) for task in recipe.tasks},
            "origin": dict(recipe.origin),
            "truncate": recipe.truncate,
            **asdict(recipe.schedule),
            **asdict(recipe.optimizer),
            **asdict(recipe.train),
        }

    def _is_done(self, stored: Mapping[str, Any]) -> bool:
        """Whether a stored result leaves nothing to do; then report it."""
        try:
            train = self.recipe.train
            wanted = stored["total_steps"] if train.epochs is not None else train.steps
            enough = stored["stopped_early"] or stored["steps"] >= wanted
            if not (stored["converged"] and enough):
                return False
            lines = self._lines(stored)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self._directory.path / rundir.RESULT}: damaged "
                f"({type(error).__name__}: {error}); --force starts again"
            ) from None
        for line in (*lines, f"already done in {self._directory.path}"):
            self._say(line)
        return True

    def _finish(self, outcome: Outcome) -> dict[str, Any]:
        """Write the result and what belongs to it."""
        folder, recipe = self._directory.path, self.recipe
        recorder = FolderRecorder(folder, recipe)
        warnings = list(outcome.warnings)
        if outcome.finished:
            reason = recorder.models_for_deepmd([task.name for task in recipe.main])
            if reason is not None:
                warnings.append(f"no file for deepmd-kit: {reason}")
            recorder.clean()
        appraisal = self._appraise(recorder, warnings) if outcome.finished else {}
        if outcome.finished and recipe.train.covariance:
            found = (add_certainty(recorder, task, recipe.device) for task in recipe.main)
            warnings += [reason for reason in found if reason is not None]
        if self._options.plots and outcome.rows:
            from dpa3sim.report.plots.training import plot_learning_curve

            plot_learning_curve(folder, outcome.rows, folder.stem)
        content = {
            "protocol": self._name,
            "converged": outcome.finished,
            "reasons": [outcome.reason],
            "warnings": warnings,
            "steps": outcome.steps,
            "total_steps": outcome.total_steps,
            "stopped_early": outcome.finished and outcome.steps < outcome.total_steps,
            "best_step": outcome.best_step,
            "validation": {task: dict(values) for task, values in outcome.validation.items()},
            **appraisal,
            "gradient_relative_error": outcome.gradient_error,
            "gradient_check": outcome.gradient_check,
            "session_s": outcome.seconds,
            "session_frames": outcome.frames,
            "rejected_frames": [str(bad) for bad in self._prepared.rejected],
            "ignored_options": list(self._prepared.ignored),
            "directory": str(folder),
        }
        self._directory.write_result(content, final=outcome.finished)
        stored = self._directory.result
        assert stored is not None
        for line in self._lines(stored):
            self._say(line)
        for warning in warnings:
            self._say(f"warning: {warning}")
        more = "" if outcome.finished else "; the same command continues"
        self._say(f"results in {folder}{more}")
        return stored

    def _appraise(self, recorder: FolderRecorder, warnings: list[str]) -> dict[str, Any]:
        """The comparison and the checks; the model is worth more than they are."""
        recipe = self.recipe
        if not recipe.appraise or recipe.start is None:
            return {}
        self._say("comparison with the model before, and checks")
        try:
            return self._compared(recorder, recipe.start, warnings)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.append(f"the comparison with the model before failed ({reason})")
            return {}

    def _compared(
        self, recorder: FolderRecorder, start: Mapping[str, Weights], warnings: list[str]
    ) -> dict[str, Any]:
        """Compare the best model with that which the training started from, and check it."""
        from dpa3sim.train.appraisal import checks, compare, doubts

        recipe = self.recipe
        task = recipe.main[0]
        held = task.validation
        frames = task.training if held is None or not len(held) else held
        files = recorder.model(task.name, start[task.name]), recorder.best(task.name)
        bias = [x.weights["out_bias"][0, :, 0] for x in files]
        shift = np.zeros(len(SYMBOLS))
        for symbol, change in zip(recipe.config.type_map, bias[1] - bias[0], strict=True):
            if symbol in ATOMIC_NUMBERS:
                shift[ATOMIC_NUMBERS[symbol] - 1] = change
        before, after = (Potential(x, device=recipe.device) for x in files)
        comparison = compare(frames, before, after, recipe.train.seed, shift)
        found = checks(frames, after, recipe.train.seed)
        warnings += doubts(found)
        folder = self._directory.path
        atomic_write(folder / ERRORS, comparison.table())
        if self._options.plots:
            from dpa3sim.report.plots.training import plot_parity

            plot_parity(folder, comparison.energies, comparison.forces, folder.stem)
        return {"comparison": comparison.summary(), "checks": found}

    def _lines(self, stored: Mapping[str, Any]) -> list[str]:
        """The result in a few lines."""
        state = "done" if stored["converged"] else "NOT done"
        found = [
            f"{state}: {'; '.join(stored['reasons'])}, {stored['session_frames']} frames in "
            f"{elapsed(stored['session_s'])}"
        ]
        main = {task.name for task in self.recipe.main}
        for task, values in stored["validation"].items():
            name = "" if task == SINGLE else f" of {task}"
            about = f"best model{name}: step {stored['best_step']}, on the validation frames"
            found.append(about if task in main else "forgotten, on held-out replayed structures:")
            found += [f"  {name:<16}{text}" for name, text in _errors(values)]
        if "comparison" in stored:
            found += _changes(stored["comparison"], stored["checks"])
        return found

    def _say(self, message: str) -> None:
        self._narrator.say(message)

    def _follow(self, event: Event) -> None:
        """Show a step, and report or log a line now and then; report everything else."""
        if event.stage == NAME:
            self._narrator.follow(event.message, event.done >= event.total)
        else:
            self._say(event.message)


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Time and memory of a training on one process, from a few of its steps; JSON-ready."""
    trial = replace(recipe.train, epochs=None, steps=_TRIAL_STEPS, patience=None, max_hours=None)
    trial = replace(trial, validate_every=_TRIAL_STEPS + 1, report_every=_TRIAL_STEPS + 1)
    total = recipe.steps(recipe.samplers())
    without = tuple(replace(task, validation=None) for task in recipe.tasks)
    outcome = Trainer(replace(recipe, train=trial, tasks=without)).run()
    step = outcome.seconds / _TRIAL_STEPS
    per_frame = step / max(outcome.frames / _TRIAL_STEPS, 1)
    held = sum(len(task.validation) for task in recipe.tasks if task.validation is not None)
    validations = math.ceil(total / recipe.train.validate_every) if held else 0
    # A frame is evaluated once; a step takes as much as four evaluations of its frames.
    validation = held * per_frame / 4
    return {
        "command": NAME,
        "steps": total,
        "step_s": step,
        "validations": validations,
        "validation_s": validation,
        "total_s": total * step + validations * validation,
        "memory_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "device": str(recipe.device),
    }


def _exit_code(finished: bool, reason: str) -> int:
    if finished:
        return DONE
    return INTERRUPTED if reason == STOPPED else NOT_CONVERGED


def _changes(comparison: Mapping[str, Any], checks: Mapping[str, Any]) -> list[str]:
    """What training further changed, for people."""
    found = [f"before and after, {comparison['frames']} frames:"]
    rows = {
        "energy": (comparison["energy_rmse_per_atom_eV"], "meV/atom"),
        "forces": (comparison["forces_rmse_eV_per_A"], "meV/Å"),
    }
    by_element = comparison["forces_rmse_by_element_eV_per_A"]
    rows |= {f"forces on {symbol}": (both, "meV/Å") for symbol, both in by_element.items()}
    for name, (both, unit) in rows.items():
        if both["before"] is not None:
            before, after = (1e3 * both[key] for key in ("before", "after"))
            found.append(f"  {name:<16}RMSE {before:.4g} -> {after:.4g} {unit}")
    drift = checks["nve"].get("drift_meV_per_atom_per_ps")
    if drift is not None:
        error = checks["nve"]["drift_error_meV_per_atom_per_ps"]
        found.append(f"  {'drift, NVE':<16}{drift:.3g} ± {error:.2g} meV/atom/ps")
    return found


def _errors(values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Root mean square and mean absolute errors for people."""
    units = {"energy_per_atom_eV": "meV/atom", "forces_eV_per_A": "meV/Å"}
    units |= {"virial_per_atom_eV": "meV/atom"}
    found = []
    for key, unit in units.items():
        if f"rmse_{key}" in values:
            rmse, mae = (1e3 * values[f"{kind}_{key}"] for kind in ("rmse", "mae"))
            found.append((key.partition("_")[0], f"RMSE {rmse:.4g}, MAE {mae:.4g} {unit}"))
    return found
