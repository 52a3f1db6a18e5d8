"""One structure that several ranks evaluate together: the part of one of them.

All ranks know all positions, and call the same methods with them. Whatever decides about the
course of a step comes from numbers that were gathered, so that all of them decide alike; a rank
that cannot do its part still takes part in the exchanges of the step
(docs/parallel.md#what-is-exchanged).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dpa3sim.common.errors import OutOfMemoryError, RankLostError
from dpa3sim.graph.blocks import forces_and_virials
from dpa3sim.graph.edges import MIN_DISTANCE
from dpa3sim.graph.resident import Measured, ResidentGraph
from dpa3sim.graph.skin import SkinList
from dpa3sim.parallel.exchange import HaloExchange, Ranks, Routes, Traffic
from dpa3sim.parallel.halo import Halo, find_halo, without_neighbours
from dpa3sim.parallel.partition import MOST_IMBALANCE, owners, work_of
from dpa3sim.potential.batches import BatchEvaluator
from dpa3sim.potential.evaluation import Evaluation, Uncertainty
from dpa3sim.potential.session import LaidOut, OverlapError
from dpa3sim.structures.system import System

T = TypeVar("T")

# Numbers of a part that all ranks know before they evaluate it.
_STATISTICS = (
    *("first_moved", "second_moved", "budget", "nearest"),
    *("n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges"),
    *("work", "failed", "n_atoms", "n_ghosts"),
)


class Divide(Protocol):
    """Chooses the owners of atoms, as :func:`~dpa3sim.parallel.partition.owners` does."""

    def __call__(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, work: np.ndarray, ranks: int
    ) -> np.ndarray:
        """The rank of each atom ``(n_atoms,)`` int64."""


class PartsFailedError(Exception):
    """Some ranks could not do their part; each knows why.

    Attributes:
        ranks: which.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__(ranks)
        self.ranks = ranks


@dataclass(frozen=True)
class Balance:
    """How a structure was divided, of each rank ``(ranks,)``: atoms, ghosts, and work in angles."""

    n_atoms: np.ndarray
    n_ghosts: np.ndarray
    work: np.ndarray

    @property
    def imbalance(self) -> float:
        """Work of the busiest rank, in units of the mean over those that have atoms."""
        return float(self.work.max() / self.work[self.n_atoms > 0].mean())


class _Statistics:
    """The gathered statistics ``(ranks, 12)``, by the names of :data:`_STATISTICS`."""

    def __init__(self, gathered: np.ndarray) -> None:
        self._columns = dict(zip(_STATISTICS, gathered.T, strict=True))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    @property
    def failed(self) -> list[int]:
        """Ranks that failed."""
        return np.flatnonzero(self["failed"]).tolist()

    @property
    def expired(self) -> bool:
        """Whether a pair may be missing: the two most displaced atoms of all ranks decide."""
        moved = np.sort(np.concatenate([self["first_moved"], self["second_moved"]]))
        return bool(moved[-2:].sum() > self["budget"].min())

    @property
    def balance(self) -> Balance:
        """How the structure is divided."""
        return Balance(
            self["n_atoms"].astype(int), self["n_ghosts"].astype(int), self["work"].astype(int)
        )


@dataclass
class _Part:
    """What a rank keeps until lists are renewed; of a rank without atoms there is no graph."""

    halo: Halo
    routes: Routes
    laid: LaidOut | None
    measured: Measured | None = None

    @property
    def graph(self) -> ResidentGraph:
        assert self.laid is not None
        return self.laid.graph


class SplitSession:
    """Evaluates one structure again and again, together with the other ranks.

    Args:
        model: what evaluates whole structures on this rank.
        ranks: the team.
        parts: how many ranks get atoms.
        with_features: whether rank 0 gets what uncertainties are made of.
        traffic: where exchanges are counted.
        divide: chooses the owners of the atoms, on rank 0.

    Attributes:
        error: why the last step failed on this rank; None if it did not.
        balance: how the last structure was divided.
    """

    def __init__(
        self,
        model: BatchEvaluator,
        ranks: Ranks,
        parts: int,
        with_features: bool,
        traffic: Traffic,
        divide: Divide = owners,
    ) -> None:
        self.error: Exception | None = None
        self.balance: Balance | None = None
        self._model, self._ranks, self._parts = model, ranks, parts
        self._with_features, self._traffic = with_features, traffic
        self._divide = divide
        self._owner = np.zeros(0, dtype=np.int64)
        self._part: _Part | None = None
        self._frugal = False

    def step(self, system: System, frugal: bool = False) -> Evaluation | None:
        """Evaluate the structure with other positions and another cell.

        Args:
            system: like the first one, with a completed cell. frugal: use little memory.

        Returns:
            The evaluation on rank 0, None on the others.

        Raises:
            OverlapError: atoms are closer than any edge may be.
            PartsFailedError: ranks failed; raised on rank 0 only, where others go on.
        """
        self._begin(frugal)
        statistics = self._measure_renewing(system)
        self.balance = statistics.balance
        if not statistics.failed and statistics["nearest"].min() < MIN_DISTANCE:
            raise OverlapError([0])
        if statistics.failed:
            self._part = None
            if self._ranks.rank == 0:
                raise PartsFailedError(statistics.failed)
            return None
        self._traffic.steps += 1
        rows = self._evaluate()
        if self.error is not None:
            self._part = None
        return self._collect(rows, statistics)

    def _begin(self, frugal: bool) -> None:
        self.error = None
        if frugal != self._frugal:
            self._part, self._frugal = None, frugal

    # -- lists ---------------------------------------------------------------------------------

    def _measure_renewing(self, system: System) -> _Statistics:
        if self._part is not None:
            statistics = self._measure(system)
            if statistics.failed or not statistics.expired:
                return statistics
        if not len(self._owner):
            self._set_owners(system, np.ones(len(system), dtype=np.int64))
        self._renew(system)
        statistics = self._measure(system)
        if not statistics.failed and statistics.balance.imbalance > MOST_IMBALANCE:
            before = self._owner
            self._set_owners(system, self._work(len(system)))
            if not np.array_equal(before, self._owner):
                self._renew(system)
                statistics = self._measure(system)
        return statistics

    def _set_owners(self, system: System, work: np.ndarray) -> None:
        """Divide the atoms anew; what rank 0 says counts."""
        owner = np.zeros(len(system), dtype=np.int64)
        if self._ranks.rank == 0:
            owner = self._divide(system.positions, system.cell, system.pbc, work, self._parts)
        self._owner = self._ranks.share(torch.from_numpy(owner)).numpy()
        self._traffic.divisions += 1

    def _work(self, n_atoms: int) -> np.ndarray:
        """Work of every atom ``(n_atoms,)`` on rank 0, from the counts of the last measurement."""
        assert self._part is not None
        measured, work = self._part.measured, np.zeros(0, dtype=np.int64)
        if measured is not None:
            work = work_of(measured.n_edges.cpu().numpy(), measured.n_angle_edges.cpu().numpy())
        rows = self._to_first(torch.from_numpy(work), len(work), self._sizes)
        found = np.zeros(n_atoms, dtype=np.int64)
        if self._ranks.rank == 0:
            found[np.argsort(self._owner, kind="stable")] = rows.numpy()
        return found

    def _renew(self, system: System) -> None:
        """Search the neighbours of the own atoms, and agree with the others on the ghosts."""
        model, ranks = self._model, self._ranks
        self._part = None  # before the new one, so as not to have both
        self._traffic.renewals += 1
        model.counters.rebuilds += 1
        geometry = system.cell, system.pbc
        reach = model.rules.e_rcut, model.skin
        halo = self._attempt(
            lambda: find_halo(
                system.positions, *geometry, self._owner, ranks.rank, ranks.size, *reach
            )
        )
        if halo is None:
            nothing = SkinList.empty(*geometry, *reach)
            halo = without_neighbours(self._owner, ranks.rank, ranks.size, nothing)
        routes = Routes.agree(halo, ranks)
        laid = self._attempt(lambda: self._laid_out(halo, system)) if halo.n_own else None
        self._part = _Part(halo, routes, laid)

    def _laid_out(self, halo: Halo, system: System) -> LaidOut:
        model = self._model
        graph = ResidentGraph(
            [halo.neighbours],
            [_part_of(system, halo.nodes)],
            model.rules,
            model.config.descriptor.update_angle,
            model.device,
        )
        return LaidOut(graph, model.memory, self._frugal, True, model.counters)

    def _measure(self, system: System) -> _Statistics:
        """Distances of the own atoms' candidates, and what all ranks know of them."""
        part = self._part
        assert part is not None
        values = dict.fromkeys(_STATISTICS, 0.0)
        values |= {"nearest": np.inf, "n_atoms": part.halo.n_own}
        values["n_ghosts"] = len(part.halo.ghosts)
        values["budget"] = part.halo.neighbours.strain(system.cell)[1]
        if part.laid is not None:
            part.measured = self._attempt(lambda: self._distances(part, system))
            if part.measured is not None:
                values |= _values(part.measured)
        values["failed"] = float(self.error is not None)
        self._traffic.gathers += 1
        own = torch.tensor([values[name] for name in _STATISTICS], dtype=torch.float64)
        return _Statistics(self._ranks.gather(own).numpy())

    @staticmethod
    def _distances(part: _Part, system: System) -> Measured:
        graph = part.graph
        graph.upload(graph.pack([_part_of(system, part.halo.nodes)]))
        return graph.measure()

    # -- the model -----------------------------------------------------------------------------

    def _evaluate(self) -> Tensor:
        """Results of the own atoms, see :meth:`_results`; NaN if this rank fails."""
        part, model = self._part, self._model
        assert part is not None
        descriptor = model.config.descriptor
        like = torch.empty((0, descriptor.n_dim), dtype=model.dtype, device=model.device)

        def exchange(row_of: Tensor) -> HaloExchange:
            return HaloExchange(
                self._ranks, part.routes, row_of, descriptor.nlayers, like, self._traffic
            )

        exchanges: list[HaloExchange] = []

        def evaluate() -> Tensor:
            assert part.laid is not None
            assert part.measured is not None
            part.laid.fit(part.measured)
            exchanges.append(exchange(part.graph.row_of))
            results = self._results(part, exchanges[0])
            exchanges[0].end()
            return results

        rows = self._attempt(evaluate) if part.laid is not None else None
        if not exchanges:
            exchanges.append(exchange(torch.arange(part.halo.n_own, device=model.device)))
        if rows is not None:
            return rows
        exchanges[0].finish()
        return torch.full((self._width(part.halo.n_own),), torch.nan, dtype=torch.float64)

    def _results(self, part: _Part, exchange: HaloExchange) -> Tensor:
        """Energies, forces and, where wanted, features of the own atoms, then their virial."""
        model = self._model
        assert part.laid is not None
        assert part.measured is not None
        graph, others = part.laid.block_graph(part.measured), len(part.halo.ghosts)
        policies = (model.memory.policy(part.laid.layout, f, others) for f in (self._frugal, True))
        policy = next((p for p in policies if p is not None), None)
        if policy is None:
            raise OutOfMemoryError(
                f"{part.halo.n_own} atoms and {others} neighbours of other ranks need more memory "
                "than there is"
            )
        features = []
        if self._with_features:
            energies, gradient, found = model.evaluator.evaluate_with_features(
                graph, policy, exchange
            )
            features.append(part.graph.to_atoms(found).flatten())
        else:
            energies, gradient = model.evaluator.evaluate(graph, policy, exchange)
        forces, virials = forces_and_virials(gradient, graph)
        forces = exchange.forces(forces)
        rows = [part.graph.to_atoms(energies), part.graph.to_atoms(forces).flatten(), *features]
        return torch.cat([*rows, part.graph.sum_structures(virials.flatten(1)).flatten()]).cpu()

    # -- results -------------------------------------------------------------------------------

    def _collect(self, rows: Tensor, statistics: _Statistics) -> Evaluation | None:
        """Bring the results of all ranks to rank 0."""
        failed = torch.tensor([float(self.error is not None)], dtype=torch.float64)
        if not self._sizes[self._ranks.rank]:
            rows = torch.zeros_like(rows)  # no virial
        sizes = [self._width(n) + 1 for n in self._sizes]
        found = self._to_first(torch.cat([rows, failed]), len(rows) + 1, sizes)
        if self._ranks.rank:
            return None
        parts = [part.numpy() for part in found.split(sizes)]
        failures = [rank for rank, part in enumerate(parts) if part[-1]]
        if failures:
            raise PartsFailedError(failures)
        return self._evaluation(parts, statistics)

    def _evaluation(self, parts: Sequence[np.ndarray], statistics: _Statistics) -> Evaluation:
        atoms = np.argsort(self._owner, kind="stable")  # as the ranks have them, one after another
        n = len(atoms)
        energies, forces = np.empty(n), np.empty((n, 3))
        divided = [self._divided(x, k) for x, k in zip(parts, self._sizes, strict=True)]
        own_energies, own_forces, own_features, virials = map(list, zip(*divided, strict=True))
        energies[atoms] = np.concatenate(own_energies)
        forces[atoms] = np.concatenate(own_forces).reshape(n, 3)
        virial = np.zeros((3, 3))
        for part in virials:
            virial += part.reshape(3, 3)
        uncertainty: Uncertainty | None = None
        if self._with_features:
            features = np.empty((n, self._feature_width))
            features[atoms] = np.concatenate(own_features).reshape(n, -1)
            uncertainty = self._judged(features)
        return Evaluation(
            float(energies.sum()),
            energies,
            forces,
            virial,
            n_edges=int(statistics["n_edges"].sum()),
            n_angles=int(statistics["n_angles"].sum()),
            n_cut_edges=int(statistics["n_cut_edges"].sum()),
            n_cut_angle_edges=int(statistics["n_cut_angle_edges"].sum()),
            uncertainty=uncertainty,
        )

    def _judged(self, features: np.ndarray) -> Uncertainty:
        judge = self._model.judge
        assert judge is not None
        values = judge(
            torch.from_numpy(features).to(self._model.device),
            lambda rows: rows.sum(dim=0, keepdim=True),
            lambda rows: rows,
        )
        return judge.unpack(values.cpu().numpy(), [len(features)])[0]

    def _divided(self, part: np.ndarray, n: int) -> list[np.ndarray]:
        """Energies, forces, features and virial of a rank with n atoms."""
        ends = np.cumsum([n, 3 * n, self._feature_width * n, 9])
        return np.split(part, ends)[:4]

    # -- helpers -------------------------------------------------------------------------------

    @property
    def _sizes(self) -> list[int]:
        """Atoms of each rank."""
        return np.bincount(self._owner, minlength=self._ranks.size).tolist()

    @property
    def _feature_width(self) -> int:
        return self._model.config.fitting.neuron[-1] if self._with_features else 0

    def _width(self, n_atoms: int) -> int:
        """How many numbers are the results of so many atoms."""
        return (4 + self._feature_width) * n_atoms + 9

    def _to_first(self, values: Tensor, count: int, sizes: Sequence[int]) -> Tensor:
        """Send so many values to rank 0; what comes there, of all ranks."""
        nothing = [0] * self._ranks.size
        send = [count, *nothing[1:]]
        return self._ranks.swap(values, send, sizes if self._ranks.rank == 0 else nothing)

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """What work of this rank alone returns; None if it fails, now or earlier in the step."""
        if self.error is not None:
            return None
        try:
            return work()
        except RankLostError:
            raise
        except Exception as error:  # whatever it is, the others must not wait for this rank
            self.error = error.with_traceback(None)  # whose frames would keep the memory
        self._model.evaluator.workspace.release()
        return None


def _part_of(system: System, nodes: np.ndarray) -> System:
    """Some atoms of a system with inputs."""
    arrays: dict[str, Any] = {
        name: getattr(system, name)[nodes] for name in ("numbers", "positions", "types", "aparam")
    }
    return replace(system, **arrays)


def _values(measured: Measured) -> dict[str, float]:
    """What others need to know of a measurement."""
    (first, second), statistics = measured.moved[0].tolist(), measured.statistics[0].tolist()
    work = work_of(measured.n_edges.cpu().numpy(), measured.n_angle_edges.cpu().numpy())
    names = ("nearest", "n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges")
    found = dict(zip(names, statistics[1:], strict=True))
    return found | {"first_moved": first, "second_moved": second, "work": float(work.sum())}
