"""How long the stages of a protocol take here and how much memory, without computing them.

An evaluation takes a time for its batch and a time for its work, which is that of its angles and
edges: both follow from timing batches of two sizes. Of anything large only neighbours are counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpa3sim.graph.blocks import BlockLimits
from dpa3sim.potential.memory import free_bytes, memory_share
from dpa3sim.protocols.base import HESSIAN
from dpa3sim.run.benchmark import DISPLACEMENT

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.potential import Potential
    from dpa3sim.protocols.base import Stage

# Structures of more atoms are not timed, a stand-in is; the larger of the two timed batches has
# about so many atoms.
MOST_ATOMS, BATCH_ATOMS = 96, 48
WARM_UP, COUNTED = 2, 3
# Of a stand-in: atoms, Å^3 of each where the structure has no volume, Å that each is off a grid.
STAND_IN, VOLUME, OFF_GRID = 27, 15.0, 0.15
# What evaluations took was between these shares of what was estimated (docs/report.md).
SHARES = (0.7, 1.5)


@dataclass(frozen=True)
class Neighbours:
    """Of each atom of a structure, ``(n_atoms,)``: edges, and those that have angles."""

    n_edges: np.ndarray
    n_angle_edges: np.ndarray

    @classmethod
    def of(cls, atoms: Atoms, potential: Potential) -> Neighbours:
        """Counted by a search, without the network."""
        return cls(*potential.neighbours(atoms))

    def repeated(self, n_atoms: int) -> Neighbours:
        """Of a larger structure of the same kind, such as a supercell with or without a vacancy."""
        return Neighbours(np.resize(self.n_edges, n_atoms), np.resize(self.n_angle_edges, n_atoms))

    @property
    def work(self) -> float:
        """What an evaluation costs, in units of an angle."""
        edges = BlockLimits.edge_cost * self.n_edges.sum()
        return float((self.n_angle_edges**2).sum() + edges + len(self.n_edges))


@dataclass(frozen=True)
class Pace:
    """What evaluations cost.

    Attributes:
        per_batch: s of any batch. per_work: s of a unit of work.
        timed: what it follows from.
    """

    per_batch: float
    per_work: float
    timed: str

    @classmethod
    def measure(cls, atoms: Atoms, potential: Potential) -> Pace:
        """Time a few evaluations of a structure, or of a stand-in for a large one."""
        large = len(atoms) > MOST_ATOMS
        sample = stand_in(atoms) if large else atoms
        what = "a stand-in as dense, " if large else ""
        what += sample.get_chemical_formula()
        work = Neighbours.of(sample, potential).work
        copies = max(1, round(BATCH_ATOMS / len(sample)))
        one = _seconds(sample, 1, potential)
        if copies == 1:
            return cls(0.0, one / work, what)
        many = _seconds(sample, copies, potential)
        per_work = max(many - one, 0.5 * many) / ((copies - 1) * work)
        return cls(max(0.0, one - per_work * work), per_work, f"1 and {copies} of {what}")

    def seconds(self, batches: float, work: float) -> float:
        """Of so many batches with so much work in all."""
        return batches * self.per_batch + work * self.per_work


@dataclass(frozen=True)
class Part:
    """What a stage takes, of one structure or of many.

    Attributes:
        name, kind: see :class:`~dpa3sim.protocols.base.Stage`.
        structures: how many. atoms: of the smallest and the largest of them.
        evaluations: of all, the least and the most. exact: whether they are known.
        notes: what they depend on.
        seconds: the least and the most. needed: bytes of its largest batch.
        fits: whether every structure can be computed.
    """

    name: str
    kind: str
    structures: int
    atoms: tuple[int, int]
    evaluations: tuple[int, int]
    exact: bool
    notes: tuple[str, ...]
    seconds: tuple[float, float]
    needed: int
    fits: bool

    @classmethod
    def of(cls, stage: Stage, once: float, needed: int, fits: bool) -> Part:
        """A stage, all of whose structures take ``once`` (s) to be evaluated once."""
        low, high = (n * share * once for n, share in zip(stage.evaluations, SHARES, strict=True))
        return cls(
            stage.name,
            stage.kind,
            len(stage.atoms),
            (min(stage.atoms), max(stage.atoms)),
            stage.total,
            stage.exact,
            (stage.note,) if stage.note else (),
            (low, high),
            needed,
            fits,
        )

    def __add__(self, other: Part) -> Part:
        """The same stage of other structures with it."""
        return Part(
            self.name,
            self.kind,
            self.structures + other.structures,
            (min(self.atoms[0], other.atoms[0]), max(self.atoms[1], other.atoms[1])),
            _sums((self.evaluations, other.evaluations)),
            self.exact and other.exact,
            tuple(dict.fromkeys(self.notes + other.notes)),
            _sums((self.seconds, other.seconds)),
            max(self.needed, other.needed),
            self.fits and other.fits,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; every key with a dimension ends in its unit."""
        return {
            "name": self.name,
            "kind": self.kind,
            "n_structures": self.structures,
            "n_atoms_least": self.atoms[0],
            "n_atoms_most": self.atoms[1],
            "evaluations_least": self.evaluations[0],
            "evaluations_most": self.evaluations[1],
            "exact": self.exact,
            "notes": list(self.notes),
            "time_least_s": self.seconds[0],
            "time_most_s": self.seconds[1],
            "memory_GiB": self.needed / 2**30,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Cost:
    """What a protocol takes.

    Attributes:
        parts: its stages. available: bytes that evaluations may use.
        basis: where the times come from.
    """

    parts: Sequence[Part]
    available: int
    basis: str

    @property
    def evaluations(self) -> tuple[int, int]:
        """The least and the most."""
        return _sums(part.evaluations for part in self.parts)

    @property
    def seconds(self) -> tuple[float, float]:
        """The least and the most."""
        return _sums(part.seconds for part in self.parts)

    @property
    def needed(self) -> int:
        """Bytes of the largest batch."""
        return max(part.needed for part in self.parts)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What numbers that are not exact depend on, by stage."""
        return [(part.name, note) for part in self.parts for note in part.notes]

    @property
    def warnings(self) -> list[str]:
        """What will not work."""
        return [
            f"{part.name}: {part.atoms[1]} atoms need more memory "
            f"({part.needed / 2**30:.2g} GiB) than there is; use a smaller cell, or a device with "
            "more memory"
            for part in self.parts
            if not part.fits
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; every key with a dimension ends in its unit."""
        return {
            "evaluations_least": self.evaluations[0],
            "evaluations_most": self.evaluations[1],
            "exact": all(part.exact for part in self.parts),
            "time_least_s": self.seconds[0],
            "time_most_s": self.seconds[1],
            "time_basis": self.basis,
            "memory_GiB": self.needed / 2**30,
            "memory_available_GiB": self.available / 2**30,
            "fits": all(part.fits for part in self.parts),
            "warnings": self.warnings,
            "stages": [part.to_dict() for part in self.parts],
        }


def estimate(stages: Sequence[Stage], potential: Potential, together: int = 1) -> Cost:
    """Time and memory of stages; a few small batches are timed for it.

    Args:
        stages: of a protocol, or of many; those of one name are added.
        potential: the model, in the precision it will have.
        together: how many structures of a screening share their batches.
    """
    costliest = max(stages, key=lambda stage: stage.total[1] * sum(stage.atoms))
    pace = Pace.measure(costliest.sample, potential)
    known: dict[int, Neighbours] = {}
    parts: dict[str, Part] = {}
    for stage in stages:
        key = id(stage.sample)
        if key not in known:
            known[key] = Neighbours.of(stage.sample, potential)
        if stage.kind == HESSIAN:
            part = _derivatives(stage, potential)
        else:
            part = _evaluations(stage, known[key], pace, potential, together)
        parts[part.name] = parts[part.name] + part if part.name in parts else part
    threads = f", threads: {torch.get_num_threads()}" if potential.device.type == "cpu" else ""
    low, high = (round(100 * abs(1 - share)) for share in SHARES)
    basis = (
        f"time: of evaluations alone, -{low} % to +{high} % on a machine that does nothing else; "
        f"by timing {pace.timed} on {potential.device}{threads}, and counting neighbours"
    )
    if potential.shared is not None:
        shares = dict.fromkeys(str(potential.shared.sharing(stage.atoms)) for stage in stages)
        basis += f"; {potential.ranks} ranks, structures of a request: {'; '.join(shares)}"
    budget = memory_share(potential.device) * free_bytes(potential.device)
    return Cost(list(parts.values()), int(budget), basis)


def _evaluations(
    stage: Stage, neighbours: Neighbours, pace: Pace, potential: Potential, together: int
) -> Part:
    batches = potential.batch_sizes([*stage.atoms] * together)
    largest = neighbours.repeated(max(stage.atoms))
    in_batch = neighbours.repeated(max(batches))
    work = neighbours.work / len(neighbours.n_edges) * sum(stage.atoms)
    # A batch that does not fit is divided; a structure cannot be.
    needed, _ = potential.memory_needed(in_batch.n_edges, in_batch.n_angle_edges)
    alone, fits = potential.memory_needed(largest.n_edges, largest.n_angle_edges)
    once = pace.seconds(len(batches) / together, work)
    once = seconds_on_ranks(once, stage.atoms, density(stage.sample), potential)
    return Part.of(stage, once, max(alone, needed) if fits else alone, fits)


def seconds_on_ranks(
    alone: float, sizes: Sequence[int], atoms_per_volume: float, potential: Potential
) -> float:
    """How long ranks take for structures that one of them would evaluate in ``alone`` (s).

    Args:
        alone: see above. sizes: atoms of each structure. atoms_per_volume: Å^-3.
        potential: the model on its ranks.
    """
    shared = potential.shared
    if shared is None:
        return alone
    sharing, total = shared.sharing(sizes), sum(sizes)
    seconds = alone * (sharing.busiest(sizes) / total)
    for index, parts in sharing.together:
        own = alone * sizes[index] / total
        expected = shared.scaling.seconds(own, sizes[index], parts, atoms_per_volume)
        seconds += expected - own / parts
    return seconds


def density(atoms: Atoms) -> float:
    """Atoms per Å^3; a usual number where the structure has no volume."""
    return len(atoms) / atoms.get_volume() if atoms.pbc.all() else 1 / VOLUME


def _derivatives(stage: Stage, potential: Potential) -> Part:
    """By autograd, for every atom of the sample, in cells of several of it; memory is unknown."""
    times = []
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        potential.hessian(stage.sample, [0])
        times.append(time.perf_counter() - start)
    return Part.of(stage, min(times) * sum(stage.atoms), 0, True)


def _sums(pairs: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    low, high = zip(*pairs, strict=True)
    return sum(low), sum(high)


def stand_in(atoms: Atoms) -> Atoms:
    """A few atoms of the same elements, about as dense, on a disturbed grid."""
    from ase import Atoms as Structure

    side = round(STAND_IN ** (1 / 3))
    volume = atoms.get_volume() / len(atoms) if atoms.pbc.all() else VOLUME
    length = volume ** (1 / 3)
    numbers = np.sort(atoms.numbers)[np.linspace(0, len(atoms) - 1, side**3).astype(int)]
    grid = np.array(list(np.ndindex(side, side, side))) * length
    small = Structure(numbers, grid, cell=[side * length] * 3, pbc=True, info=dict(atoms.info))
    small.rattle(OFF_GRID, seed=0)
    return small


def _seconds(atoms: Atoms, copies: int, potential: Potential) -> float:
    """Median time of an evaluation of copies that move a little, as in dynamics, warm.

    By one rank, also where several would share the copies: :func:`seconds_on_ranks` divides.
    """
    rng, times = np.random.default_rng(0), []
    structures: Sequence[Atoms] = [atoms.copy() for _ in range(copies)]
    for _ in range(WARM_UP + COUNTED):
        for structure in structures:
            structure.positions += rng.normal(scale=DISPLACEMENT, size=structure.positions.shape)
        start = time.perf_counter()
        potential.batcher.evaluate([potential.system(structure) for structure in structures])
        times.append(time.perf_counter() - start)
    return float(np.median(times[WARM_UP:]))
