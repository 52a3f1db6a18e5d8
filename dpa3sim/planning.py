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

from dpa3sim.benchmark import DISPLACEMENT
from dpa3sim.graph.blocks import BlockLimits
from dpa3sim.memory import free_bytes, memory_share
from dpa3sim.protocols.planning import HESSIAN

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential import Potential
    from dpa3sim.protocols.planning import Stage

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

    def seconds(self, batches: int, work: float) -> float:
        """Of so many batches with so much work in all."""
        return batches * self.per_batch + work * self.per_work


@dataclass(frozen=True)
class Part:
    """What a stage takes.

    Attributes:
        seconds: the least and the most. needed: bytes of its largest batch. fits: whether every
            structure can be computed.
    """

    stage: Stage
    seconds: tuple[float, float]
    needed: int
    fits: bool


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
        return _sums(part.stage.total for part in self.parts)

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
        return [(p.stage.name, p.stage.note) for p in self.parts if p.stage.note]

    @property
    def warnings(self) -> list[str]:
        """What will not work."""
        return [
            f"{part.stage.name}: {max(part.stage.atoms)} atoms need more memory "
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
            "exact": all(part.stage.exact for part in self.parts),
            "time_least_s": self.seconds[0],
            "time_most_s": self.seconds[1],
            "time_basis": self.basis,
            "memory_GiB": self.needed / 2**30,
            "memory_available_GiB": self.available / 2**30,
            "fits": all(part.fits for part in self.parts),
            "warnings": self.warnings,
            "stages": [_part_dict(part) for part in self.parts],
        }


def estimate(stages: Sequence[Stage], potential: Potential) -> Cost:
    """Time and memory of stages; samples of structures are timed, which takes some seconds.

    Args:
        stages: of a protocol. potential: the model, in the precision it will have.
    """
    costliest = max(stages, key=lambda stage: stage.total[1] * sum(stage.atoms))
    pace = Pace.measure(costliest.sample, potential)
    known: dict[int, Neighbours] = {}
    parts = []
    for stage in stages:
        key = id(stage.sample)
        if key not in known:
            known[key] = Neighbours.of(stage.sample, potential)
        make = _derivatives if stage.kind == HESSIAN else _evaluations
        parts.append(make(stage, known[key], pace, potential))
    threads = f", threads: {torch.get_num_threads()}" if potential.device.type == "cpu" else ""
    low, high = (round(100 * abs(1 - share)) for share in SHARES)
    basis = (
        f"time: of evaluations alone, -{low} % to +{high} % on a machine that does nothing else; "
        f"by timing {pace.timed} on {potential.device}{threads}, and counting neighbours"
    )
    budget = memory_share(potential.device) * free_bytes(potential.device)
    return Cost(parts, int(budget), basis)


def _evaluations(stage: Stage, neighbours: Neighbours, pace: Pace, potential: Potential) -> Part:
    batches = potential.batch_sizes(stage.atoms)
    largest = neighbours.repeated(max(stage.atoms))
    in_batch = neighbours.repeated(max(batches))
    work = neighbours.work / len(neighbours.n_edges) * sum(stage.atoms)
    # A batch that does not fit is divided; a structure cannot be.
    needed, _ = potential.memory_needed(in_batch.n_edges, in_batch.n_angle_edges)
    alone, fits = potential.memory_needed(largest.n_edges, largest.n_angle_edges)
    seconds = _range(stage, pace.seconds(len(batches), work))
    return Part(stage, seconds, max(alone, needed) if fits else alone, fits)


def _derivatives(stage: Stage, neighbours: Neighbours, pace: Pace, potential: Potential) -> Part:
    """By autograd, for every atom of the sample, in cells of several of it; memory is unknown."""
    times = []
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        potential.hessian(stage.sample, [0])
        times.append(time.perf_counter() - start)
    return Part(stage, _range(stage, min(times) * sum(stage.atoms)), 0, True)


def _range(stage: Stage, once: float) -> tuple[float, float]:
    """The least and the most time of a stage, s; ``once`` is that of evaluating all of it once."""
    low, high = (n * share * once for n, share in zip(stage.evaluations, SHARES, strict=True))
    return low, high


def _part_dict(part: Part) -> dict[str, Any]:
    stage = part.stage
    return {
        "name": stage.name,
        "kind": stage.kind,
        "n_structures": len(stage.atoms),
        "n_atoms": list(stage.atoms),
        "evaluations_least": stage.total[0],
        "evaluations_most": stage.total[1],
        "exact": stage.exact,
        "note": stage.note,
        "time_least_s": part.seconds[0],
        "time_most_s": part.seconds[1],
        "memory_GiB": part.needed / 2**30,
        "fits": part.fits,
    }


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
    """Median time of an evaluation of copies that move a little, as in dynamics, warm."""
    rng, times = np.random.default_rng(0), []
    structures: Sequence[Atoms] = [atoms.copy() for _ in range(copies)]
    for _ in range(WARM_UP + COUNTED):
        for structure in structures:
            structure.positions += rng.normal(scale=DISPLACEMENT, size=structure.positions.shape)
        start = time.perf_counter()
        potential.evaluate(structures)
        times.append(time.perf_counter() - start)
    return float(np.median(times[WARM_UP:]))
