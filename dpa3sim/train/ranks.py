"""Starts the processes of a training, or joins those of torchrun and srun, and ends them together.

On one machine, rank 0 is the calling process, with its signals and its terminal; the other ranks
are its children. They exchange data on the loopback interface, by ports that the system chooses, so
that nothing listens to the network. A failure ends all of them within seconds:

- A child is killed: a thread of rank 0 sees that, kills the other children and raises
  :class:`RankLostError` in the work of rank 0, whatever it is doing.
- A child raises an error: it leaves the error in the store in which the ranks meet, and ends. The
  same follows, and rank 0 raises the error of the child instead.
- Rank 0 raises an error: it kills its children.
- Rank 0 is killed: a thread of each child sees that and ends the child.
- SIGINT and SIGTERM are blocked in the children. Rank 0 decides what they mean.

torchrun, and srun with ``--kill-on-bad-exit``, watch their processes themselves; there, the first
rank reports the error of all. The exchange between GPUs, by NCCL, has not run on GPUs yet.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from dpa3sim.common import errors
from dpa3sim.common.errors import (
    CONNECTION_LOST,
    DONE,
    Dpa3simError,
    InputError,
    OutOfMemoryError,
    memory_ran_out,
)
from dpa3sim.train.team import Alone, RankLostError, Team, Together

T = TypeVar("T")

# How long ranks wait for each other to connect; a launcher may start them at different times.
_CONNECT, _CONNECT_LAUNCHED = timedelta(minutes=1), timedelta(minutes=10)
# How long ranks wait until all are prepared. The end of a rank is noticed without it, and ranks may
# be far apart: rank 0 finds the edges of all frames on the disk, the others search for them.
_PREPARATION = timedelta(hours=6)
# How long children may take, s, to end after their work, and after the connection to one is lost.
_END, _FOLLOW = 5.0, 0.5
# Variables of launchers: the rank of a process, of how many, and its number on its machine.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
# Keys in the store in which ranks meet.
_READY, _FAILURE = "ready", "failure"
_HERE = "127.0.0.1"
_CONTINUES = "the same command continues from the last saved state"


class Place(NamedTuple):
    """Which process this is.

    Attributes:
        rank, size: its number, and of how many. local: its number on its machine.
    """

    rank: int
    size: int
    local: int


def place() -> Place | None:
    """The place that torchrun or srun gave this process; None if it is not one of several.

    Raises:
        InputError: a variable of the launcher is not a number.
    """
    for names in _LAUNCHERS:
        if all(name in os.environ for name in names):
            found = Place(*map(_number, names))
            return found if found.size > 1 else None
    return None


def run(ranks: int, work: Callable[[Team], T], device: torch.device) -> T:
    """Do the same work in several processes at once.

    Args:
        ranks: how many of this machine; within torchrun or srun, which have decided it, 1.
        work: what each of them does; it is pickled for the children.
        device: the CPU, or ``cuda``, of which each process of a machine takes another one.

    Returns:
        What the work returns, in rank 0 and in all processes of torchrun and srun.

    Raises:
        InputError: there are not as many processes or GPUs.
        RankLostError: another rank ended unexpectedly, or failed with an error that is a bug.
        Dpa3simError: one that another rank raised.
        SystemExit: within torchrun and srun, where rank 0 raises the error.
    """
    me = place()
    if me is not None:
        if ranks not in (1, me.size):
            raise InputError(f"option ranks = {ranks}, but the launcher started {me.size}: omit it")
        return _join(me, work, device)
    return work(Alone()) if ranks == 1 else _lead(ranks, work, device)


# -- processes of this machine -------------------------------------------------------------------


def _lead(ranks: int, work: Callable[[Team], T], device: torch.device) -> T:
    """Do the work as rank 0, with children."""
    me, finished = Place(0, ranks, 0), False
    if device.type == "cuda" and ranks > torch.cuda.device_count():
        raise InputError(f"option ranks = {ranks}: there are {torch.cuda.device_count()} GPUs")
    _select(device, me)
    with _on_file(work) as file, _on_loopback(), _threads(ranks):
        store = _local_store()
        watch = _Watch(device)
        try:
            try:
                watch.start(ranks, file, store.port)
                while not store.check([f"{_READY}{rank}" for rank in range(1, ranks)]):
                    time.sleep(0.02)
                file.unlink()
                _connect(store, me, device, _CONNECT)
                result = work(Together())
                finished = True
                return result
            finally:
                watch.release()
        except RankLostError as error:
            raise watch.reason(store) or error from None
        finally:
            try:
                _disconnect()
            finally:
                watch.end(_END if finished else 0.0)


@contextmanager
def _on_file(work: object) -> Iterator[Path]:
    """The work in a private file, which all children read at once, however large it is."""
    with tempfile.TemporaryDirectory(prefix="dpa3sim-") as folder:
        path = Path(folder) / "work"
        with open(path, "wb") as file:
            pickle.dump(work, file, pickle.HIGHEST_PROTOCOL)
        yield path


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let gloo use only the network within this machine, here and in the children."""
    variable = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(variable)
    try:
        for _, name in socket.if_nameindex():
            if name in ("lo", "lo0"):  # on Linux, on macOS
                os.environ[variable] = name
        yield
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


def _local_store() -> TCPStore:
    """Where rank 0 and its children meet, at a free port of this machine."""
    with socket.create_server((_HERE, 0)) as server:
        port = server.getsockname()[1]
        # The store takes the socket, so that nobody else can take the port in between.
        return TCPStore(
            *(_HERE, port, None, True),
            wait_for_workers=False,
            master_listen_fd=server.detach(),
        )


@contextmanager
def _threads(ranks: int) -> Iterator[None]:
    """Divide the threads among the ranks; the children begin with as many as this process has."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // ranks))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Watch:
    """Notices the end of a child, and ends the work of this thread then.

    Args:
        device: where the ranks compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._children: list[SpawnProcess] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._caller: int | None = threading.get_ident()
        self._lock = threading.Lock()
        self._decided = threading.Event()
        self._lost: str | None = None

    def start(self, ranks: int, work: Path, port: int) -> None:
        """Start the children, for the work in a file; they meet at a port."""
        resource_tracker.ensure_running()  # a start would do it, and unblock the signals
        # Children inherit what is blocked, and so are safe from their first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for rank in range(1, ranks):
                me = Place(rank, ranks, rank)
                child = multiprocessing.get_context("spawn").Process(
                    target=_child,
                    args=(me, work, port, self._device, torch.get_num_threads()),
                    daemon=True,
                )
                child.start()
                self._children.append(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._thread.start()

    def release(self) -> None:
        """Do not interrupt the caller from here on."""
        with self._lock:
            if self._caller is not None:
                _raise_in(self._caller, None)
            self._caller = None

    def reason(self, store: Store) -> Dpa3simError | None:
        """Why a child is lost; None if none is."""
        self._decided.wait(_END)
        told = _told(store)
        if told is None and self._lost is not None:
            return RankLostError(f"{self._lost}; {_CONTINUES}")
        return told

    def end(self, patience: float) -> None:
        """Kill the children that do not end by themselves within some seconds."""
        if not self._children:
            return
        try:
            self._thread.join(patience)
        finally:
            for child in self._children:
                child.kill()
        self._thread.join()

    def _watch(self) -> None:
        waiting = {child.sentinel: child for child in self._children}
        while waiting:
            for sentinel in connection.wait(list(waiting)):
                child = waiting.pop(sentinel)  # type: ignore[arg-type]
                child.join()
                if child.exitcode != DONE and not self._decided.is_set():
                    self._lose(child)

    def _lose(self, child: SpawnProcess) -> None:
        """End everything, because a child ended that should not."""
        if child.exitcode == CONNECTION_LOST:
            # It only found that another one is gone, which comes to light in a moment.
            time.sleep(_FOLLOW)
            innocent = (None, DONE, CONNECTION_LOST)
            guilty = [x for x in self._children if x.exitcode not in innocent]
            child = guilty[0] if guilty else child
        self._lost = _ended(self._children.index(child) + 1, child.exitcode)
        self._decided.set()
        with self._lock:
            if self._caller is None:
                return
            for other in self._children:
                other.kill()
            if self._device.type == "cuda" and dist.is_initialized():
                # Otherwise the GPU waits for the lost rank for ever, and so does this process.
                c10d._get_default_group()._get_backend(self._device).abort()
            _raise_in(self._caller, RankLostError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error between two instructions of a thread; None takes back one that is pending."""
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


def _ended(rank: int, code: int | None) -> str:
    how = f"exit code {code}" if code is None or code >= 0 else f"killed by signal {-code}"
    if code == -signal.SIGKILL:
        how += ", perhaps because memory ran out"
    return f"rank {rank} ended unexpectedly ({how})"


def _child(me: Place, file: Path, port: int, device: torch.device, threads: int) -> None:
    """The program of a child."""
    threading.Thread(target=_end_with_parent, args=(file.parent,), daemon=True).start()
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # rank 0 gives the same ones
    store = TCPStore(_HERE, port, is_master=False)
    with _telling(me, store):
        with open(file, "rb") as opened:
            work = pickle.load(opened)
        _select(device, me)
        store.set(f"{_READY}{me.rank}", "")
        _connect(store, me, device, _CONNECT)
        work(Together())


def _end_with_parent(folder: Path) -> None:
    """End this process when its parent has ended without ending it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(CONNECTION_LOST)


# -- processes of a launcher ---------------------------------------------------------------------


def _join(me: Place, work: Callable[[Team], T], device: torch.device) -> T:
    """Do the work as a process of torchrun or srun."""
    _select(device, me)
    store = _launched_store(me)
    if me.rank:
        with _telling(me, store):
            _connect(store, me, device, _CONNECT_LAUNCHED)
            return work(Together())
    try:
        _connect(store, me, device, _CONNECT_LAUNCHED)
        return work(Together())
    except RankLostError as error:
        raise _told(store) or RankLostError(f"{error}; {_CONTINUES}") from None
    finally:
        _disconnect()


def _launched_store(me: Place) -> Store:
    """Where the processes of a launcher meet.

    Raises:
        InputError: nothing says where. RankLostError: the other processes are not there.
    """
    address = {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    job = "SLURM_JOB_ID" in os.environ and "SLURM_STEP_NODELIST" in os.environ
    if not (address or job):
        raise InputError("set MASTER_ADDR and MASTER_PORT to where rank 0 of all processes listens")
    try:
        if address:
            meeting = rendezvous("env://", me.rank, me.size, timeout=_CONNECT_LAUNCHED)
            return next(meeting)[0]
        host = first_host(os.environ["SLURM_STEP_NODELIST"])
        # Steps of all jobs of a machine have different ports, as far as there are enough.
        port = 20_000 + (31 * _number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")) % 10_000
        return TCPStore(host, port, me.size, me.rank == 0, _CONNECT_LAUNCHED)
    except RuntimeError as error:
        raise RankLostError(f"rank {me.rank} does not find the others: {error}") from error


def first_host(hosts: str) -> str:
    """The first of Slurm's list of machines: ``node07`` of ``node[07-09,12],gpu1``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    if first is None:
        raise InputError(f"SLURM_STEP_NODELIST = {hosts!r} is not a list of machines")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def _number(name: str) -> int:
    try:
        return int(os.environ.get(name, "0"))
    except ValueError:
        raise InputError(f"variable {name} = {os.environ[name]!r} is not a number") from None


# -- all processes -------------------------------------------------------------------------------


def _select(device: torch.device, me: Place) -> None:
    """Make a GPU that of this process.

    Raises:
        InputError: it has none, or the device cannot be divided.
    """
    if device.type == "cpu":
        return
    if device != torch.device("cuda"):
        raise InputError(f"option device = {device} is for one rank; several need cpu or cuda")
    count = torch.cuda.device_count()
    number = 0 if count == 1 else me.local  # some launchers show each process only its own
    if number >= count:
        raise InputError(f"rank {me.rank} needs GPU {number} of its machine, which has {count}")
    torch.cuda.set_device(number)


def _connect(store: Store, me: Place, device: torch.device, patience: timedelta) -> None:
    """Make the default group of torch.distributed.

    Raises:
        RankLostError: another rank does not come.
    """
    # Small tensors on the CPU decide the course, and must not wait for a GPU.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(
            backend, store=store, rank=me.rank, world_size=me.size, timeout=patience
        )
    except RuntimeError as error:
        raise RankLostError(f"rank {me.rank} does not find the others: {error}") from error
    c10d._set_pg_timeout(_PREPARATION)


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _telling(me: Place, store: Store) -> Iterator[None]:
    """Leave an error in this block for rank 0, and end the process; a bug also has a traceback."""
    try:
        yield
    except RankLostError as error:
        sys.exit(error.exit_code)  # rank 0 learns of it, too
    except Exception as error:
        store.set(_FAILURE, json.dumps(_in_words(me.rank, error)))
        if isinstance(error, Dpa3simError):
            sys.exit(error.exit_code)
        raise
    finally:
        _disconnect()


def _in_words(rank: int, error: Exception) -> tuple[str, str]:
    """The class of an error for the user, one of :mod:`dpa3sim.common.errors`, and its text."""
    if isinstance(error, Dpa3simError):
        known = (x.__name__ for x in type(error).__mro__ if x.__module__ == errors.__name__)
        return next(known), str(error)
    text = f"rank {rank} failed: {type(error).__name__}: {error}"
    return (OutOfMemoryError if memory_ran_out(error) else RankLostError).__name__, text


def _told(store: Store) -> Dpa3simError | None:
    """The error that another rank left."""
    if not store.check([_FAILURE]):
        return None
    name, text = json.loads(store.get(_FAILURE))
    return getattr(errors, name, RankLostError)(text)
