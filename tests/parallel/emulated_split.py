"""A structure divided among emulated ranks."""

from dataclasses import replace

import numpy as np
from emulated import together

from dpa3sim.graph.lists import Counters
from dpa3sim.kernels.evaluator import Evaluator
from dpa3sim.parallel.exchange import Traffic
from dpa3sim.parallel.partition import owners
from dpa3sim.potential.batches import BatchEvaluator
from dpa3sim.potential.split import SplitSession
from dpa3sim.structures.geometry import complete_cell


def completed(potential, atoms):
    system = potential.system(atoms)
    return replace(system, cell=complete_cell(system.cell, system.pbc))


class Part:
    """One rank: its evaluator and its session."""

    def __init__(self, potential, ranks, parts, divide, policies, tensors, skin):
        self.batcher = BatchEvaluator(
            *(potential.network, potential.rules, skin, None, potential._memory_key, Counters()),
            judge=potential.batcher.judge,
        )
        if tensors:
            self.batcher.use(Evaluator(potential.network, sparse=True))
        if policies:
            own = policies[ranks.rank % len(policies)]
            self.batcher.memory.policy = lambda layout, frugal, others=0: own
        self.ranks, self.traffic = ranks, Traffic()
        features = potential.batcher.judge is not None
        self.session = SplitSession(self.batcher, ranks, parts, features, self.traffic, divide)


def steps(
    potential,
    structures,
    size,
    *,
    parts=None,
    divide=owners,
    policies=(),
    tensors=False,
    skin=1.0,
    look=lambda part: None,
):
    """Evaluations of the same atoms, one after another, and what each rank has at the end."""
    systems = [completed(potential, atoms) for atoms in structures]

    def work(ranks):
        part = Part(potential, ranks, parts or size, divide, policies, tensors, skin)
        found = [part.session.step(system) for system in systems]
        return found, (part.traffic, part.session.balance, look(part), ranks.trace)

    results = together(size, work)
    return results[0][0], [facts for _, facts in results]


def at_random(seed):
    """Owners that have nothing to do with positions."""

    def divide(positions, cell, pbc, work, ranks):
        return np.random.default_rng(seed).integers(ranks, size=len(positions))

    return divide


def all_to(rank):
    def divide(positions, cell, pbc, work, ranks):
        return np.full(len(positions), rank % ranks)

    return divide


def in_turn(positions, cell, pbc, work, ranks):
    """Each atom another rank, as far as there are enough."""
    return np.arange(len(positions)) % ranks
