"""Making a small fast model in a run directory: begun, continued, or found done.

The stages are sample, train, improve and check. What a stage has made is on the disk before the
next one begins; within a stage, evaluations are saved as in every run, and trainings as in theirs.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.checkpoints import ModelFile, read_model
from dpa3sim.clients.ase import DPA3Calculator
from dpa3sim.common.errors import DONE, NOT_CONVERGED, Dpa3simWarning, InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.distill.errors import Errors
from dpa3sim.distill.frames import first_set, held_out, stages, starts
from dpa3sim.distill.own import drift, everywhere, hottest
from dpa3sim.distill.rules import end
from dpa3sim.distill.settings import DistillOptions
from dpa3sim.distill.students import recipe_of
from dpa3sim.parallel.processes import place
from dpa3sim.potential import Potential
from dpa3sim.protocols.base import Event
from dpa3sim.run import directory as rundir
from dpa3sim.run.benchmark import time_in_turn
from dpa3sim.run.cost import Cost
from dpa3sim.run.cost import estimate as evaluations
from dpa3sim.run.directory import RunDirectory
from dpa3sim.run.job import JobOptions, calculation_facts, config, fingerprint
from dpa3sim.run.provenance import model_facts, session
from dpa3sim.run.reporter import Narrator, Reporter
from dpa3sim.run.store import StoredPotential
from dpa3sim.run.training import (
    CURVE,
    STATE,
    FolderRecorder,
    add_certainty,
    model_file,
    train,
    write_curve,
)
from dpa3sim.run.training import estimate as training
from dpa3sim.sample.export import FRAMES, from_extxyz, to_extxyz
from dpa3sim.sample.frames import PARENT, supercell
from dpa3sim.sample.generation import LEFT_OUT
from dpa3sim.sample.labelling import Label, labelled
from dpa3sim.sample.variations import rattled
from dpa3sim.structures.reading import Source, introduction
from dpa3sim.train.prepare import Prepared
from dpa3sim.train.settings import SINGLE
from dpa3sim.train.trainer import STOPPED, Outcome

if TYPE_CHECKING:
    from ase import Atoms

NAME = "distill"
HELD_OUT = "held_out.extxyz"
# Options that continue a distillation instead of making another one.
EXTENDING = (
    *("target", "rounds", "max_hours"),
    *("report_every", "save_every", "device", "ranks", "covariance"),
)
OUT_OF_TIME = "max_hours is over"
# Frames of each structure in the steps from which the time of training is estimated; they are
# displaced by so much, Å.
_TRIAL_FRAMES, _TRIAL_RATTLE = 4, 0.1
# A student whose own dynamics has so many times the errors of held-out frames has left them.
_ASTRAY = 3.0
# Evaluations of teacher and student in turn; and of the student in each turn, as it is faster.
_TURNS, _STUDENT_CALLS = 3, 4


class DistillRun:
    """One student: frames of the teacher, trainings, rounds of improvement, and a check.

    Args:
        sources: the structures of the system or chemistry.
        teacher: the model that labels.
        options: of the distillation.
        path: the run directory. job: how to run. reporter: receives progress in words.

    Raises:
        InputError: the teacher cannot compute a structure, or torchrun started this process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        teacher: Potential,
        options: DistillOptions,
        path: Path,
        job: JobOptions | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        if place() is not None:
            raise InputError("distill starts its processes itself: use --ranks, not a launcher")
        self._sources, self._teacher, self._options = sources, teacher, options
        self._path, self._job = path, job or JobOptions()
        self._reporter = reporter or Reporter()
        self._narrator = Narrator(self._reporter, lambda line: self._directory.log(line))
        self._structures = [_named(source) for source in sources]
        for atoms in self._structures:
            teacher.check(atoms)

    def execute(self) -> dict[str, Any]:
        """Run, continue, or find done; returns the content of ``result.json``.

        Raises:
            InputError: a structure or the directory cannot be used.
        """
        summary = self._summary()
        with RunDirectory(
            self._path, fingerprint(summary, EXTENDING), summary, force=self._job.force
        ) as self._directory:
            done = self._directory.result
            if done is not None and self._is_done(done):
                return done
            return self._execute(summary)

    @staticmethod
    def exit_code(result: Mapping[str, Any]) -> int:
        """Exit code of a distillation that has a result."""
        return DONE if result["converged"] else NOT_CONVERGED

    def _execute(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        directory = self._directory
        directory.write_provenance(session(self._teacher, self._job.command_line), summary)
        with directory.session(self._say) as ending:
            directory.write_config(
                config(self._teacher, self._options.distill) | self._options.values()
            )
            for source in self._sources:
                for line in introduction((source,), str(directory.path)):
                    self._say(line)
            self._state = directory.checkpoint or {
                "files": {}, "left_out": [], "rounds": [], "excursions": [], "check": None,
            }  # fmt: skip
            # Warnings of the models stand in the result, and are printed with it.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", Dpa3simWarning)
                with self._reporter.shown():
                    self._sample()
                reason = self._train_all()
                with self._reporter.shown():
                    student, more = self._written()
                    checked = self._checked(student)
            told = [str(w.message) for w in caught if issubclass(w.category, Dpa3simWarning)]
            result = self._finish(reason, student, checked, [*dict.fromkeys(told), *more])
            ending.exit_code = self.exit_code(result)
            return result

    # -- sample ------------------------------------------------------------------------------------

    def _sample(self) -> None:
        """The first training frames and the held-out ones, unless they are there."""
        if HELD_OUT in self._state["files"]:
            return
        self._state["left_out"] = []
        with self._evaluations() as teacher:
            held = held_out(self._structures, teacher, self._options, self._follow)
            frames = first_set(
                self._structures, teacher, self._teacher, self._options, self._follow
            )
        self._keep({HELD_OUT: held, _frames_file(0): frames})
        self._say(f"{len(frames)} frames to train with, {len(held)} held out")

    @contextmanager
    def _evaluations(self) -> Iterator[StoredPotential]:
        """The teacher, whose evaluations are saved."""
        path = self._directory.path / rundir.EVALUATIONS
        with StoredPotential(self._teacher, path) as stored:
            yield stored

    def _keep(self, files: Mapping[str, Sequence[Atoms]]) -> None:
        """Write frames, and note that they are there."""
        for name, frames in files.items():
            text = to_extxyz(frames) if frames else ""
            atomic_write(self._directory.path / name, text)
            self._state["files"][name] = hashlib.sha256(text.encode()).hexdigest()
        self._save()

    def _frames(self, name: str) -> list[Atoms]:
        """Frames that were kept; as rounded in the file, which is what trainings read.

        Raises:
            InputError: the file is not what it was.
        """
        path = self._directory.path / name
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != self._state["files"][name]:
            raise InputError(f"{path}: damaged; --force starts again")
        return from_extxyz(path) if content else []

    def _save(self) -> None:
        self._directory.write_checkpoint(self._state)

    # -- train and improve -------------------------------------------------------------------------

    def _train_all(self) -> str:
        """Train and improve as often as it helps; returns why it ended."""
        while not (reason := self._end()):
            number = len(self._state["rounds"])
            if self._late():
                return OUT_OF_TIME
            if number > len(self._state["excursions"]):
                with self._reporter.shown():
                    self._improve(number)
                continue
            outcome = self._train(number)
            if outcome.reason == STOPPED:
                raise KeyboardInterrupt
            if not outcome.finished:
                return OUT_OF_TIME
        return reason

    def _end(self) -> str:
        """Why nothing is left to train; empty if something is."""
        errors = [1e3 * _worst(facts["held_out"]) for facts in self._state["rounds"]]
        added = [facts["frames_added"] for facts in self._state["excursions"]]
        return end(errors, added, self._options.distill)

    def _late(self) -> bool:
        hours, rounds = self._options.train.max_hours, self._state["rounds"]
        used = time.monotonic() - self._job.began
        return bool(rounds) and hours is not None and used > 3600 * hours

    def _train(self, number: int) -> Outcome:
        """A training: the first one is number 0."""
        folder = self._directory.path
        prefix, prepared = _prefix(number), self._prepared(number)
        recipe, name = prepared.recipe, "first training" if number == 0 else f"round {number}"
        for bad in prepared.rejected:
            self._say(f"left out: {bad}")
        d = recipe.config.descriptor
        self._say(
            f"{name}: {len(recipe.tasks[0].training)} frames, {recipe.train.steps} steps; "
            f"{d.nlayers} layers of {d.n_dim}/{d.e_dim}/{d.a_dim}, cutoffs {d.e_rcut:g} and "
            f"{d.a_rcut:g} Å, on {recipe.device}"
        )
        outcome = train(
            recipe, folder, self._job.began, self._reporter, prefix=prefix, progress=self._follow
        )
        assert outcome is not None  # only done trainings have none
        if outcome.finished:
            errors = Errors.of(self._frames(HELD_OUT), self._potential(number))
            facts = {
                "frames": len(recipe.tasks[0].training),
                "steps": outcome.steps,
                "best_step": outcome.best_step,
                "held_out": errors.rows(),
                "curve": list(outcome.rows),
            }
            self._state["rounds"].append(facts)
            self._save()
            recorder = FolderRecorder(folder, recipe, prefix)
            recorder.clean()
            (folder / f"{prefix}{STATE}").unlink(missing_ok=True)
            self._say(f"{name}, held-out frames: {_in_words(errors.rows())}")
        return outcome

    def _prepared(self, number: int) -> Prepared:
        """A training of the frames that there are."""
        names = [_frames_file(k) for k in range(number + 1)]
        for name in (*names, HELD_OUT):
            self._frames(name)  # raises for damage
        folder = self._directory.path
        files = [folder / name for name in names if (folder / name).stat().st_size]
        before = self._model(number - 1) if number else None
        return recipe_of(files, folder / HELD_OUT, self._options, self._teacher, before)

    def _model(self, number: int) -> ModelFile:
        """The best student of a training."""
        return read_model(self._directory.path / f"{_prefix(number)}{model_file('best', SINGLE)}")

    def _potential(self, number: int) -> Potential:
        return Potential(self._model(number), device=self._teacher.device)

    def _improve(self, number: int) -> None:
        """Frames of the student's own dynamics where it errs, for the training ``number``."""
        path = self._directory.path / f"{_prefix(number)}{rundir.EVALUATIONS}"
        with (
            StoredPotential(self._potential(number - 1), path) as student,
            self._evaluations() as teacher,
        ):
            structures, options = self._structures, self._options
            found = hottest(structures, student, teacher, options, number, self._follow)
        added = found.large(self._options.distill.target)
        self._state["excursions"].append(
            {
                "own_dynamics": found.rows,
                "frames_labelled": len(found.frames),
                "frames_added": len(added),
                "problems": found.problems,
            }
        )
        self._keep({_frames_file(number): added})
        path.unlink(missing_ok=True)
        for problem in found.problems:
            self._say(f"the student's own dynamics: {problem}")
        self._say(
            f"round {number}: {len(added)} of {len(found.frames)} frames of the student's own "
            f"dynamics are added{_in_words(found.rows, '; ')}"
        )

    # -- check -------------------------------------------------------------------------------------

    @property
    def _last(self) -> int:
        """The number of the last training that has a student, finished or not."""
        number = len(self._state["rounds"])
        unfinished = self._directory.path / f"{_prefix(number)}{model_file('best', SINGLE)}"
        return number if unfinished.exists() else number - 1

    def _written(self) -> tuple[ModelFile, list[str]]:
        """Write the student's files; returns it, and what did not succeed."""
        prepared = self._prepared(self._last)
        recorder = FolderRecorder(self._directory.path, prepared.recipe)
        (task,) = prepared.recipe.tasks
        recorder.models("best", {SINGLE: dict(self._model(self._last).weights)})
        missing = None
        if self._options.train.covariance:
            missing = add_certainty(recorder, task, prepared.recipe.device)
        return recorder.best(SINGLE), [] if missing is None else [missing]

    def _checked(self, model: ModelFile) -> dict[str, Any]:
        """What the student can do; measured once for each student."""
        known = self._state["check"]
        if known is None or known["student_sha256"] != model.sha256:
            student, structures = Potential(model, device=self._teacher.device), self._structures
            path = self._directory.path / f"check.{rundir.EVALUATIONS}"
            with StoredPotential(student, path) as stored, self._evaluations() as teacher:
                own = everywhere(structures, stored, teacher, self._options, self._follow)
                nve = drift(structures, stored, self._options, self._follow)
            self._state["check"] = {
                "student_sha256": model.sha256,
                "held_out": Errors.of(self._frames(HELD_OUT), student).rows(),
                "own_dynamics": own.rows,
                "problems": own.problems,
                "nve": nve,
                "speed": self._speed(student),
            }
            self._save()
            path.unlink(missing_ok=True)
        found: dict[str, Any] = self._state["check"]
        return found

    def _speed(self, student: Potential) -> dict[str, Any]:
        """Times of an evaluation by teacher and student of the same moving supercell."""
        least = self._options.distill.check_atoms
        atoms = supercell(self._structures[0], least, 8 * least)
        slow, fast = atoms.copy(), atoms.copy()
        slow.calc, fast.calc = DPA3Calculator(self._teacher), DPA3Calculator(student)
        times = time_in_turn(slow, fast, _TURNS, _STUDENT_CALLS)
        teacher_s, student_s = (float(np.median(seconds)) for seconds in times)
        return {
            "n_atoms": len(atoms),
            "teacher_s": teacher_s,
            "student_s": student_s,
            "ratio": teacher_s / student_s,
        }

    # -- the end -----------------------------------------------------------------------------------

    def _finish(
        self, reason: str, model: ModelFile, checked: Mapping[str, Any], told: Sequence[str]
    ) -> dict[str, Any]:
        """Write the result and what belongs to it.

        Args:
            reason: why it ended. model: the student. checked: what it can do. told: warnings.
        """
        folder, rounds = self._directory.path, self._state["rounds"]
        stable = not checked["problems"] and "error" not in checked["nve"]
        reached = 1e3 * _worst(checked["held_out"]) <= self._options.distill.target
        ended = reason != OUT_OF_TIME
        content = {
            "protocol": NAME,
            "structure": [source.origin for source in self._sources],
            "converged": ended and reached and stable,
            "reasons": [reason],
            "warnings": [*told, *self._doubts(checked, reached)],
            **{k: v for k, v in checked.items() if k != "student_sha256"},
            "rounds": [{k: v for k, v in x.items() if k != "curve"} for x in rounds],
            "excursions": self._state["excursions"],
            "left_out": self._state["left_out"],
            "parameters": model.parameter_count,
            "settings": self._options.values(),
            "model": model_facts(self._teacher),
            "dtype": self._teacher.dtype,
            "directory": str(folder),
        }
        texts = [(folder / _frames_file(k)).read_text() for k in range(self._last + 1)]
        atomic_write(folder / FRAMES, "".join(texts))
        if rounds:
            self._draw(model)
        self._directory.write_result(content, final=content["converged"])
        if content["converged"]:
            for path in (*folder.glob("round*.*"), *folder.glob("frames.*.extxyz")):
                path.unlink()
        stored = self._directory.result
        assert stored is not None
        for line in self._lines(stored):
            self._say(line)
        more = "" if ended else "; the same command continues"
        self._say(f"results in {folder}{more}")
        return stored

    def _doubts(self, checked: Mapping[str, Any], reached: bool) -> list[str]:
        """What the user must know before using the student."""
        target, found = self._options.distill.target, list(checked["problems"])
        if not reached:
            found.append(
                f"the forces of held-out frames err by more than the target of {target:g} meV/Å: "
                "a larger --size, more --rounds, or more --frames help"
            )
        own = 1e3 * _worst(checked["own_dynamics"]) if checked["own_dynamics"] else 0.0
        held = 1e3 * _worst(checked["held_out"])
        if reached and own > min(target, _ASTRAY * held):
            found.append(
                f"along its own dynamics, the student's forces err by {own:.3g} meV/Å instead of "
                f"{held:.3g} on held-out frames: more --rounds, --frames or --steps help"
            )
        if "error" in checked["nve"]:
            found.append(f"dynamics without a thermostat failed: {checked['nve']['error']}")
        return found

    def _draw(self, model: ModelFile) -> None:
        """The learning curve of all trainings, and forces and energies against labels."""
        folder, rounds = self._directory.path, self._state["rounds"]
        rows, before = [], 0
        for facts in rounds:
            rows += [{**row, "step": before + row["step"]} for row in facts["curve"]]
            before += facts["steps"]
        write_curve(folder / CURVE, rows)
        if not self._job.plots:
            return
        from dpa3sim.report.plots.training import plot_learning_curve, plot_parity

        plot_learning_curve(folder, rows, folder.stem)
        frames = self._frames(HELD_OUT)
        first = Errors.of(frames, self._potential(0))
        last = Errors.of(frames, Potential(model, device=self._teacher.device))
        energies, forces = (
            np.concatenate([getattr(first, name), getattr(last, name)[1:]])
            for name in ("energies", "forces")
        )
        plot_parity(folder, energies, forces, folder.stem)

    def _lines(self, stored: Mapping[str, Any]) -> list[str]:
        """The result in a few lines."""
        state = "done" if stored["converged"] else "NOT done"
        steps = sum(facts["steps"] for facts in stored["rounds"])
        nve, speed = stored["nve"], stored["speed"]
        found = [
            f"{state}: {'; '.join(stored['reasons'])}, {steps} steps "
            f"(trainings: {len(stored['rounds'])}), {stored['parameters']} parameters"
        ]
        for title, key in (("held-out frames", "held_out"), ("its own dynamics", "own_dynamics")):
            found += [f"  {title:<18}{_row_in_words(row)}" for row in stored[key]]
        if nve.get("drift_meV_per_atom_per_ps") is not None:
            error = nve["drift_error_meV_per_atom_per_ps"]
            found.append(
                f"  {'drift, NVE':<18}{nve['drift_meV_per_atom_per_ps']:.3g} ± {error:.2g} "
                f"meV/atom/ps in {nve['simulated_ps']:g} ps"
            )
        found.append(
            f"  {'speed':<18}{speed['ratio']:.1f} times the teacher's: "
            f"{1e3 * speed['student_s']:.3g} instead of "
            f"{1e3 * speed['teacher_s']:.3g} ms for {speed['n_atoms']} atoms"
        )
        return found + [f"warning: {warning}" for warning in stored["warnings"]]

    def _is_done(self, stored: Mapping[str, Any]) -> bool:
        """Whether a stored result leaves nothing to do; then report it."""
        try:
            if not stored["converged"]:
                return False
            lines = self._lines(stored)
            worst = 1e3 * _worst(stored["held_out"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self._directory.path / rundir.RESULT}: damaged "
                f"({type(error).__name__}: {error}); --force starts again"
            ) from None
        if worst > self._options.distill.target:
            raise InputError(
                f"{self._directory.path}: done, with a larger target; choose another --out, or "
                "--force to replace it"
            )
        for line in (*lines, f"already done in {self._directory.path}"):
            self._say(line)
        return True

    def _summary(self) -> dict[str, Any]:
        """Everything that decides the result, readable."""
        return {
            "structure": [source.origin.rpartition("/")[2] for source in self._sources],
            "structure_sha256": [source.sha256 for source in self._sources],
            **calculation_facts(NAME, self._teacher, self._options.distill),
            **self._options.values(),
        }

    def _say(self, message: str) -> None:
        self._narrator.say(message)

    def _follow(self, event: Event) -> None:
        """Show an event; report or log a line now and then."""
        if event.stage == LEFT_OUT:
            self._state["left_out"].append(event.message)
            self._say(f"left out: {event.message}")
            return
        training = event.stage == "train"
        self._narrator.follow(event.message if training else f"{event.stage}: {event.message}")


def estimate(
    sources: Sequence[Source], teacher: Potential, options: DistillOptions
) -> tuple[Cost, dict[str, Any]]:
    """What the teacher's evaluations take, and the trainings; a few of both are timed.

    Raises:
        InputError: a structure cannot be used.
    """
    structures = [_named(source) for source in sources]
    cost = evaluations(stages(structures, options), teacher)
    # For the time of a step, labels do not matter.
    rng, frames = np.random.default_rng(options.sample.seed), []
    for start in starts(structures, options.sample):
        for _ in range(_TRIAL_FRAMES):
            nothing = Label(0.0, np.zeros((len(start), 3)), None)
            frames.append(labelled(rattled(start, _TRIAL_RATTLE, rng), nothing))
    with TemporaryDirectory() as folder:
        path = Path(folder) / FRAMES
        atomic_write(path, to_extxyz(frames))
        trial = training(recipe_of([path], path, options, teacher).recipe)
    steps = options.train.steps + options.distill.rounds * options.distill.round_steps
    facts = {
        "steps_least": options.train.steps,
        "steps_most": steps,
        "step_s": trial["step_s"],
        "time_most_s": steps * trial["step_s"],
    }
    return cost, facts


def _named(source: Source) -> Atoms:
    """The structure, which says where it comes from."""
    atoms = source.atoms.copy()
    atoms.info[PARENT] = source.origin
    return atoms


def _prefix(number: int) -> str:
    """The beginning of the names of the files of a training."""
    return f"round{number}."


def _frames_file(number: int) -> str:
    """The frames that a training has beside those of the trainings before."""
    return f"frames.{number}.extxyz"


def _worst(rows: Sequence[Mapping[str, Any]]) -> float:
    """The RMSE of forces at the temperature where it is largest, eV/Å."""
    return max(float(row["forces_rmse_eV_per_A"]) for row in rows)


def _in_words(rows: Sequence[Mapping[str, Any]], before: str = "") -> str:
    """The errors of forces at each temperature; empty if there are none."""
    shown = ", ".join(
        f"{1e3 * row['forces_rmse_eV_per_A']:.3g} at {row['temperature_K']:g} K" for row in rows
    )
    return f"{before}forces err by (meV/Å) {shown}" if rows else ""


def _row_in_words(row: Mapping[str, Any]) -> str:
    return (
        f"{row['temperature_K']:g} K: forces RMSE {1e3 * row['forces_rmse_eV_per_A']:.3g} of "
        f"{1e3 * row['forces_rms_eV_per_A']:.3g} meV/Å, energy "
        f"{1e3 * row['energy_rmse_per_atom_eV']:.3g} meV/atom"
    )
