"""Real processes: the same results, and one clear error whatever happens to one of them.

A hang must fail: ranks are waited for no longer than a few seconds.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import parallel_work
import pytest
import torch
from ase.build import bulk, molecule
from tests_support import DATA, ENVIRONMENT, TESTS, assert_equal_results, hydrogen_oxygen_structures

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.common.errors import InputError, OutOfMemoryError, RankLostError
from dpa3sim.parallel import sharing
from dpa3sim.parallel.messages import packed, unpacked
from dpa3sim.parallel.sharing import share_out
from dpa3sim.potential import team
from dpa3sim.potential.potential import Potential as Direct
from dpa3sim.run.cost import Pace

SLOW = pytest.mark.slow
MODEL = DATA / "models/dynamic/model.pt"
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def few():
    """Structures of any size are divided."""
    before = dict(sharing.LEAST_ATOMS)
    sharing.LEAST_ATOMS["cpu"] = 1
    yield
    sharing.LEAST_ATOMS.update(before)


@pytest.fixture(scope="module")
def one():
    return Potential(MODEL, dtype="float64")


@pytest.fixture(scope="module")
def two(few):
    with Potential(MODEL, dtype="float64", ranks=2, rank_timeout=60) as potential:
        yield potential


def gone(pid):
    """Whether a process has ended; one that nobody has waited for has."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def pids(potential):
    return [child.pid for child in potential._team.crew.processes]


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- results -------------------------------------------------------------------------------------


def test_structures_that_processes_share(one, two):
    structures = [hydrogen_oxygen_structures()[k] for k in (1, 3, 4, 5, 7)]
    structures.append(structures[0] * (2, 2, 1))
    for atoms in structures:
        (found,) = two.evaluate([atoms])
        assert_equal_results(found, one.evaluate([atoms])[0], ROUNDING)
    facts = two.shared.facts()
    layers = one.model.config.descriptor.nlayers
    for fact in facts:
        traffic = fact["traffic"]
        assert traffic["steps"] >= len(structures) - 1  # one of them has one atom
        for name in ("forward", "backward"):
            assert traffic[name] == (layers - 1) * traffic["steps"]
    assert facts[0]["traffic"]["sent"] == facts[1]["traffic"]["received"]
    assert facts[1]["peak_memory"] > 2**20


def test_whole_structures_side_by_side(one, two, monkeypatch):
    monkeypatch.setitem(sharing.LEAST_ATOMS, "cpu", 100)
    structures = hydrogen_oxygen_structures()
    bad = structures[1].copy()
    bad.positions[1] = bad.positions[0] + [0.01, 0, 0]
    structures.insert(2, bad)
    steps = two.shared.model.traffic.steps
    found, expected = two.evaluate_each(structures), one.evaluate_each(structures)
    assert two.shared.model.traffic.steps == steps  # nothing was divided
    assert two.shared.sharing([len(x) for x in structures]).used == 2
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        if index == 2:
            assert (type(a), str(a)) == (type(b), str(b))
            assert "overlap" in str(a)
        else:
            assert_equal_results(a, b, ROUNDING)


def test_what_an_evaluation_costs_is_timed_by_one_rank(two, monkeypatch):
    """The estimate divides it among the ranks; shared copies would be divided twice."""
    monkeypatch.setattr(two.shared, "evaluate", lambda systems: pytest.fail("several ranks"))
    assert Pace.measure(hydrogen_oxygen_structures()[0], two).per_work > 0


def test_an_overlap_between_ranks_is_the_error_of_one_process(one, two):
    bad = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    bad.positions[7] = bad.positions[0] + [0.01, 0, 0]
    with pytest.raises(InputError) as expected:
        one.evaluate([bad])
    with pytest.raises(InputError) as found:
        two.evaluate([bad])
    assert str(found.value) == str(expected.value)
    assert two.evaluate([molecule("H2O")])  # and the others are still there


def test_the_same_bits_after_forgetting(two):
    atoms = hydrogen_oxygen_structures()[1] * (2, 2, 1)
    two.forget()
    first = two.evaluate([atoms])[0]
    moved = atoms.copy()
    moved.positions += np.random.default_rng(0).normal(scale=0.3, size=moved.positions.shape)
    two.evaluate_each([moved])
    two.forget()
    again = two.evaluate([atoms])[0]
    assert first.energy == again.energy
    np.testing.assert_array_equal(first.forces, again.forces)


def test_other_potentials_of_the_team(one, two):
    atoms = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    single = two.in_precision("float32")
    assert single.ranks == 2
    assert single._team is two._team
    expected = one.in_precision("float32").evaluate([atoms])[0]
    assert_equal_results(single.evaluate([atoms])[0], expected, 1e-4)
    assert_equal_results(two.evaluate([atoms])[0], one.evaluate([atoms])[0], ROUNDING)
    assert two.identity == one.identity
    assert two.settings.ranks == "2"


def test_a_calculator(two, one):
    atoms = hydrogen_oxygen_structures()[1] * (2, 1, 1)
    expected = one.evaluate([atoms])[0]
    atoms.calc = DPA3Calculator(two)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-10)
    assert np.abs(atoms.get_forces() - expected.forces).max() < 1e-10


@SLOW
def test_threads_are_divided_while_there_are_several(few):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with Potential(MODEL, ranks=2) as potential:
            assert torch.get_num_threads() == 2
            children = pids(potential)
        assert torch.get_num_threads() == 4
        wait_until(lambda: all(map(gone, children)))
        with pytest.raises(RankLostError, match="have ended"):
            potential.evaluate([hydrogen_oxygen_structures()[1]])
    finally:
        torch.set_num_threads(before)


# -- sharing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "ranks", "together", "alone"),
    [
        ([50], 4, (), ((0,), (), (), ())),
        ([150], 2, (), ((0,), ())),
        ([250], 4, ((0, 2),), ((), (), (), ())),
        ([1000], 4, ((0, 4),), ((), (), (), ())),
        ([64] * 4, 2, (), ((0, 2), (1, 3))),
        ([400] * 3, 2, ((0, 2),), ((1,), (2,))),
        ([1000, 10, 10], 2, ((0, 2),), ((1,), (2,))),
    ],
)
def test_sharing(sizes, ranks, together, alone):
    found = share_out(sizes, ranks, 100)
    assert found.together == together
    assert found.alone == alone


def test_messages():
    arrays = {"a": np.arange(6.0).reshape(2, 3), "none": np.zeros((0, 3)), "b": np.array([True])}
    words, found = unpacked(packed({"x": 1, "nothing": None}, arrays))
    assert words == {"x": 1, "nothing": None}
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("ranks", [0, -1, 1.5, "many", True, ""])
def test_options_that_are_no_number_of_ranks(ranks):
    with pytest.raises(InputError, match=r"option ranks = .* must be a number"):
        Potential(MODEL, ranks=ranks)


def test_no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="env is for several processes"):
        Potential(MODEL, ranks="env")


# -- failures ------------------------------------------------------------------------------------


def start(monkeypatch, what, ranks=2, limit=20.0):
    monkeypatch.setenv(parallel_work.VARIABLE, what)
    monkeypatch.setattr(team, "serve", parallel_work.failing)
    return Potential(MODEL, dtype="float64", ranks=ranks, rank_timeout=limit)


ATOMS = hydrogen_oxygen_structures()[1] * (2, 1, 1)


def lose(potential, match):
    """The error of the next evaluation, within 10 s, after which no process is left."""
    children = pids(potential)
    begin = time.monotonic()
    with pytest.raises(RankLostError, match=match):
        potential.evaluate([ATOMS])
    assert time.monotonic() - begin < 10
    wait_until(lambda: all(map(gone, children)))
    with pytest.raises(RankLostError):
        potential.evaluate([ATOMS])


def test_a_rank_that_is_killed_between_steps(few, monkeypatch):
    potential = start(monkeypatch, "memory 0")
    potential.evaluate([ATOMS])
    os.kill(pids(potential)[0], signal.SIGKILL)
    lose(potential, "rank 1 ended unexpectedly .killed by signal 9")


@pytest.mark.parametrize(
    ("what", "ranks", "limit", "match"),
    [
        pytest.param("die", 2, 20, "ended unexpectedly .killed by signal 9", marks=SLOW),
        pytest.param("die", 3, 20, "ended unexpectedly .killed by signal 9", marks=SLOW),
        pytest.param("stop", 2, 3, "no answer for 3 s", marks=SLOW),
        pytest.param("sleep", 2, 3, "no answer for 3 s", marks=SLOW),
        pytest.param("bug", 3, 20, "rank 1 failed: ZeroDivisionError: one by", marks=SLOW),
    ],
)
def test_a_rank_that_fails_within_a_step(few, monkeypatch, what, ranks, limit, match):
    lose(start(monkeypatch, what, ranks, limit), match)


def test_a_rank_without_memory(few, monkeypatch, one):
    with start(monkeypatch, "memory 3") as potential:
        # Once it recovers with less memory, then it does not, and is there for what fits.
        with pytest.raises(OutOfMemoryError, match="rank 1: MemoryError: none left"):
            potential.evaluate([ATOMS])
        assert potential.counters.retries == 2
        found = potential.evaluate([ATOMS])[0]
        assert potential.counters.retries == 3
        assert_equal_results(found, one.evaluate([ATOMS])[0], ROUNDING)


@SLOW
def test_a_rank_that_cannot_begin(few, monkeypatch):
    begin = time.monotonic()
    with pytest.raises(RankLostError, match="rank 1 failed: ZeroDivisionError: cannot begin"):
        start(monkeypatch, "start")
    assert time.monotonic() - begin < 40  # most of it for the imports of a process


@SLOW
def test_weights_that_are_not_finite(few):
    from dataclasses import replace

    from dpa3sim.common.errors import NonFiniteError

    model = Potential(MODEL).model
    weights = {k: v.copy() for k, v in model.weights.items()}
    weights["fitting_net.bias_atom_e"][:] = 1e308  # sums of it are infinite
    with (
        Direct(replace(model, weights=weights), ranks=2) as potential,
        pytest.raises(NonFiniteError),
    ):
        potential.evaluate([ATOMS])


PROGRAM = """
import sys, time
from ase.build import bulk
from dpa3sim import Potential
from dpa3sim.parallel import sharing
sharing.LEAST_ATOMS["cpu"] = 1
atoms = bulk("O", "fcc", 4.0, cubic=True)
potential = Potential(sys.argv[1], dtype="float64", ranks=sys.argv[2])
children = [child.pid for child in getattr(potential._team.crew, "processes", [])]
print(potential.evaluate([atoms])[0].energy, *children, flush=True)
time.sleep(float(sys.argv[3]))
"""


def program(ranks, seconds, **variables):
    """A program without a guard for imports, as scripts are."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(MODEL), ranks, str(seconds)],
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS,
    )


@SLOW
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_nobody_is_left_when_rank_0_ends(how):
    with program("2", 60 if how else 0) as process:
        children = [int(x) for x in process.stdout.readline().split()[1:]]
        assert len(children) == 1
        if how:
            process.send_signal(how)
        process.wait(20)
        wait_until(lambda: all(map(gone, children)))
        if how is None:
            assert process.returncode == 0
            assert process.stderr.read() == ""


@SLOW
def test_processes_of_a_launcher(one):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    runs = [program("env", 0, RANK=str(rank), LOCAL_RANK=str(rank), **address) for rank in range(2)]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    expected = one.evaluate([bulk("O", "fcc", 4.0, cubic=True)])[0].energy
    assert float(outputs[0][0]) == pytest.approx(expected, abs=1e-10)
    assert outputs[1][0] == ""
