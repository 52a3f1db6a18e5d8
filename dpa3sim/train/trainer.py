"""The course of a training: batches, gradients, steps, validation, states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa3sim.common.durations import estimated
from dpa3sim.common.errors import InputError, NonFiniteError
from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.graph.lists import Counters
from dpa3sim.kernels.evaluator import MemoryPolicy
from dpa3sim.kernels.gradients import largest_difference
from dpa3sim.model.initial import case_vector, initial_weights
from dpa3sim.model.network import DTYPES, Network
from dpa3sim.model.weights import Weights
from dpa3sim.potential.batches import BatchEvaluator
from dpa3sim.potential.threads import free_threads
from dpa3sim.protocols.base import Event, Progress, silent
from dpa3sim.train.adapters import LowRank
from dpa3sim.train.data.frames import Frames
from dpa3sim.train.data.statistics import composition_fit, counts
from dpa3sim.train.gradient import (
    Batch,
    DifferenceGradient,
    ExactGradient,
    GradientMethod,
    suitable_scale,
)
from dpa3sim.train.graphs import GraphStore
from dpa3sim.train.loss import Labels, Loss, Measures
from dpa3sim.train.optimizer import Average, Optimizer, clip_
from dpa3sim.train.recipe import Recipe, Task
from dpa3sim.train.recording import MemoryRecorder, Models, Recorder, Row, State
from dpa3sim.train.sampling import TaskSampler
from dpa3sim.train.schedule import Schedule
from dpa3sim.train.statistics import descriptor_statistics
from dpa3sim.train.team import Alone, Team, sum_gradients
from dpa3sim.train.weights import TaskWeights

# Frames whose energies by an untrained model are fitted; and of a model that is trained further,
# the atoms of such frames together.
_FIT_FRAMES, _SHIFT_ATOMS = 32, 2048
# The error of gradients is measured on frames of these ranks among those with at most so many
# angles: second derivatives of more would take gigabytes.
_CHECKED_FRAMES, _CHECKED_ANGLES = (0.1, 0.2, 0.3), 20_000
# Steps between two looks for a better displacement.
_RESCALE_EVERY = 1000
# Atoms that are validated together.
_VALIDATION_ATOMS = 256
STOPPED = "interrupted"
"""The reason of a training whose ``stop`` ended it."""
_WEIGHTS, _FIXED, _OPTIMIZER, _AVERAGE, _SINCE = (
    f"{name}/" for name in ("weights", "fixed", "optimizer", "average", "since")
)


@dataclass
class _Best:
    """The best validation so far, and how many were not better since then."""

    step: int | None = None
    loss: float = math.inf
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    worse: int = 0


@dataclass
class _Since:
    """Sums over the steps since the last row of the learning curve, and over all ranks."""

    loss: Tensor
    measures: Tensor
    steps: int = 0

    @classmethod
    def begin(cls, device: torch.device) -> _Since:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(zeros(()), zeros((3, 3)))


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        steps: done, of total_steps. best_step: of the best validation; None without such data.
        finished: whether nothing is left to do. reason: why it ended.
        validation: errors of the best model by task, see :meth:`Measures.values`.
        gradient_error: relative error of gradients, measured at the start; None where gradients
            are exact.
        gradient_check: how it was measured.
        rows: the learning curve.
        seconds: of this session; frames: trained in it.
        warnings: what impairs the result.
    """

    steps: int
    total_steps: int
    best_step: int | None
    finished: bool
    reason: str
    validation: Mapping[str, Mapping[str, float]]
    gradient_error: float | None
    gradient_check: str
    rows: Sequence[Row]
    seconds: float
    frames: int
    warnings: tuple[str, ...]


class Trainer:
    """Trains a model.

    Args:
        recipe: what to do.
        recorder: where it goes; a state in it is continued.
        team: the processes that share the batches.
        progress: receives events.
        stop: asked after every step whether to end with a saved state.
        give_up: asked again and again before the first step whether to end without one.
        began: when the process began, by :func:`time.monotonic`, for ``max_hours``.

    Attributes:
        steps: how many there are to do.

    Raises:
        InputError: data that the model cannot compute, or a state of another training.
    """

    def __init__(
        self,
        recipe: Recipe,
        recorder: Recorder | None = None,
        team: Team | None = None,
        progress: Progress = silent,
        stop: Callable[[], bool] = lambda: False,
        began: float | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._recipe, self._recorder = recipe, recorder or MemoryRecorder()
        self._team, self._progress, self._stop = team or Alone(), progress, stop
        self._began = time.monotonic() if began is None else began
        self._preparing, self._give_up = True, give_up
        config, train = recipe.config, recipe.train
        self._stores = {x.name: self._graphs(x.training, x.name, "training") for x in recipe.tasks}
        self._validation = {
            x.name: self._graphs(x.validation, x.name, "validation")
            for x in recipe.tasks
            if x.validation is not None and len(x.validation)
        }
        samplers = recipe.samplers(self._team.rank, self._team.size)
        self.steps = recipe.steps(samplers)
        self._samplers = TaskSampler(samplers, train.weights_of_tasks(), train.seed)
        self._schedule = Schedule(recipe.schedule, self.steps)
        rate = recipe.schedule.learning_rate
        self._losses = {task.name: Loss(task.loss, rate) for task in recipe.tasks}

        start = self._first_weights()
        dtype = DTYPES[config.descriptor.precision]
        self._network = Network(config, start[recipe.names[0]], recipe.device, dtype)
        low_rank = None
        if recipe.low_rank is not None:
            low_rank = LowRank(*recipe.low_rank, train.seed)
        separate = train.separate_fitting
        self._weights = TaskWeights(
            self._network, recipe.names, separate, start, recipe.frozen, low_rank
        )
        self._batcher = BatchEvaluator(
            self._network, recipe.rules, 0.0, None, f"training {config!r}", Counters()
        )
        self._difference = DifferenceGradient(
            self._network, self._batcher.evaluator, self._policy, "descriptor." in recipe.frozen
        )
        self._method: GradientMethod = self._difference
        if train.gradient == "exact":
            self._method = ExactGradient(self._network)
        self._optimizer = Optimizer(self._weights.trained, recipe.optimizer)
        self._average: Average | None = None
        self._done, self._saved = 0, -1
        self._rows: list[Row] = []
        self._best, self._since = _Best(), _Since.begin(recipe.device)
        self._error: float | None = None
        self._check = ""

    def run(self) -> Outcome:
        """Train to the end, or until something ends it.

        Raises:
            NonFiniteError: a gradient is not finite. OutOfMemoryError: a batch is too large.
            KeyboardInterrupt: asked to give up before the first step.
        """
        if not self._resume():
            self._begin()
        self._preparing = False
        if self._team.size > 1:
            self._reachable = self._find_reachable()
        began, first, frames, reason = time.monotonic(), self._done, 0, self._end()
        while not reason:
            frames += self._step()
            self._after_step(first, time.monotonic() - began, frames)
            reason = self._end() or self._break(began, first)
        if self._saved != self._done:
            self._save()
        self._write("last", self._trained())
        if self._best.step is None:
            self._write("best", self._trained())
        return Outcome(
            steps=self._done,
            total_steps=self.steps,
            best_step=self._best.step,
            finished=bool(self._end()),
            reason=reason,
            validation=self._best.errors,
            gradient_error=self._error,
            gradient_check=self._check,
            rows=tuple(self._rows),
            seconds=time.monotonic() - began,
            frames=int(self._team.sum(torch.tensor(frames))),
            warnings=self._warnings(),
        )

    # -- preparation -----------------------------------------------------------------------------

    def _say(self, stage: str, message: str, done: int = 0, total: int = 0) -> None:
        self._progress(Event(stage, message, done, total))

    def _check_preparation(self) -> None:
        """Raise KeyboardInterrupt if asked to end before there is anything to save."""
        if self._preparing and self._give_up():
            raise KeyboardInterrupt

    def _graphs(self, frames: Frames, task: str, use: str) -> GraphStore:
        total = len(frames)

        def show(done: int) -> None:
            self._check_preparation()
            if done % 100 == 0 or done == total:
                self._say("edges", f"edges of {done}/{total} {use} frames", done, total)

        path = self._recorder.graphs(f"{task}.{use}") if self._team.rank == 0 else None
        return GraphStore(frames, self._recipe.config, self._recipe.rules, path, show)

    def _first_weights(self) -> Mapping[str, Weights]:
        """Random weights, or those to start from, of every task."""
        recipe = self._recipe
        if recipe.start is not None:
            return recipe.start
        config, seed = recipe.config, recipe.train.seed
        found: dict[str, dict[str, np.ndarray]] = {}
        for number, name in enumerate(recipe.names):
            own = seed + number if recipe.train.separate_fitting else seed
            found[name] = initial_weights(config, own, **recipe.initial)
            if config.fitting.dim_case_embd:
                vector = case_vector(recipe.names, name, config.fitting.dim_case_embd)
                found[name]["fitting_net.case_embd"] = vector
        if any(np.isnan(array).any() for array in found[recipe.names[0]].values()):
            stores = self._stores.values()
            systems = (store.system(k) for store in stores for k in range(len(store)))
            statistics = descriptor_statistics(config, systems)
            for weights in found.values():
                weights |= statistics
        return found

    def _begin(self) -> None:
        """What a new training does first."""
        for task in self._recipe.tasks:
            if self._recipe.start is None:
                self._fit_bias(task)
            elif task.main:
                self._shift_bias(task)
        if self._recipe.train.ema_decay is not None:
            self._average = Average(self._weights.trained, self._recipe.train.ema_decay)
        if self._method is self._difference:
            self._measure_gradient_error()
        if self._recipe.start is not None and self._validation:
            # The first row: the model that the training starts from.
            self._rows.append({"step": 0.0, **self._validate()})
            self._say("start", f"before the first step: {_of_validation(self._rows[0])}")

    def _shift_bias(self, task: Task) -> None:
        """Fit the energies of the elements to what the model leaves of the labels of a task."""
        known = np.flatnonzero(task.training.has_energy)
        if self._recipe.shift == "none" or not len(known):
            return
        type_map = self._recipe.config.type_map
        order = np.random.default_rng(self._recipe.train.seed).permutation(known)
        amounts = counts(task.training, type_map)
        chosen = np.sort(_some(amounts, order, _SHIFT_ATOMS))
        amounts, predicted = amounts[chosen], self._energies(task, chosen)
        residual = task.training.energies[chosen] - predicted
        if self._recipe.shift == "uniform":
            shifts = np.full(len(type_map), composition_fit(amounts.sum(axis=1)[:, None], residual))
            shifts[amounts.sum(axis=0) == 0] = 0.0
        else:
            shifts = composition_fit(amounts, residual)
        self._weights.set_bias(task.name, self._weights.bias(task.name) + shifts)
        shown = ", ".join(f"{x} {e:+.3f}" for x, e in zip(type_map, shifts, strict=True) if e)
        self._say("start", f"energies of the elements change by (eV): {shown or 'nothing'}")

    def _energies(self, task: Task, frames: np.ndarray) -> np.ndarray:
        """Energies of some training frames by the model as it is, eV."""
        self._select(task.name)
        batches = (self._batch(self._stores[task.name], [int(k)]) for k in frames)
        return np.array([float(self._difference.predict(x).energy[0]) for x in batches])

    def _fit_bias(self, task: Task) -> None:
        """Fit the energies of the elements to the labels of a task."""
        frames, energies = task.training, task.training.energies
        known = np.flatnonzero(frames.has_energy)
        if not len(known):
            return
        amounts = counts(frames, self._recipe.config.type_map)
        if self._recipe.train.energy_bias == "residual":
            order = np.random.default_rng(self._recipe.train.seed).permutation(known)
            chosen = np.sort(order[:_FIT_FRAMES])
            found = self._energies(task, chosen)
            # Untrained, a model says nearly the same of all structures of a composition.
            energies = energies - amounts @ composition_fit(amounts[chosen], found)
        given = self._recipe.fixed_bias.get(task.name, {})
        fixed = np.array([given.get(x, np.nan) for x in self._recipe.config.type_map])
        open_ones = np.isnan(fixed)
        bias = np.where(open_ones, 0.0, fixed)
        rest = energies[known] - amounts[known] @ bias
        bias[open_ones] = composition_fit(amounts[known][:, open_ones], rest)
        self._weights.set_bias(task.name, bias)

    def _measure_gradient_error(self) -> None:
        """Compare a few gradients with exact ones, or with those of other displacements."""
        task = self._recipe.tasks[0]
        store, loss = self._stores[task.name], self._loss(task.name)
        self._select(task.name)
        order = np.argsort(store.angles, kind="stable")
        cheap = order[store.angles[order] <= _CHECKED_ANGLES]
        # Some of the smaller frames, but not only the smallest: those may be single atoms.
        chosen = {int(len(cheap) * share) for share in _CHECKED_FRAMES}
        batches = [self._batch(store, [int(cheap[k])]) for k in sorted(chosen) if len(cheap)]
        if batches:
            network = Network(
                self._recipe.config,
                self._weights.arrays(task.name, self._recipe.config, self._weights.trained),
                self._recipe.device,
                torch.float64,
            )
            exact, pairs = ExactGradient(network), []
            for batch in batches:
                found, expected = (x(batch, loss).weights for x in (self._difference, exact))
                pairs.append((found, {name: expected[name] for name in found}))
            self._check = "second derivatives in float64"
        else:
            batch = self._batch(store, [int(order[0])])
            self._difference.scale = 2.0
            coarse = self._difference(batch, loss).weights
            self._difference.scale = 1.0
            pairs = [(coarse, self._difference(batch, loss).weights)]
            self._check = "twice the displacement"
        self._error = largest_difference(pairs)
        self._say("gradient", f"gradients err by {self._error:.1e} against {self._check}")

    def _find_reachable(self) -> dict[str, list[str]]:
        """The weights of each task that have a gradient, which ranks without a frame must know."""
        found, evaluator = {}, self._batcher.evaluator
        for name, store in self._stores.items():
            graph = self._batch(store, [0]).blocks
            gradients = evaluator.named_gradients(graph, evaluator.weight_sums(graph))
            found[name] = sorted(self._weights.gradients(name, gradients))
        return found

    # -- one step --------------------------------------------------------------------------------

    def _select(self, task: str, trained: Mapping[str, Tensor] | None = None) -> None:
        """Let the network compute a task, with the weights as they are now."""
        self._weights.select(task, trained)
        self._batcher.evaluator.refresh()

    def _policy(self, graph: BlockGraph) -> MemoryPolicy:
        advice = "use a smaller batch_size, or leave larger frames out with batch_size=filter:N"
        return self._batcher.memory.possible_policy(graph.layout, advice)

    def _batch(self, store: GraphStore, rows: Sequence[int]) -> Batch:
        """Frames as the gradient takes them."""
        self._check_preparation()
        config = self._recipe.config
        return Batch(
            [store.system(k) for k in rows],
            [store.edges(k) for k in rows],
            labels_of(store.frames, rows, self._recipe.device),
            self._batcher.memory.limits(False),
            config.descriptor.update_angle,
            self._recipe.device,
        )

    def _loss(self, task: str, scale: Mapping[str, Tensor] | None = None) -> Any:
        """The loss of a task at this step."""
        return partial(self._losses[task], lr=self._schedule(self._done), scale=scale)

    def _step(self) -> int:
        """Change the weights once; returns the number of frames that this took, on this rank."""
        task, rows = self._samplers.draw()
        self._select(task)
        rate, gradients = self._schedule(self._done), {}
        batch = self._batch(self._stores[task], rows.tolist()) if len(rows) else None
        scale = self._scale(batch)
        here = torch.zeros(10, dtype=torch.float64, device=self._recipe.device)
        if batch is not None:
            with free_threads():
                loss, measures, found = self._method(batch, self._loss(task, scale))
            gradients = self._weights.gradients(task, found)
            here = torch.cat([loss.view(1), measures.sums.flatten()])
        # Summed in every step, so that the sums do not depend on when a state was saved.
        everywhere = self._team.sum(here)
        self._since.loss += everywhere[0]
        self._since.measures += everywhere[1:].view(3, 3)
        trained = self._weights.trained
        if self._team.size > 1:
            gradients = sum_gradients(self._team, gradients, self._reachable[task], trained)
        clip_(gradients, self._recipe.train.gradient_max_norm or math.inf)
        if (self._done + 1) % _RESCALE_EVERY == 0 and self._method is self._difference:
            self._rescale(batch, task)
        self._optimizer.step(gradients, rate)
        if self._average is not None:
            # The average of a short training would mostly be what it started from.
            short = self._recipe.start is not None
            self._average.update(trained, (1 + self._done) / (10 + self._done) if short else 1.0)
        self._done += 1
        self._since.steps += 1
        return len(rows)

    def _scale(self, batch: Batch | None) -> dict[str, Tensor] | None:
        """How many frames have each label, on all ranks together."""
        if self._team.size == 1:
            return None
        names = ("e", "f", "v", "ae")
        counts_here = torch.zeros(len(names), dtype=torch.float64, device=self._recipe.device)
        if batch is not None:
            counts_here = torch.stack([batch.labels.counts[name] for name in names])
        return dict(zip(names, self._team.sum(counts_here), strict=True))

    def _rescale(self, batch: Batch | None, task: str) -> None:
        """Look for a better displacement, with the batch of the first rank."""
        scale = torch.zeros(1, dtype=torch.float64)
        if self._team.rank == 0:
            assert batch is not None  # the first rank has a frame of every batch
            scale[0] = suitable_scale(self._difference, batch, self._loss(task))
        self._difference.scale = float(self._team.sum(scale))

    # -- between steps ---------------------------------------------------------------------------

    def _after_step(self, first: int, seconds: float, frames: int) -> None:
        """Validate, report and save as often as the options say."""
        train, done = self._recipe.train, self._done
        last = done == self.steps
        validation: Row = {}
        if self._validation and (last or done % train.validate_every == 0):
            validation = self._validate()
        if validation or last or done % train.report_every == 0:
            self._report(validation)
        if last or done % train.save_every == 0:
            self._save()
        per_step = seconds / (done - first)
        shown = f"step {done}/{self.steps}, {self._team.size * frames / seconds:.3g} frames/s"
        shown += f", {estimated(per_step * (self.steps - done))} left"
        if self._rows:
            shown = f"{shown}; {_in_words(self._rows[-1])}"
        self._say("train", shown, done, self.steps)

    def _trained(self) -> Mapping[str, Tensor]:
        """The weights that are validated and written: averages, where there are such."""
        trained = self._weights.trained
        return trained if self._average is None else self._average.weights(trained)

    def _validate(self) -> Row:
        """Errors of all validation frames; a better model than before is written."""
        row, losses, errors = Row(), [], {}
        decisive = {task.name for task in self._recipe.main} & set(self._validation)
        for name, store in self._validation.items():
            self._select(name, self._trained())
            value, measures = self._errors(name, store)
            if name in decisive:
                losses.append(value)
            errors[name] = measures.values()
            suffix = "" if [name] == [task.name for task in self._recipe.main] else f"_{name}"
            row[f"validation_loss{suffix}"] = value
            row |= {f"validation_{key}{suffix}": x for key, x in errors[name].items()}
        if not decisive:
            return row
        total = sum(losses) / len(losses)
        if not math.isfinite(total):
            raise NonFiniteError(f"the validation loss of step {self._done} is not finite")
        if total < self._best.loss:
            self._best = _Best(self._done, total, errors)
            self._write("best", self._trained())
        else:
            self._best.worse += 1
        return row

    def _errors(self, task: str, store: GraphStore) -> tuple[float, Measures]:
        """The loss with the last prefactors and the errors, over all frames of a store."""
        frames, device = store.frames, self._recipe.device
        scale: dict[str, Tensor | float] = {
            "e": float(frames.has_energy.sum()),
            "f": float(frames.has_forces.sum()),
            "v": float(frames.has_virial.sum()),
            "ae": float(frames.has_atomic_energies.sum()),
        }
        total = torch.zeros((), dtype=torch.float64, device=device)
        sums = torch.zeros((3, 3), dtype=torch.float64, device=device)
        for rows in _chunks(frames.sizes)[self._team.rank :: self._team.size]:
            batch = self._batch(store, rows)
            predicted = self._difference.predict(batch)
            value, _, measures = self._losses[task](predicted, batch.row_labels, 0.0, scale)
            total += value
            sums += measures.sums
        both = self._team.sum(torch.cat([total.view(1), sums.flatten()]))
        return float(both[0]), Measures(both[1:].view(3, 3))

    def _report(self, validation: Row) -> None:
        """Add a row to the learning curve.

        Raises:
            NonFiniteError: a loss or a weight since the last row is not finite.
        """
        since = self._since
        loss = float(since.loss) / max(since.steps, 1)
        self._check_finite(loss)
        errors = Measures(since.measures).values()
        self._rows.append(
            {
                "step": float(self._done),
                "learning_rate": self._schedule(self._done - 1),
                "loss": loss,
                **{f"train_{key}": x for key, x in errors.items() if key.startswith("rmse")},
                **validation,
            }
        )
        self._since = _Since.begin(self._recipe.device)
        if self._team.rank == 0:
            self._recorder.curve(self._rows)

    def _check_finite(self, loss: float) -> None:
        """Raise NonFiniteError unless a loss and all weights are finite."""
        weights = self._weights.trained.values()
        if not (math.isfinite(loss) and all(bool(x.isfinite().all()) for x in weights)):
            raise NonFiniteError(
                f"the training diverged before step {self._done}: a loss or a weight is not "
                "finite. Train with a smaller learning_rate, or look at the data with "
                "'dpa3sim data info'"
            )

    def _write(self, kind: str, trained: Mapping[str, Tensor]) -> None:
        if self._team.rank == 0:
            config = self._recipe.config
            models: Models = {
                task.name: self._weights.arrays(task.name, config, trained)
                for task in self._recipe.main
            }
            self._recorder.models(kind, models)

    # -- ends ------------------------------------------------------------------------------------

    def _end(self) -> str:
        """Why nothing is left to do; empty if something is."""
        patience = self._recipe.train.patience
        if patience is not None and self._best.worse >= patience:
            return f"no better validation in {patience} of them"
        return f"all {self.steps} steps done" if self._done >= self.steps else ""

    def _break(self, began: float, first: int) -> str:
        """Why to stop now and to be continued; empty if there is no reason."""
        now, hours = time.monotonic(), self._recipe.train.max_hours
        step = (now - began) / (self._done - first)
        late = hours is not None and now + 2 * step > self._began + 3600 * hours
        flags = torch.tensor([self._stop(), late], dtype=torch.int64)
        stopped, late = (self._team.sum(flags) > 0).tolist()
        if stopped:
            return STOPPED
        return "max_hours is over" if late else ""

    def _warnings(self) -> tuple[str, ...]:
        found = []
        cut = sum(x.n_cut for x in (*self._stores.values(), *self._validation.values()))
        if cut:
            found.append(
                f"the selection limits e_sel and a_sel cut {cut} neighbours in all frames: the "
                "energy of the model jumps where equal distances are cut; larger limits avoid it"
            )
        if not self._validation:
            found.append("there are no validation frames: the last model counts as the best")
        if self._error is not None and self._error > 1e-2:
            found.append(
                f"gradients had a relative error of {self._error:.1e} at the start; --gradient "
                "exact is slower and has none"
            )
        return tuple(found)

    # -- states ----------------------------------------------------------------------------------

    def _save(self) -> None:
        """Save all that is needed to continue.

        Raises:
            NonFiniteError: there is nothing to continue from.
        """
        self._check_finite(float(self._since.loss))
        self._saved = self._done
        if self._team.rank != 0:
            return
        average = {} if self._average is None else self._average.state_dict()
        groups = {
            _WEIGHTS: self._weights.trained,
            _FIXED: self._weights.fixed,
            _OPTIMIZER: self._optimizer.state_dict(),
            _AVERAGE: average,
            _SINCE: {"loss": self._since.loss, "measures": self._since.measures},
        }
        tensors = {
            prefix + name: tensor
            for prefix, group in groups.items()
            for name, tensor in group.items()
        }
        facts = {
            "samplers": self._samplers.state(),
            "rows": self._rows,
            "best": asdict(self._best) if self._best.step is not None else None,
            "steps_since_row": self._since.steps,
            "scale": self._difference.scale,
            "gradient_error": self._error,
            "gradient_check": self._check,
        }
        self._recorder.save(State(self._done, facts, tensors))

    def _resume(self) -> bool:
        """Continue from a saved state, if there is one.

        Raises:
            InputError: it is that of another training, or not all ranks find the same.
        """
        state = self._recorder.load()
        self._team.meet(0 if state is None else 1 + state.step)
        if state is None:
            return False
        for prefix, tensors in ((_WEIGHTS, self._weights.trained), (_FIXED, self._weights.fixed)):
            _restore(state.part(prefix), tensors)
        self._optimizer.load_state_dict(state.part(_OPTIMIZER))
        if self._recipe.train.ema_decay is not None:
            self._average = Average(self._weights.trained, self._recipe.train.ema_decay)
            self._average.load_state_dict(state.part(_AVERAGE))
        facts, since = state.facts, state.part(_SINCE)
        self._samplers.restore(facts["samplers"])
        self._done = self._saved = state.step
        self._rows = [dict(row) for row in facts["rows"]]
        self._best = _Best(**facts["best"]) if facts["best"] else _Best()
        # Copies: the sums grow, and the saved state stays as it is.
        copied = {n: x.to(self._recipe.device, copy=True) for n, x in since.items()}
        self._since = _Since(copied["loss"], copied["measures"])
        self._since.steps = facts["steps_since_row"]
        self._difference.scale = facts["scale"]
        self._error, self._check = facts["gradient_error"], facts["gradient_check"]
        self._recorder.curve(self._rows)
        return True


def labels_of(frames: Frames, rows: Sequence[int], device: torch.device) -> Labels:
    """The labels of some frames, one after the other."""
    rows = list(rows)
    sizes = frames.sizes[rows]
    atoms = np.concatenate([np.arange(*frames.starts[k : k + 2]) for k in rows])
    atomic = frames.atomic_energies

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Labels(
        structure=tensor(np.repeat(np.arange(len(rows)), sizes)),
        n_atoms_of=tensor(sizes),
        energy=tensor(frames.energies[rows]),
        forces=tensor(frames.forces[atoms]),
        virial=tensor(frames.virials[rows]),
        weight=tensor(frames.weights[rows]),
        atomic_energies=None if atomic is None else tensor(atomic[atoms]),
    )


def _some(amounts: np.ndarray, order: np.ndarray, atoms: int) -> np.ndarray:
    """The first frames of an order that have so many atoms together and all elements of the rest.

    Args:
        amounts: ``(n_frames, ntypes)`` atoms of every type. order: of frames. atoms: how many.
    """
    chosen: list[int] = []
    seen = np.zeros(amounts.shape[1])
    for k in order.tolist():
        if seen.sum() < atoms or (amounts[k] > 0)[seen == 0].any():
            chosen.append(k)
            seen += amounts[k]
    return np.array(chosen, dtype=np.int64)


def _restore(found: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those in use."""
    same = {n: (x.shape, x.dtype) for n, x in found.items()}
    if same != {n: (x.shape, x.dtype) for n, x in tensors.items()}:
        raise InputError("the saved state is that of another model; --force starts again")
    for name, tensor in tensors.items():
        tensor.copy_(found[name])


def _chunks(sizes: np.ndarray) -> list[list[int]]:
    """Frames in order, so many together that they have some hundred atoms."""
    found: list[list[int]] = []
    atoms = _VALIDATION_ATOMS
    for index, size in enumerate(sizes.tolist()):
        if atoms + size > _VALIDATION_ATOMS:
            found.append([])
            atoms = 0
        found[-1].append(index)
        atoms += size
    return found


_UNITS = {
    "energy_per_atom_eV": ("E", "meV/atom"),
    "forces_eV_per_A": ("F", "meV/Å"),
    "virial_per_atom_eV": ("W", "meV/atom"),
}


def _in_words(row: Row) -> str:
    """The errors of a row of the learning curve."""
    shown = [] if row.get("loss") is None else [f"loss {row['loss']:.3g}"]
    for key, (name, unit) in _UNITS.items():
        value = row.get(f"train_rmse_{key}")
        if value is not None:
            shown.append(f"{name} {1e3 * value:.3g} {unit}")
    return ", ".join(shown)


def _of_validation(row: Row) -> str:
    """The errors of the validation frames of all tasks."""
    shown = []
    for key, value in row.items():
        for ending, (name, unit) in _UNITS.items():
            if value is not None and key.startswith(f"validation_rmse_{ending}"):
                task = key.removeprefix(f"validation_rmse_{ending}").replace("_", " ", 1)
                shown.append(f"{name}{task} {1e3 * value:.3g} {unit}")
    return ", ".join(shown)
