"""Evaluations on several processes: rank 0 commands, the others serve it.

Rank 0 has all positions and results. Whoever evaluates on it, be it a protocol, ASE, i-PI or
LAMMPS, need not know of the others (docs/parallel.md).
"""

from __future__ import annotations

import socket
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from dpa3sim.checkpoints import ModelFile
from dpa3sim.checkpoints.covariance import Covariance
from dpa3sim.common import errors
from dpa3sim.common.errors import (
    Dpa3simError,
    InputError,
    OutOfMemoryError,
    RankLostError,
    class_for_others,
)
from dpa3sim.graph.edges import Truncation
from dpa3sim.graph.lists import Counters
from dpa3sim.kernels.api import Matmul
from dpa3sim.model.inputs import edge_rules
from dpa3sim.model.network import DTYPES, Network
from dpa3sim.parallel import processes
from dpa3sim.parallel.collective import Collective
from dpa3sim.parallel.exchange import Traffic
from dpa3sim.parallel.messages import packed, unpacked
from dpa3sim.parallel.processes import Crew, Meeting
from dpa3sim.parallel.scaling import LINKS, Scaling
from dpa3sim.parallel.sharing import LEAST_ATOMS, Sharing, share_out
from dpa3sim.potential.batches import (
    MAX_SESSION_ATOMS,
    MAX_SESSIONS,
    BatchEvaluator,
    Outcomes,
)
from dpa3sim.potential.evaluation import Evaluation, Uncertainty
from dpa3sim.potential.judge import Judge
from dpa3sim.potential.session import OverlapError
from dpa3sim.potential.settings import ENVIRONMENT
from dpa3sim.potential.split import Balance, PartsFailedError, SplitSession
from dpa3sim.structures.geometry import complete_cell
from dpa3sim.structures.system import System
from dpa3sim.uncertainty.rigidity import Rigidity

T = TypeVar("T")
Message = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class ModelOptions:
    """What tells the evaluators of a team apart: the options of a potential."""

    dtype: str
    truncate: Truncation
    skin: float
    max_memory: float | None
    matmul: Matmul
    identity: str


class Model:
    """A model on one rank of a team.

    Args:
        ranks: the team. batcher: what evaluates whole structures here.

    Attributes:
        batcher: as given.
        traffic: what was exchanged so far.
        balance: how the structure that was evaluated last was divided.
    """

    def __init__(self, ranks: Collective, batcher: BatchEvaluator) -> None:
        self.batcher, self.traffic = batcher, Traffic()
        self.balance: Balance | None = None
        self._ranks = ranks
        self._sessions: OrderedDict[tuple[Any, ...], tuple[SplitSession, int]] = OrderedDict()
        self._last: SplitSession | None = None

    def split(self, system: System, parts: int, frugal: bool) -> Evaluation | None:
        """This rank's part of a step; see :meth:`SplitSession.step`."""
        system = replace(system, cell=complete_cell(system.cell, system.pbc))
        key = parts, system.batch_key
        if key not in self._sessions:
            judged = self.batcher.judge is not None
            session = SplitSession(self.batcher, self._ranks, parts, judged, self.traffic)
            self._sessions[key] = session, len(system)
        self._sessions.move_to_end(key)
        while len(self._sessions) > 1 and (
            len(self._sessions) > MAX_SESSIONS
            or sum(n for _, n in self._sessions.values()) > MAX_SESSION_ATOMS
        ):
            self._sessions.popitem(last=False)
        self._last, _ = self._sessions[key]
        try:
            return self._last.step(system, frugal)
        finally:
            self.balance = self._last.balance

    @property
    def failure(self) -> Exception | None:
        """Why the last step failed on this rank."""
        return None if self._last is None else self._last.error

    def forget(self) -> None:
        """Drop what is kept of structures, and who owns their atoms."""
        self._sessions.clear()
        self._last = None
        self.batcher.forget()


# -- the other ranks -----------------------------------------------------------------------------


def serve(model: ModelFile, limit: float, meeting: Meeting) -> None:
    """Do what rank 0 says, until it says that this is all; see :class:`Follower`."""
    Follower(model, limit, meeting).follow()


class Follower:
    """A rank that does what rank 0 says.

    Args:
        model: as rank 0 has it. limit: s, how long a rank is waited for.
        meeting: how the ranks find each other.

    Attributes:
        model: as given. ranks: the team.
    """

    def __init__(self, model: ModelFile, limit: float, meeting: Meeting) -> None:
        self.model, self.ranks = model, Collective(meeting, limit)
        self._device = meeting.device
        self._sharers = _sharers(self.ranks)
        self._models: list[Model] = []

    def follow(self) -> Message | None:
        """Serve until rank 0 gives something, or nothing because this is all.

        Raises:
            RankLostError: another rank is gone.
        """
        while True:
            words, arrays = unpacked(self.ranks.hear())
            match words.pop("do"):
                case "model":
                    self._add(words, arrays)
                case "split":
                    self._split(words, arrays)
                case "whole":
                    model = self._models[words["model"]]
                    self.ranks.collect(_evaluated(model, words, arrays, self.ranks.rank))
                case "explain":
                    self.ranks.collect(_in_words(self._models[words["model"]].failure).encode())
                case "facts":
                    self.ranks.collect(packed(_facts(self._models[words["model"]]), {}))
                case "forget":
                    self._models[words["model"]].forget()
                case "take":
                    return words, arrays
                case "stop":
                    return None

    def _add(self, words: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        rigidity = _rigidity_from(words.pop("rigidity"), arrays)
        options = ModelOptions(**words)
        batcher = _batcher(self.model, options, rigidity, self._device, self._sharers)
        self._models.append(Model(self.ranks, batcher))
        self.ranks.collect(_identity(self.model, options).encode())

    def _split(self, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        (system,) = _systems_from(words, arrays)
        model = self._models[words["model"]]
        with suppress(OverlapError):  # rank 0 says which atoms
            model.split(system, words["parts"], words["frugal"])


def _batcher(
    model: ModelFile,
    options: ModelOptions,
    rigidity: Rigidity | None,
    device: torch.device,
    sharers: int,
) -> BatchEvaluator:
    rules = edge_rules(model.config, options.truncate)
    network = Network(model.config, model.weights, device, DTYPES[options.dtype])
    judge = None if rigidity is None else Judge(rigidity, device)
    return BatchEvaluator(
        *(network, rules, options.skin, options.max_memory, options.identity),
        *(Counters(), options.matmul, judge, sharers),
    )


def _identity(model: ModelFile, options: ModelOptions) -> str:
    return f"{model.sha256} {model.head} {model.config.descriptor.smooth_cutoff} {options}"


def _evaluated(
    model: Model, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray], rank: int
) -> bytes:
    """The message of the structures that this rank evaluates alone."""
    systems = _systems_from(words, arrays)
    own = [systems[index] for index in words["alone"][rank]]
    try:
        return outcomes_packed(model.batcher.evaluate(own))
    except Exception as error:  # a bug here must not leave the others waiting
        return packed({"failed": _in_words(error)}, {})


def _facts(model: Model) -> dict[str, Any]:
    return {"traffic": model.traffic.to_dict(), "peak_memory": _peak_memory()}


def _peak_memory() -> int:
    """Largest resident memory of this process so far, bytes; 0 if it is unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM:")), 0)


def _sharers(ranks: Collective) -> int:
    """How many ranks are on this machine."""
    own = float(zlib.crc32(socket.gethostname().encode()))
    found = ranks.gather(torch.tensor([own], dtype=torch.float64))
    return int((found == own).sum())


# -- rank 0 --------------------------------------------------------------------------------------


class Team:
    """The other processes, as rank 0 sees them.

    Args:
        model: the model.
        ranks: how many there are with this one, at least 2, or those of a launcher; or how they
            found each other, if they do not serve all the time.
        device: where they compute; of GPUs each takes its own.
        limit: s, how long a rank is waited for.

    Attributes:
        size: how many ranks there are.
        sharers: how many of them are on this machine.

    Raises:
        InputError: there are not as many processes or GPUs. RankLostError: one does not come.
        SystemExit: in other ranks of a launcher, after their service.
    """

    def __init__(
        self,
        model: ModelFile,
        ranks: int | Literal["env"] | Meeting,
        device: torch.device,
        limit: float,
    ) -> None:
        work = partial(serve, model, limit)
        self._model = model
        self._lock = threading.RLock()
        self._threads = torch.get_num_threads()
        self._models = 0
        crew: Crew
        if isinstance(ranks, Meeting):
            crew = processes.Launched(ranks)
        elif ranks == ENVIRONMENT:
            crew = processes.join(work, device)
        else:
            torch.set_num_threads(max(1, self._threads // ranks))
            try:
                crew = processes.Children(ranks, work, device)
            except BaseException:
                torch.set_num_threads(self._threads)
                raise
        try:
            with crew.working():
                self.ranks = Collective(crew.meeting, limit)
                self.sharers = _sharers(self.ranks)
        except BaseException:
            crew.close()
            torch.set_num_threads(self._threads)
            raise
        self.size = self.ranks.size
        self._crew = crew
        self._end = weakref.finalize(self, _stop, crew, self.ranks, self._threads)

    @property
    def crew(self) -> Crew:
        """The processes."""
        return self._crew

    def add(self, batcher: BatchEvaluator, options: ModelOptions, rigidity: Rigidity | None) -> int:
        """Let all ranks have a model like this one; its number.

        Raises:
            InputError: another rank has another model or other options.
        """
        words, arrays = _rigidity_words(rigidity)
        command = {f.name: getattr(options, f.name) for f in fields(options)} | {"rigidity": words}

        def tell() -> list[bytes]:
            self.tell("model", arrays, **command)
            return self.ranks.collect(_identity(self._model, options).encode())

        found = [text.decode() for text in self.together(tell)]
        for rank, text in enumerate(found):
            if text != found[0]:
                self.close()
                raise InputError(
                    f"rank {rank} has another model or other options than rank 0: {text} instead "
                    f"of {found[0]}"
                )
        self._models += 1
        return self._models - 1

    def tell(self, do: str, arrays: Mapping[str, np.ndarray], **words: Any) -> None:
        """Send a command to all other ranks."""
        self.ranks.tell(packed({"do": do, **words}, arrays))

    def collect(self, own: bytes) -> list[bytes]:
        """Messages of all ranks, while none of them follows."""
        return self.together(lambda: self.ranks.collect(own))

    def give(self, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Let all others end :meth:`Follower.follow` with this."""
        self.together(lambda: self.tell("take", arrays, **words))

    def together(self, call: Callable[[], T]) -> T:
        """Do something with the other ranks; if that is not brought to an end, end them.

        Raises:
            RankLostError: one of them is gone, now or since an earlier call.
        """
        with self._lock:
            try:
                with self._crew.working():
                    return call()
            except BaseException:
                self.close(at_once=True)
                raise

    def close(self, at_once: bool = False) -> None:
        """End the other processes; ``at_once`` if they may be in the middle of something."""
        if at_once and self._end.detach() is not None:
            self._crew.close()
            torch.set_num_threads(self._threads)
        self._end()


def _stop(crew: Crew, ranks: Collective, threads: int) -> None:
    """Tell the other ranks that this is all, and wait for their end."""
    patience = 0.0
    try:
        with crew.working():
            ranks.tell(packed({"do": "stop"}, {}))
        patience = 5.0
    except Dpa3simError:
        pass  # one is gone already, and has been reported if anything was to be computed
    finally:
        crew.close(patience)
        torch.set_num_threads(threads)


class TeamEvaluator:
    """Evaluates checked structures on all ranks of a team.

    Args:
        team: the ranks. batcher: what evaluates on this one.
        options: of the potential. rigidity: what its uncertainties are made of.

    Attributes:
        model: the model on this rank, with the traffic of rank 0.
    """

    def __init__(
        self,
        team: Team,
        batcher: BatchEvaluator,
        options: ModelOptions,
        rigidity: Rigidity | None,
    ) -> None:
        self._team, self._batcher = team, batcher
        self.model = Model(team.ranks, batcher)
        self._number = team.add(batcher, options, rigidity)

    def sharing(self, sizes: Sequence[int]) -> Sharing:
        """Who evaluates which of structures of so many atoms."""
        return share_out(sizes, self._team.size, LEAST_ATOMS.get(self._batcher.device.type, 200))

    @property
    def scaling(self) -> Scaling:
        """How long steps take here."""
        batcher, descriptor = self._batcher, self._batcher.config.descriptor
        return Scaling(
            layers=descriptor.nlayers,
            row=descriptor.n_dim * batcher.evaluator.itemsize,
            reach=batcher.rules.e_rcut + batcher.skin,
            link=LINKS.get(batcher.device.type, LINKS["cuda"]),
        )

    def evaluate(self, systems: Sequence[System]) -> Outcomes:
        """Evaluate any mix of structures; errors stand in the place of results.

        Raises:
            RankLostError: a rank is gone, or failed with an error that is a bug.
        """
        sharing = self.sharing([len(x) for x in systems])
        if sharing.used == 1:
            return self._batcher.evaluate(systems)
        found: dict[int, Evaluation | Dpa3simError] = {}
        if any(sharing.alone):
            found |= self._team.together(lambda: self._whole(systems, sharing))
        for index, parts in sharing.together:
            found[index] = self._split(systems[index], parts)
        return [found[index] for index in range(len(systems))]

    def forget(self) -> None:
        """Drop all lists and sessions of all ranks, and who owns which atoms."""

        def tell() -> None:
            self._team.tell("forget", {}, model=self._number)
            self.model.forget()

        self._team.together(tell)

    def facts(self) -> list[dict[str, Any]]:
        """Traffic and largest memory (bytes) of each rank."""

        def ask() -> list[bytes]:
            self._team.tell("facts", {}, model=self._number)
            return self._team.ranks.collect(packed(_facts(self.model), {}))

        return [unpacked(message)[0] for message in self._team.together(ask)]

    def _whole(
        self, systems: Sequence[System], sharing: Sharing
    ) -> dict[int, Evaluation | Dpa3simError]:
        words, arrays = _systems_packed(systems)
        words |= {"model": self._number, "alone": sharing.alone}
        self._team.tell("whole", arrays, **words)
        own = _evaluated(self.model, words, arrays, 0)
        messages = self._team.ranks.collect(own)
        found: dict[int, Evaluation | Dpa3simError] = {}
        for rank, message in enumerate(messages):
            outcomes = outcomes_from(message, rank)
            found |= dict(zip(sharing.alone[rank], outcomes, strict=True))
            if rank:
                self._batcher.counters.evaluations += len(outcomes)
        return found

    def _split(self, system: System, parts: int) -> Evaluation | Dpa3simError:
        """Evaluate one structure together; once more with little memory if that ran out."""
        outcome: Evaluation | Dpa3simError
        for frugal in (False, True):
            outcome = self._team.together(lambda f=frugal: self._step(system, parts, f))  # type: ignore[misc]
            if not isinstance(outcome, OutOfMemoryError):
                return outcome
            self._batcher.counters.retries += 1
        return outcome

    def _step(self, system: System, parts: int, frugal: bool) -> Evaluation | Dpa3simError:
        words, arrays = _systems_packed([system])
        words |= {"model": self._number, "parts": parts, "frugal": frugal}
        self._team.tell("split", arrays, **words)
        try:
            found = self.model.split(system, parts, frugal)
        except OverlapError:
            return self._batcher.overlap(system)
        except PartsFailedError:
            return self._reason()
        assert found is not None
        self._batcher.counters.batches += 1
        self._batcher.counters.evaluations += 1
        return found

    def _reason(self) -> Dpa3simError:
        """Why ranks failed: the first of the reasons."""
        self._team.tell("explain", {}, model=self._number)
        texts = self._team.ranks.collect(_in_words(self.model.failure).encode())
        reasons = [(rank, text.decode()) for rank, text in enumerate(texts) if text]
        return _error_from(*reasons[0])


# -- messages ------------------------------------------------------------------------------------


def _in_words(error: Exception | None) -> str:
    """The class of an error for the user and its text; nothing if there is no error."""
    if error is None:
        return ""
    name = class_for_others(error).__name__
    if isinstance(error, Dpa3simError):
        return f"{name} {error}"
    return f"{name} {type(error).__name__}: {error}"


def _error_from(rank: int, words: str) -> Dpa3simError:
    """What :func:`_in_words` made words of; one that is a bug is raised.

    Raises:
        RankLostError: of a bug.
    """
    name, _, text = words.partition(" ")
    kind: type[Dpa3simError] = getattr(errors, name)
    if issubclass(kind, RankLostError):
        raise RankLostError(f"rank {rank} failed: {text}")
    return kind(f"rank {rank}: {text}" if kind is OutOfMemoryError else text)


def _systems_packed(
    systems: Sequence[System],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    names = ("positions", "cell", "pbc", "types", "fparam", "aparam", "charge_spin")
    arrays = {
        f"{name} {index}": value
        for index, system in enumerate(systems)
        for name in names
        if (value := getattr(system, name)) is not None
    }
    return {"count": len(systems)}, arrays


def _systems_from(words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[System]:
    found: list[dict[str, Any]] = [{} for _ in range(words["count"])]
    for key, value in arrays.items():
        name, _, index = key.partition(" ")
        found[int(index)][name] = value
    # The types say all that the model needs to know of the elements.
    return [System(numbers=x["types"], **x) for x in found]


_COUNTS = ("n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges")


def outcomes_packed(outcomes: Outcomes) -> bytes:
    """A message of results and errors."""
    words: list[Any] = []
    arrays: dict[str, np.ndarray] = {}
    for index, x in enumerate(outcomes):
        if isinstance(x, Dpa3simError):
            words.append(_in_words(x))
            continue
        words.append({"energy": x.energy} | {name: getattr(x, name) for name in _COUNTS})
        arrays |= {f"{name} {index}": getattr(x, name) for name in ("energies", "forces", "virial")}
        if x.uncertainty is not None:
            words[-1]["uncertain"] = x.uncertainty.energy
            arrays[f"novelties {index}"] = x.uncertainty.novelties
            if x.uncertainty.energies is not None:
                arrays[f"scatter {index}"] = x.uncertainty.energies
    return packed({"outcomes": words}, arrays)


def outcomes_from(message: bytes, rank: int) -> Outcomes:
    """What :func:`outcomes_packed` made a message of on some rank."""
    words, arrays = unpacked(message)
    if "failed" in words:
        raise _error_from(rank, words["failed"])
    found: Outcomes = []
    for index, x in enumerate(words["outcomes"]):
        if isinstance(x, str):
            found.append(_error_from(rank, x))
            continue
        uncertainty = None
        if "uncertain" in x:
            scatter = arrays.get(f"scatter {index}")
            uncertainty = Uncertainty(arrays[f"novelties {index}"], x.pop("uncertain"), scatter)
        parts: dict[str, Any] = {
            name: arrays[f"{name} {index}"] for name in ("energies", "forces", "virial")
        }
        found.append(Evaluation(**x, **parts, uncertainty=uncertainty))
    return found


def _rigidity_words(
    rigidity: Rigidity | None,
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    if rigidity is None:
        return None, {}
    values = {f.name: getattr(rigidity, f.name) for f in fields(Covariance)}
    arrays = {name: x for name, x in values.items() if isinstance(x, np.ndarray)}
    words = {name: x for name, x in values.items() if name not in arrays}
    return words | {"sha256": rigidity.sha256, "head": rigidity.head}, arrays


def _rigidity_from(words: Mapping[str, Any] | None, arrays: Mapping[str, Any]) -> Rigidity | None:
    return None if words is None else Rigidity(**words, **arrays)
