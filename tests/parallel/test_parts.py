"""Owners, ghosts, and the exchanges between ranks: counted, in order, and in spite of failures."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from emulated import together
from emulated_split import Part, at_random, completed, in_turn, steps
from tests_support import DATA, hydrogen_oxygen_structures, load_small

from dpa3sim.common.errors import OutOfMemoryError
from dpa3sim.graph.candidates import candidates
from dpa3sim.kernels.evaluator import MemoryPolicy
from dpa3sim.parallel.exchange import HaloExchange, Routes, Traffic
from dpa3sim.parallel.halo import find_halo
from dpa3sim.parallel.partition import owners, work_of
from dpa3sim.potential.session import OverlapError
from dpa3sim.potential.split import PartsFailedError
from dpa3sim.structures.geometry import complete_cell

PERIODIC = np.ones(3, dtype=bool)


@pytest.fixture(scope="module")
def small():
    return load_small(DATA / "models/dynamic/model.pt")


@pytest.fixture
def atoms():
    return hydrogen_oxygen_structures()[1] * (2, 1, 1)


# -- owners --------------------------------------------------------------------------------------


def random_points(n, seed=0, density=0.1):
    length = (n / density) ** (1 / 3)
    return np.random.default_rng(seed).uniform(0, length, (n, 3)), np.eye(3) * length


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16])
def test_parts_have_the_same_work(ranks):
    positions, cell = random_points(1600)
    rng = np.random.default_rng(1)
    work = work_of(rng.integers(20, 80, 1600), rng.integers(0, 30, 1600))
    owner = owners(positions, cell, PERIODIC, work, ranks)
    loads = np.bincount(owner, weights=work, minlength=ranks)
    assert len(loads) == ranks
    assert loads.max() / loads.mean() <= 1.05


def test_owners_do_not_depend_on_wrapping_and_vary_with_nothing_else():
    positions, cell = random_points(300)
    work = np.ones(300, dtype=np.int64)
    expected = owners(positions, cell, PERIODIC, work, 5)
    lattice = np.random.default_rng(2).integers(-3, 4, (300, 3)) @ cell
    np.testing.assert_array_equal(owners(positions + lattice, cell, PERIODIC, work, 5), expected)


def test_equal_coordinates_are_ordered_by_number():
    owner = owners(np.zeros((6, 3)), np.eye(3), PERIODIC, np.ones(6, dtype=np.int64), 3)
    np.testing.assert_array_equal(owner, [0, 0, 1, 1, 2, 2])


def test_more_parts_than_atoms():
    owner = owners(np.eye(3), np.eye(3) * 9, PERIODIC, np.ones(3, dtype=np.int64), 8)
    assert len(set(owner.tolist())) == 3


def test_parts_are_compact():
    """The ghosts of 1000 atoms of water are those of a cube (spec: within 10 %)."""
    positions, cell = random_points(8000)
    owner = owners(positions, cell, PERIODIC, np.ones(8000, dtype=np.int64), 8)
    halo = find_halo(positions, cell, PERIODIC, owner, 3, 8, 6.0, 1.0)
    n, density, r = halo.n_own, 0.1, 7.0 - 0.8
    a = (n / density) ** (1 / 3)
    expected = density * (6 * a**2 * r + 3 * np.pi * a * r**2 + 4 / 3 * np.pi * r**3)
    assert len(halo.ghosts) == pytest.approx(expected, rel=0.1)


# -- ghosts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(hydrogen_oxygen_structures())))
@pytest.mark.parametrize("ranks", [2, 3])
def test_candidates_of_all_ranks_are_those_of_one(index, ranks):
    structure = hydrogen_oxygen_structures()[index]
    rng = np.random.default_rng(index)
    structure.positions += rng.integers(-2, 3, (len(structure), 3)) @ structure.cell.array
    cell, pbc = complete_cell(structure.cell.array, structure.pbc), structure.pbc
    i, j, shifts = candidates(structure.positions, cell, pbc, 5.0)
    expected = sorted(map(tuple, np.column_stack([i, j, shifts]).tolist()))
    owner, found = rng.integers(ranks, size=len(structure)), []
    for rank in range(ranks):
        halo = find_halo(structure.positions, cell, pbc, owner, rank, ranks, 4.0, 1.0)
        x = halo.neighbours
        assert (owner[halo.nodes[: halo.n_own]] == rank).all()
        assert (owner[halo.ghosts] != rank).all()
        assert halo.ghosts_of.sum() == len(halo.ghosts)
        for row, count in enumerate(x.count):
            pairs = zip(x.neighbour[row, :count], x.shifts[row, :count], strict=True)
            rows = [(int(halo.nodes[row]), int(halo.nodes[k]), *map(int, s)) for k, s in pairs]
            assert rows == sorted(rows)  # the order that decides between equal distances
            found += rows
    assert sorted(found) == expected


def test_an_atom_is_one_ghost_however_many_images_are_near():
    structure = hydrogen_oxygen_structures()[1]
    owner = np.arange(len(structure)) % 2
    halo = find_halo(structure.positions, structure.cell.array, PERIODIC, owner, 0, 2, 6.0, 1.0)
    assert len(halo.ghosts) == 3
    assert halo.neighbours.count.max() > 100


# -- exchanges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3])
def test_exchanges_and_bytes_are_those_of_the_formula(small, atoms, every):
    policy = [MemoryPolicy(every=every)]
    structures = [atoms] * 3

    def needed(part):
        return sum(part.session._part.routes.send)  # ghosts elsewhere

    _, facts = steps(small, structures, 3, divide=at_random(1), policies=policy, look=needed)
    descriptor = small.model.config.descriptor
    layers, width = descriptor.nlayers, descriptor.n_dim
    assert layers >= 3
    owned = facts[0][1]
    for rank, (traffic, balance, elsewhere, trace) in enumerate(facts):
        assert (balance.n_ghosts == owned.n_ghosts).all()
        ghosts = balance.n_ghosts[rank]
        assert traffic.steps == 3
        assert traffic.forward == traffic.backward == 3 * (layers - 1)
        assert traffic.forces == 3
        assert traffic.gathers <= 3 + traffic.divisions
        # Of the ghosts here, features come, gradients and forces go; of own atoms elsewhere too.
        row = (layers - 1) * width * 8
        assert traffic.received == 3 * (ghosts * row + elsewhere * (row + 24))
        assert traffic.sent == 3 * (elsewhere * row + ghosts * (row + 24))
        assert trace == facts[0][3]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("forward", lambda call: lambda self, x: (call(self, x), call(self, x))[1]),
        ("backward", lambda call: lambda self, x: (call(self, x.clone()), call(self, x))[1]),
        ("forward", lambda call: lambda self, x: torch.cat([x, x[:1].repeat(self._n_ghosts, 1)])),
        ("backward", lambda call: lambda self, x: x[: self._n_atoms]),
        ("forces", lambda call: lambda self, x: x[: self._n_atoms]),
    ],
    ids=["doubled forward", "doubled backward", "no forward", "no backward", "no forces"],
)
def test_a_missing_or_doubled_exchange_fails(small, atoms, monkeypatch, name, change):
    monkeypatch.setattr(HaloExchange, name, change(getattr(HaloExchange, name)))
    with pytest.raises(PartsFailedError):
        steps(small, [atoms], 2, divide=at_random(1))


def test_one_rank_only_sends():
    """An asymmetric pair: all that one rank has to do with the other is to give."""

    def work(ranks):
        if ranks.rank == 0:
            routes = Routes(np.array([1, 2]), send=(0, 2), receive=(0, 0))
        else:
            routes = Routes(np.zeros(0, dtype=np.int64), send=(0, 0), receive=(2, 0))
        exchange = HaloExchange(
            ranks, routes, torch.tensor([2, 0, 1]), 2, torch.empty(0, 4), Traffic()
        )
        node = torch.arange(12.0).view(3, 4) + 100 * ranks.rank
        nodes = exchange.forward(node)
        back = exchange.backward(torch.ones_like(nodes))
        forces = exchange.forces(torch.ones(len(nodes), 3, dtype=torch.float64))
        exchange.end()
        return nodes, back, forces

    (first, back, forces), (second, *_) = together(2, work)
    assert len(first) == 3
    assert second[3:].tolist() == first[[0, 1]].tolist()  # rows of atoms 1 and 2
    assert back[:, 0].tolist() == forces[:, 0].tolist() == [2, 2, 1]


# -- failures ------------------------------------------------------------------------------------


class Fails:
    """In place of an evaluator's method: raises on one rank for some calls."""

    def __init__(self, method, error, calls):
        self.method, self.error, self.calls = method, error, calls

    def __call__(self, *args):
        if self.calls:
            self.calls -= 1
            raise self.error
        return self.method(*args)


def failing(potential, atoms, size, where, error):
    """Three evaluations, of which rank 1 fails the second one; what rank 0 sees."""
    system = completed(potential, atoms)

    def work(ranks):
        part = Part(potential, ranks, size, at_random(1), (), False, 1.0)
        found = []
        for turn in range(3):
            if turn == 1 and ranks.rank == 1:
                target, name = where(part)
                setattr(target, name, Fails(getattr(target, name), error, 1))
            try:
                found.append(part.session.step(system, frugal=turn == 2))
            except PartsFailedError as failed:
                found.append(failed.ranks)
            found.append(part.session.error)
        return found

    return together(size, work)


@pytest.mark.parametrize(
    "where",
    [
        lambda part: (part.batcher.evaluator, "evaluate"),
        lambda part: (part.batcher.memory, "policy"),
        lambda part: (part.session._part.laid.graph, "measure"),
        lambda part: (part.batcher.evaluator._layers[1].kernel, "forward"),
        lambda part: (part.batcher.evaluator._layers[1].kernel, "backward"),
    ],
    ids=["evaluate", "policy", "measure", "forward", "backward"],
)
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_that_fails_keeps_nobody_waiting(small, atoms, size, where):
    error = MemoryError("none left")
    found = failing(small, atoms, size, where, error)
    first, _, failed, no_error, again, _ = found[0]
    assert failed == [1]
    assert no_error is None
    assert found[1][3] is error
    assert again.energy == first.energy
    np.testing.assert_array_equal(again.forces, first.forces)


def test_too_little_memory_in_one_rank(small, atoms):
    system = completed(small, atoms)

    def work(ranks):
        part = Part(small, ranks, 2, at_random(1), (), False, 1.0)
        if ranks.rank:
            part.batcher.memory.policy = lambda layout, frugal, others: None
        try:
            return part.session.step(system)
        except PartsFailedError as failed:
            return failed.ranks
        finally:
            assert isinstance(part.session.error, OutOfMemoryError) == (ranks.rank == 1)

    assert together(2, work) == [[1], None]


def test_overlap_of_atoms_of_two_ranks(small, atoms):
    atoms.positions[1] = atoms.positions[0] + [0.05, 0, 0]
    system = completed(small, atoms)

    def work(ranks):
        part = Part(small, ranks, 2, in_turn, (), False, 1.0)
        with pytest.raises(OverlapError):
            part.session.step(system)
        return True

    assert together(2, work) == [True, True]


def test_silicon_is_divided_evenly(embedded):
    """At 100 atoms a rank the work differs by at most 5 %."""
    structure = bulk("Si", cubic=True) * (3, 3, 3)
    structure.rattle(0.1, seed=0)
    system = completed(embedded, structure)

    def work(ranks):
        part = Part(embedded, ranks, 2, owners, (), False, 1.0)
        part.session._measure_renewing(system)
        return part.session._measure(system).balance.imbalance

    assert max(together(2, work)) <= 1.05
