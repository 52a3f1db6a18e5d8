"""How many threads an evaluation uses beside other processes."""

import time

import pytest
import torch
from ase.build import bulk

from dpa3sim import Potential
from dpa3sim.potential import threads
from dpa3sim.potential.threads import FreeCores, Usage, free_threads, read_usage

CORES = 8


@pytest.fixture
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(before)


def cores_left(monkeypatch, others, own):
    """Free cores of eight while others and this process use so many, after a second."""
    clock = [0.0]
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])
    found = FreeCores(lambda: Usage(clock[0], (others + own) * clock[0], own * clock[0], CORES))
    clock[0] = 1.0
    return found


@pytest.mark.parametrize(
    ("others", "own", "expected"),
    [
        (0.0, 8.0, 8),
        (0.2, 7.8, 8),  # what a system does anyway
        (0.5, 7.5, 7),  # one more process that has to share its core with one of ours
        (1.0, 7.0, 7),
        (4.0, 4.0, 4),
        (7.9, 0.1, 1),
        (20.0, 0.0, 1),
        (-0.5, 8.0, 8),  # counters are not exact
    ],
)
def test_threads_that_find_a_free_core(monkeypatch, others, own, expected):
    assert cores_left(monkeypatch, others, own).threads(8) == expected


def test_no_more_than_asked_for(monkeypatch):
    assert cores_left(monkeypatch, 2.0, 6.0).threads(3) == 3
    assert cores_left(monkeypatch, 6.0, 2.0).threads(3) == 2


def test_all_threads_again_when_the_others_have_gone(monkeypatch):
    clock, busy = [0.0], [0.0]
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])
    cores = FreeCores(lambda: Usage(clock[0], busy[0], 0.0, CORES))
    clock[0], busy[0] = 1.0, 5.0
    assert cores.threads(8) == 3
    clock[0] += threads.INTERVAL / 2
    assert cores.threads(8) == 3  # looked a moment ago
    clock[0] += 1.0
    assert cores.threads(8) == 8


def test_systems_without_counters():
    assert FreeCores(lambda: None).threads(8) == 8


def test_threads_within_the_context_only(eight_threads, monkeypatch):
    monkeypatch.setattr(threads, "_free_cores", cores_left(monkeypatch, 6.0, 2.0))
    with free_threads():
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == CORES
    monkeypatch.setenv(threads.VARIABLE, "fixed")
    with free_threads():
        assert torch.get_num_threads() == CORES


def test_the_system_counts_what_this_process_does():
    before = read_usage()
    if before is None:
        pytest.skip("no /proc/stat here")
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = read_usage()
    assert after.own - before.own >= 0.3
    assert after.busy - before.busy >= 0.2  # counted in steps of 0.01 s
    assert after.cores >= 1


def test_the_same_bits_with_any_number(eight_threads, monkeypatch):
    atoms = bulk("Si", cubic=True) * 2
    atoms.rattle(0.05, seed=1)
    potential, counts = Potential(), iter([8, 1, 3])
    monkeypatch.setattr(threads, "_free_cores", FreeCores(lambda: None))
    monkeypatch.setattr(threads._free_cores, "threads", lambda most: next(counts))
    results = []
    for _ in range(3):
        potential.forget()
        results.append(potential.evaluate([atoms])[0])
    for result in results[1:]:
        assert result.energy == results[0].energy
        assert (result.forces == results[0].forces).all()
        assert (result.virial == results[0].virial).all()
