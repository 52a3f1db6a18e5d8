"""Several processes train like one, and end together.

A hang must fail: every team runs in a thread with a time limit, or in a process with one.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ranks_work import (
    Deadly,
    end_alone,
    fail,
    kill,
    raise_in_first,
    sums,
    train,
    train_in_parts,
)
from tests_support import ENVIRONMENT, TESTS
from training_support import SMALL, labelled, recipe, water

from dpa3sim.common.errors import InputError, OutOfMemoryError, RankLostError
from dpa3sim.parallel import processes
from dpa3sim.train import ranks
from dpa3sim.train.team import Alone

CPU = torch.device("cpu")
SLOW = pytest.mark.slow


def within(seconds, call, *args):
    """What a call returns or raises, in a thread of its own."""
    future = Future()

    def do():
        try:
            future.set_result(call(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future.result(seconds)


def children():
    """Processes that this one started."""
    found: list[str] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread ended meanwhile
            found += (thread / "children").read_text().split()
    return found


def team(size, work, *args, seconds=120):
    """What the work of several processes returns or raises."""
    try:
        return within(seconds, ranks.run, size, partial(work, *args), CPU)
    finally:
        assert not children()


# -- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, pytest.param(4, marks=SLOW)])
def test_all_ranks_have_the_same_sum(size):
    before = torch.get_num_threads()
    found, exact, flags, threads = team(size, sums)
    for row in found:
        assert torch.equal(row, found[0])
    torch.testing.assert_close(found[0], exact, rtol=1e-14, atol=0)
    assert flags == (True,) * size + (False,)
    assert threads == size * max(1, before // size)
    assert torch.get_num_threads() == before


# -- trainings -----------------------------------------------------------------------------------


def of_all_sizes(seed, lone=False):
    """10 frames of three sizes, some without forces and some without virials."""
    atoms = [x for n in (1, 2, 3) for x in water(4, seed + n, n)][:10]
    if lone:
        atoms = [Atoms("H"), *atoms]
    frames = labelled(atoms)
    forces, virials = frames.forces.copy(), frames.virials.copy()
    forces[frames.starts[4] : frames.starts[8]] = np.nan
    virials[8:] = np.nan
    return replace(frames, forces=forces, virials=virials)


def several(batch_size):
    """Trainings of mixed frames, of single steps and of two tasks, with a size of batches."""
    options = {"batch_size": batch_size, "report_every": 2, "gradient": "exact"}
    mixed = recipe(of_all_sizes(1), of_all_sizes(11), steps=4, **options)
    lone = recipe(of_all_sizes(1, lone=True), None, steps=1, energy_bias="labels", **options)
    first = mixed.tasks[0]
    tasks = (replace(first, name="one"), replace(first, name="two", training=of_all_sizes(5)))
    coded = replace(mixed, tasks=tasks, config=SMALL.config(("H", "O"), encoding=2))
    own = replace(mixed, tasks=tasks, train=replace(mixed.train, separate_fitting=True))
    return [mixed, lone, coded, own]


def assert_same_training(a, b):
    """Trained weights, moments (sums of gradients) and losses agree to 1e-6."""
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        error = (tensor - b.tensors[name]).double().norm()
        assert error <= 1e-6 * tensor.double().norm(), name
    for x, y in zip(a.facts["rows"], b.facts["rows"], strict=True):
        assert y == pytest.approx(x, rel=1e-6)
    assert a.facts["samplers"] == b.facts["samplers"]


# The fourth batch of 10 frames by 3 has one frame, for three ranks.
@pytest.mark.parametrize(
    ("size", "one", "each"), [(2, "4", "2"), pytest.param(3, "3", "1", marks=SLOW)]
)
def test_ranks_train_like_one_process_with_larger_batches(size, one, each):
    alone = train(several(one), Alone())
    together = team(size, train, several(each))
    for a, b in zip(alone, together, strict=True):
        assert_same_training(a, b)


def test_a_continued_training_of_two_ranks_has_the_same_bits(tmp_path):
    options = {"steps": 12, "ema_decay": 0.9}
    recipes = [
        recipe(of_all_sizes(1), of_all_sizes(11), gradient=kind, **options)
        for kind in ("difference", "exact")
    ]
    for whole, parts in team(2, train_in_parts, recipes, tmp_path):
        assert whole.step == parts.step == 12
        assert whole.facts == parts.facts
        assert whole.tensors.keys() == parts.tensors.keys()
        for name, tensor in whole.tensors.items():
            assert torch.equal(tensor, parts.tensors[name]), name


# -- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "how", "meanwhile", "error", "text"),
    [
        (3, kill, "computing", RankLostError, "rank 2 ended .*by signal 9.*same command"),
        pytest.param(
            *(3, kill, "summing", RankLostError, "rank 2 ended .*by signal 9.*same command"),
            marks=SLOW,
        ),
        (2, partial(fail, InputError("no room")), "summing", InputError, "^no room$"),
        (2, partial(fail, ZeroDivisionError("x")), "computing", RankLostError, "1 failed: Zero.*x"),
        (2, partial(fail, MemoryError("x")), "computing", OutOfMemoryError, "1 failed: Mem.*x"),
    ],
    ids=["killed1", "killed2", "input", "bug", "memory"],
)
def test_the_end_of_a_rank_is_one_error(size, how, meanwhile, error, text):
    with pytest.raises(error, match=text):
        team(size, end_alone, how, meanwhile, seconds=60)
    assert not torch.distributed.is_initialized()


def test_an_error_of_the_first_rank_ends_the_others():
    with pytest.raises(InputError, match="no room"):
        team(2, raise_in_first, InputError("no room"), seconds=60)


def test_a_child_that_ends_before_it_has_begun():
    with pytest.raises(RankLostError, match="rank 1 ended unexpectedly"):
        within(60, ranks.run, 2, Deadly(), CPU)


# -- other processes -----------------------------------------------------------------------------


def environment(folder, **more):
    """For programs that import this module, with their temporary files in a folder."""
    path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(TESTS), str(TESTS / "train")])
    return ENVIRONMENT | {"PYTHONPATH": path, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"} | more


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_over(group):
    """Whether a group of processes has none left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


received = set()


class Wait:
    """Work until rank 0 has received both signals."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, team):
        (self.folder / f"at_work{team.rank}").touch()
        while not team.any(len(received) == 2):
            time.sleep(0.01)
        return team.size


@pytest.fixture
def program(tmp_path):
    """A program of two ranks, the leader of its own group of processes."""
    places = tmp_path / "tmp"
    places.mkdir()
    code = (
        "import signal, test_ranks as t; from pathlib import Path\n"
        "for s in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(s, lambda number, frame: t.received.add(number))\n"
        f"Path({str(tmp_path)!r}, 'begun').touch()\n"
        f"print(t.ranks.run(2, t.Wait(Path({str(tmp_path)!r})), t.CPU))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(places),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if not is_over(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("when", [pytest.param("begun", marks=SLOW), "at_work1"])
def test_all_end_with_the_first_rank(program, tmp_path, when):
    wait_until((tmp_path / when).exists, 60)
    time.sleep(0.5)  # its child has started, and notices the end after its imports
    program.kill()
    program.wait()
    wait_until(lambda: is_over(program.pid), 10 if when == "at_work1" else 60)
    if when == "at_work1":
        assert list((tmp_path / "tmp").iterdir()) == []
        assert program.stdout.read() == ""


@pytest.mark.parametrize("when", ["begun", pytest.param("at_work1", marks=SLOW)])
def test_only_the_first_rank_receives_signals(program, tmp_path, when):
    wait_until((tmp_path / when).exists, 60)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(program.pid, number)
    output, _ = program.communicate(timeout=60)
    assert (program.returncode, output) == (0, "2\n")
    wait_until(lambda: is_over(program.pid))


# -- launchers -----------------------------------------------------------------------------------

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.fixture
def variables(monkeypatch):
    """Sets variables of launchers, and no others."""
    for name in (*TORCHRUN, *SRUN, "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({}, None),
        (TORCHRUN, (1, 4, 0)),
        (SRUN, (3, 4, 1)),
        (SRUN | TORCHRUN, (1, 4, 0)),
        (SRUN | TORCHRUN | {"WORLD_SIZE": "1"}, None),
        # A shell within a job.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, None),
    ],
)
def test_the_place_within_a_launcher(variables, values, place):
    variables(values)
    assert processes.place() == place


@pytest.mark.parametrize(
    ("values", "number", "device", "text"),
    [
        (TORCHRUN | {"RANK": "x"}, 1, "cpu", "variable RANK = 'x' is not a number"),
        (TORCHRUN, 2, "cpu", "option ranks = 2, but the launcher started 4"),
        (TORCHRUN, 1, "cpu", "set MASTER_ADDR and MASTER_PORT"),
        (TORCHRUN, 1, "cuda:1", "option device = cuda:1 is for one rank"),
        (TORCHRUN, 1, "meta", "option device = meta is for one rank"),
        ({}, 99, "cuda", "option ranks = 99: there are"),
    ],
)
def test_options_that_do_not_fit(variables, values, number, device, text):
    variables(values)
    with pytest.raises(InputError, match=text):
        ranks.run(number, sums, torch.device(device))


def test_the_first_machine():
    found = {"a": "a", "a,b": "a", "node[07-09,12],gpu1": "node07", "n[3,5]-ib": "n3-ib"}
    assert {hosts: processes.first_host(hosts) for hosts in found} == found
    with pytest.raises(InputError, match="SLURM_STEP_NODELIST"):
        processes.first_host("")


def launched(folder, what):
    """Work of a launched rank: trains, or ends as it should not."""
    if what == "train":
        state = ranks.run(1, partial(train, several("2")[:1]), CPU)[0]
        if processes.place().rank == 0:
            torch.save(state, folder / "state")
    else:
        how = {"kill": kill, "fail": partial(fail, InputError("no frames"))}[what]
        try:
            ranks.run(1, partial(end_alone, how, "summing"), CPU)
        except (RankLostError, InputError) as error:
            print(f"rank {processes.place().rank}: {error}", flush=True)
            sys.exit(error.exit_code)


def script(folder, what):
    path = folder / "script.py"
    path.write_text(
        "from pathlib import Path\nfrom test_ranks import launched\n"
        f"launched(Path({str(folder)!r}), {what!r})\n"
    )
    return str(path)


def torchrun(folder, what):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, script(folder, what)],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=90,
    )


@SLOW
def test_torchrun(tmp_path):
    done = torchrun(tmp_path, "train")
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "state", weights_only=False)
    assert_same_training(train(several("4")[:1], Alone())[0], found)


@SLOW
@pytest.mark.parametrize(
    ("what", "text"), [("kill", "rank 0: .*same command"), ("fail", "rank 0: no frames")]
)
def test_failures_within_torchrun(tmp_path, what, text):
    done = torchrun(tmp_path, what)
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert len(lines) == 1
    assert re.match(text, lines[0])


def test_srun(tmp_path):
    """Without srun: processes with its variables."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0"}
    job |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    path = script(tmp_path, "fail")
    processes = [
        subprocess.Popen(
            [sys.executable, path],
            env=environment(tmp_path, **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert outputs == ["rank 0: no frames\n", ""]
    assert [process.returncode for process in processes] == [2, 2]
