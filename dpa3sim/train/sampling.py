"""Which frames make the batch of a step.

Frames of any sizes share a batch. In an epoch every frame of a task occurs once, in a new random
order; a batch ends with the epoch, so that the last one may be smaller. All frames have the same
weight then, apart from the size of the batch that a frame is in.

With ``by_system``, batches are drawn as in deepmd-kit: each step draws a system with its
probability, and takes the next batch of it; every system has passes of its own. With rules for the
number of atoms, the batches of a system of large structures have fewer frames and are as likely, so
that a frame's weight grows with its size.

Several ranks share a batch: each computes the whole one, which is that of one rank with a rule for
``ranks`` times as much, and takes its part of it. Which frames are too large for the rule
``filter`` does not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dpa3sim.common.errors import InputError

_RULE = re.compile(r"(auto|max|filter):([1-9]\d{0,17})")
_BLOCK = re.compile(r"(\d{1,9}):(\d{1,9}):([\d.eE+-]+)")
_FRAMES = "frames"
# Batches of frames of different sizes are counted up to here, which gives their mean size.
_SAMPLE = 1000


@dataclass(frozen=True)
class BatchRule:
    """How many frames make a batch.

    Attributes:
        kind: ``frames``: that number; ``auto``: until the atoms reach the number; ``max`` and
            ``filter``: as long as the atoms do not exceed it. With ``filter``, larger frames are
            left out; otherwise a frame of any size makes a batch.
        number: of frames or of atoms.
        fewest: frames that a batch has in any case, if there are so many.
    """

    kind: str
    number: int
    fewest: int = 1

    @classmethod
    def parse(cls, text: int | str) -> BatchRule:
        """A rule from an option: a number, or ``auto``, ``auto:N``, ``max:N``, ``filter:N``.

        Raises:
            InputError: it is something else.
        """
        text = "auto:32" if text == "auto" else str(text)
        if match := _RULE.fullmatch(text):
            return cls(match[1], int(match[2]))
        if text.isascii() and text.isdigit() and 0 < int(text) < 2**31:
            return cls(_FRAMES, int(text))
        raise InputError(
            f"option batch_size = {text!r} must be a number of frames, or auto:N, max:N or "
            "filter:N with a number of atoms"
        )

    def times(self, ranks: int) -> BatchRule:
        """The rule for the batch that so many ranks share, at least one frame for each."""
        return BatchRule(self.kind, ranks * self.number, ranks * self.fewest)

    def by_atoms(self, sizes: np.ndarray) -> BatchRule:
        """The rule for frames of other sizes that makes batches of as many atoms.

        Args:
            sizes: ``(n_frames,)`` atoms of the frames that this rule is meant for.
        """
        if self.kind != _FRAMES:
            return self
        return BatchRule("auto", max(1, round(self.number * float(np.mean(sizes)))), self.fewest)

    def allows(self, sizes: np.ndarray) -> np.ndarray:
        """Which frames of these sizes are used at all, ``(n_frames,)`` bool."""
        return (sizes <= self.number) | (self.kind != "filter")

    def count(self, sizes: np.ndarray) -> int:
        """How many of the next frames make a batch, from their sizes ``(n_frames,)``."""
        # Every frame has an atom, so that more frames are not needed.
        atoms = np.cumsum(sizes[: self.number])
        if self.kind == _FRAMES:
            count = len(atoms)
        elif self.kind == "auto":
            count = int(np.searchsorted(atoms, self.number)) + 1
        else:
            count = int(np.searchsorted(atoms, self.number, side="right"))
        return min(max(count, self.fewest), len(sizes))


@dataclass(frozen=True)
class Group:
    """The frames of one system in deepmd-kit's sense, or of any set.

    Attributes:
        frames: ``(n_frames,)`` int64, their indices among the frames of the task.
        sizes: ``(n_frames,)`` int64, their numbers of atoms.
    """

    frames: np.ndarray
    sizes: np.ndarray

    @classmethod
    def join(cls, groups: Sequence[Group]) -> Group:
        """The frames of all groups."""
        frames = np.concatenate([group.frames for group in groups])
        return cls(frames, np.concatenate([group.sizes for group in groups]))

    def select(self, chosen: np.ndarray) -> Group:
        """Some of the frames; ``chosen``: indices ``(n_chosen,)``, or bool ``(n_frames,)``."""
        return Group(self.frames[chosen], self.sizes[chosen])


@dataclass(frozen=True)
class BySystem:
    """That batches are drawn system by system, and how likely the systems are.

    Attributes:
        auto_prob: ``prob_sys_size``: as their numbers of batches; ``prob_uniform``: equal; or
            ``prob_sys_size;BEGIN:END:WEIGHT;...``: the systems from BEGIN to before END have
            WEIGHT together, shared as their numbers of batches.
        sys_probs: the probabilities; systems with a negative one share the rest as their numbers of
            batches. They replace ``auto_prob``.
    """

    auto_prob: str = "prob_sys_size"
    sys_probs: tuple[float, ...] | None = None

    def probabilities(self, batches: np.ndarray) -> np.ndarray:
        """The probability of each system, 0 for those without frames.

        Args:
            batches: ``(n_systems,)`` int64, batches in a pass.

        Raises:
            InputError: the rule is malformed, or has no probability for any system with frames.
        """
        if self.sys_probs is not None:
            weights = self._given(self.sys_probs, batches)
        elif self.auto_prob == "prob_uniform":
            weights = np.ones(len(batches))
        else:
            weights = self._by_batches(batches)
        weights = np.where(batches > 0, weights, 0.0)
        if not 0 < weights.sum() < np.inf:
            raise InputError("no system with frames has a probability above 0")
        return weights / weights.sum()

    @staticmethod
    def _given(given: Sequence[float], batches: np.ndarray) -> np.ndarray:
        chosen = np.array(given, dtype=np.float64)
        if len(chosen) != len(batches):
            raise InputError(
                f"option sys_probs has {len(chosen)} numbers for {len(batches)} systems"
            )
        open_ones = chosen < 0
        if not (open_ones & (batches > 0)).any():
            return np.where(open_ones, 0.0, chosen)
        rest = 1 - chosen[~open_ones].sum()
        # The sum of ten times 0.1 is not exactly 1.
        if rest < -1e-8:
            raise InputError(f"option sys_probs: its numbers add up to {1 - rest:g}, above 1")
        shares = np.where(open_ones, batches, 0)
        return np.where(open_ones, max(rest, 0.0) * shares / shares.sum(), chosen)

    def _by_batches(self, batches: np.ndarray) -> np.ndarray:
        head, *blocks = self.auto_prob.split(";")
        if head != "prob_sys_size":
            raise self._malformed("is not prob_uniform, prob_sys_size or that with ;BEGIN:END:W")
        if not blocks:
            return batches.astype(np.float64)
        weights = np.zeros(len(batches))
        for text in blocks:
            begin, end, weight = self._block(text, len(batches))
            total = batches[begin:end].sum()
            if total:
                weights[begin:end] += weight * batches[begin:end] / total
        return weights

    def _block(self, text: str, n_systems: int) -> tuple[int, int, float]:
        match = _BLOCK.fullmatch(text)
        if not match:
            raise self._malformed(f"has a block {text!r} that is not BEGIN:END:WEIGHT")
        begin, end = int(match[1]), int(match[2])
        if not 0 <= begin < end <= n_systems:
            raise self._malformed(f"has a block {text!r}, but there are {n_systems} systems")
        try:
            weight = float(match[3])
        except ValueError:
            weight = np.nan
        if not 0 <= weight < np.inf:
            raise self._malformed(f"has a weight {match[3]!r} that is no number from 0")
        return begin, end, weight

    def _malformed(self, why: str) -> InputError:
        return InputError(f"option auto_prob = {self.auto_prob!r} {why}")


class Sampler:
    """Draws the batches of one task.

    Args:
        groups: the frames.
        rule: of one rank; with ``by_system``, it may be a sequence with a rule for each group.
        seed: the same seed gives the same batches.
        name: of the task; tasks with different names draw independently.
        rank, ranks: which part of the batches this process takes.
        by_system: how to draw system by system; without it, the groups are one set.

    Attributes:
        n_frames: frames that are used; the rule ``filter`` leaves out others.
        epoch: steps that pass all frames, those of every system at least once on average;
            estimated if the rule counts atoms and frames differ in size.

    Raises:
        InputError: no frames are left, or the rules do not fit the groups.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        rule: BatchRule | Sequence[BatchRule],
        seed: int,
        *,
        name: str = "",
        rank: int = 0,
        ranks: int = 1,
        by_system: BySystem | None = None,
    ) -> None:
        if not groups:
            raise InputError("there are no frames to train on")
        sets = [Group.join(groups)] if by_system is None else list(groups)
        rules = [rule] * len(sets) if isinstance(rule, BatchRule) else list(rule)
        if len(rules) != len(sets):
            raise InputError(
                f"option batch_size has {len(rules)} entries for {len(sets)} sets of frames"
            )
        kept = [s.select(r.allows(s.sizes)) for s, r in zip(sets, rules, strict=True)]
        self.n_frames = sum(len(s.frames) for s in kept)
        if not self.n_frames:
            raise InputError(f"batch_size leaves none of {sum(len(s.frames) for s in sets)} frames")
        self._passes = [
            _Passes(frames, own.times(ranks), f"{seed} {name} {index}")
            for index, (frames, own) in enumerate(zip(kept, rules, strict=True))
        ]
        self._rank, self._ranks = rank, ranks
        numbers = np.array([p.n_batches for p in self._passes])
        self._probabilities = (by_system or BySystem()).probabilities(numbers)
        drawn = self._probabilities > 0
        self.epoch = float((numbers[drawn] / self._probabilities[drawn]).max())
        self._choice = _generator(f"{seed} {name} systems")

    def draw(self) -> np.ndarray:
        """The frames of the next batch that this rank computes, ``(n_frames,)`` int64.

        It is empty where a batch has fewer frames than there are ranks.
        """
        index = 0
        if len(self._passes) > 1:
            index = int(self._choice.choice(len(self._passes), p=self._probabilities))
        return _share(self._passes[index].next(), self._rank, self._ranks)

    def state(self) -> dict[str, Any]:
        """Where the sampler is, JSON-ready; it is the same on all ranks."""
        return {
            "passes": [[p.number, p.position] for p in self._passes],
            "choice": self._choice.bit_generator.state,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the same batches follow as after :meth:`state`.

        Raises:
            InputError: the state is that of other frames.
        """
        places, sizes = state["passes"], [len(p) for p in self._passes]
        if len(places) != len(sizes) or any(
            position > size for (_, position), size in zip(places, sizes, strict=True)
        ):
            raise InputError("the saved order of the frames is that of other data")
        for passes, (number, position) in zip(self._passes, places, strict=True):
            passes.go_to(number, position)
        self._choice.bit_generator.state = state["choice"]


class Draw(NamedTuple):
    """The batch of a step.

    Attributes:
        task: name of the task.
        frames: ``(n_frames,)`` int64, indices among its frames; may be empty, see
            :meth:`Sampler.draw`.
    """

    task: str
    frames: np.ndarray


class TaskSampler:
    """Draws a task in each step, then a batch of it.

    Args:
        samplers: by the name of the task.
        weights: of the tasks, in proportion to their probabilities; equal ones if None.
        seed: the same seed gives the same tasks.

    Raises:
        InputError: the weights are not those of the tasks, or not positive.
    """

    def __init__(
        self, samplers: Mapping[str, Sampler], weights: Mapping[str, float] | None, seed: int
    ) -> None:
        self._samplers = {name: samplers[name] for name in sorted(samplers)}
        weights = dict.fromkeys(samplers, 1.0) if weights is None else weights
        if set(weights) != set(samplers):
            raise InputError(
                f"option model_prob names {', '.join(sorted(weights))}; the tasks are "
                f"{', '.join(self._samplers)}"
            )
        values = np.array([weights[name] for name in self._samplers], dtype=np.float64)
        if not (values >= 0).all() or not 0 < values.sum() < np.inf:
            raise InputError(f"option model_prob = {dict(weights)} must be positive numbers")
        self._probabilities = values / values.sum()
        self._choice = _generator(f"{seed} tasks")

    def draw(self) -> Draw:
        """The task and the frames of the next step."""
        names = list(self._samplers)
        task = names[int(self._choice.choice(len(names), p=self._probabilities))]
        return Draw(task, self._samplers[task].draw())

    def state(self) -> dict[str, Any]:
        """Where the sampler is, JSON-ready; it is the same on all ranks."""
        tasks = {name: sampler.state() for name, sampler in self._samplers.items()}
        return {"tasks": tasks, "choice": self._choice.bit_generator.state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the same batches follow as after :meth:`state`.

        Raises:
            InputError: the state is that of other tasks or of other frames.
        """
        if set(state["tasks"]) != set(self._samplers):
            raise InputError(
                f"the saved state has the tasks {', '.join(sorted(state['tasks']))}, not "
                f"{', '.join(self._samplers)}"
            )
        for name, sampler in self._samplers.items():
            sampler.restore(state["tasks"][name])
        self._choice.bit_generator.state = state["choice"]


class _Passes:
    """Passes through frames without end, each in an order of its own.

    The order follows from the number of the pass, so that a place in it is all that a state needs.

    Attributes:
        number: of the pass, from 0; position: frames of it that are drawn.
        n_batches: in a pass, estimated if the rule counts atoms and frames differ in size.
    """

    def __init__(self, group: Group, rule: BatchRule, stream: str) -> None:
        self._group, self._rule, self._stream = group, rule, stream
        self.go_to(0, 0)
        self.n_batches = self._count_batches()

    def __len__(self) -> int:
        return len(self._group.frames)

    def go_to(self, number: int, position: int) -> None:
        """Set the place."""
        self.number, self.position = number, position
        order = _generator(f"{self._stream} {number}").permutation(len(self))
        self._ordered = self._group.select(order)

    def next(self) -> Group:
        """The frames of the next batch."""
        if self.position == len(self):
            self.go_to(self.number + 1, 0)
        start = self.position
        self.position += self._rule.count(self._ordered.sizes[start:])
        return self._ordered.select(np.arange(start, self.position))

    def _count_batches(self) -> int:
        sizes, n = self._ordered.sizes, len(self)
        if n and (self._rule.kind == _FRAMES or (sizes == sizes[0]).all()):
            return -(-n // self._rule.count(sizes))
        count = position = 0
        while position < n and count < _SAMPLE:
            position += self._rule.count(sizes[position:])
            count += 1
        return -(-count * n // max(position, 1))


def _generator(stream: str) -> np.random.Generator:
    """Random numbers that only the name of the stream determines."""
    key = hashlib.sha256(stream.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))


def _share(batch: Group, rank: int, ranks: int) -> np.ndarray:
    """The part of a batch that a rank computes, about as many atoms as that of the others."""
    n, r = len(batch.frames), np.arange(1, ranks)
    middles = np.cumsum(batch.sizes) - batch.sizes / 2
    cuts = np.searchsorted(middles, batch.sizes.sum() * r / ranks)
    # Nobody is left without a frame, as far as there are enough.
    cuts = np.maximum(np.maximum.accumulate(cuts - r) + r, r)
    cuts = np.clip(np.minimum(cuts, n - ranks + r), 0, n)
    return np.split(batch.frames, cuts)[rank]
