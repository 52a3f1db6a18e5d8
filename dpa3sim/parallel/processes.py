"""Starts processes that work together, or joins those of torchrun and srun, and ends them together.

On one machine, rank 0 is the calling process, with its signals and its terminal; the other ranks
are its children. They exchange data on the loopback interface, by ports that the system chooses, so
that nothing listens to the network. A failure ends all of them within seconds:

- A child is killed: a thread of rank 0 sees that, kills the other children and raises
  :class:`RankLostError` in the work of rank 0, whatever it is doing, or at its next work.
- A child raises an error: it leaves the error in the store in which the ranks meet, and ends. The
  same follows, and rank 0 raises the error of the child instead.
- Rank 0 raises an error that ends the work: it kills its children.
- Rank 0 is killed: a pipe that only it can write to ends, and with it a thread of each child, which
  ends the child.
- SIGINT and SIGTERM are blocked in the children. Rank 0 decides what they mean.

torchrun, and srun with ``--kill-on-bad-exit``, watch their processes themselves; there, the first
rank reports the error of all. The exchange between GPUs, by NCCL, has not run on GPUs yet.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from dpa3sim.common import errors
from dpa3sim.common.errors import (
    CONNECTION_LOST,
    DONE,
    Dpa3simError,
    InputError,
    NoAnswerError,
    RankLostError,
    class_for_others,
)

T = TypeVar("T")

# How long ranks wait for each other to connect; a launcher may start them at different times.
CONNECT, CONNECT_LAUNCHED = timedelta(minutes=1), timedelta(minutes=10)
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


class Place(NamedTuple):
    """Which process this is.

    Attributes:
        rank, size: its number, and of how many. local: its number on its machine.
    """

    rank: int
    size: int
    local: int


class Meeting(NamedTuple):
    """How a process finds the others.

    Attributes:
        place: which process this is.
        store: in which they meet.
        device: where they compute.
        patience: how long they wait for each other to connect.
    """

    place: Place
    store: Store
    device: torch.device
    patience: timedelta


Work = Callable[[Meeting], T]


class Crew(Protocol):
    """The other processes, as rank 0 sees them.

    Attributes:
        meeting: of rank 0.
    """

    meeting: Meeting

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work together with the others within, unless one of them is gone.

        Raises:
            RankLostError: another rank ended unexpectedly, or failed with an error that is a bug.
            Dpa3simError: one that another rank raised.
        """

    def close(self, patience: float = 0.0) -> None:
        """End the others, those of this machine at the latest after so many seconds."""


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


def run(ranks: int, work: Work[T], device: torch.device, advice: str = "") -> T:
    """Do the same work in several processes at once.

    Args:
        ranks: how many of this machine, at least 2; within torchrun or srun, which have decided
            it, 1.
        work: what each of them does; it is pickled for the children.
        device: the CPU, or ``cuda``, of which each process of a machine takes another one.
        advice: what to do when a process is lost.

    Returns:
        What the work returns, in rank 0 and in all processes of torchrun and srun.

    Raises:
        InputError: there are not as many processes or GPUs.
        RankLostError, Dpa3simError: see :meth:`Crew.working`.
        SystemExit: within torchrun and srun, where rank 0 raises the error.
    """
    me = place()
    if me is None:
        with threads_shared(ranks):
            return _together(Children(ranks, work, device, advice), work)
    if ranks not in (1, me.size):
        raise InputError(f"option ranks = {ranks}, but the launcher started {me.size}: omit it")
    meeting = _meet_launched(me, device)
    if me.rank:
        with _telling(me, meeting.store):
            return work(meeting)
    return _together(Launched(meeting, advice), work)


def _together(crew: Crew, work: Work[T]) -> T:
    patience = 0.0
    try:
        with crew.working():
            result = work(crew.meeting)
        patience = _END
        return result
    finally:
        crew.close(patience)


def join(work: Work[None], device: torch.device) -> Crew:
    """The processes of torchrun or srun, in rank 0; the others do the work and end.

    Raises:
        InputError: this process is not one of several. SystemExit: after the work.
    """
    me = place()
    if me is None:
        raise InputError("option ranks = env is for several processes of torchrun or srun")
    meeting = _meet_launched(me, device)
    if not me.rank:
        return Launched(meeting)
    with _telling(me, meeting.store):
        work(meeting)
    sys.exit(DONE)


# -- processes of this machine -------------------------------------------------------------------


class Children:
    """Processes that this one starts.

    Args:
        ranks: how many there are, with this one. work: what each of the others does.
        device: where they compute. advice: what to do when one is lost.

    Raises:
        RankLostError, Dpa3simError: a child cannot begin.
    """

    def __init__(self, ranks: int, work: Work[T], device: torch.device, advice: str = "") -> None:
        if device.type == "cuda" and ranks > torch.cuda.device_count():
            raise InputError(f"option ranks = {ranks}: there are {torch.cuda.device_count()} GPUs")
        me = Place(0, ranks, 0)
        select(device, me)
        with on_loopback():
            store = local_store()
        self.meeting = Meeting(me, store, device, CONNECT)
        self._advice = advice
        self._watch = _Watch()
        try:
            with self.working(), _on_file(work) as file:
                self._watch.start(_commands(ranks, file, store.port, device))
                while not store.check([f"{_READY}{rank}" for rank in range(1, ranks)]):
                    time.sleep(0.02)
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> Sequence[subprocess.Popen[bytes]]:
        """The children, rank 1 first."""
        return self._watch.children

    @contextmanager
    def working(self) -> Iterator[None]:
        """See :class:`Crew`."""
        try:
            self._watch.begin()
            try:
                with on_loopback():
                    yield
            finally:
                self._watch.release()
        except RankLostError as error:
            told = self._watch.reason(self.meeting.store, error)
            if type(told) in (RankLostError, NoAnswerError) and self._advice:
                told = RankLostError(f"{told}; {self._advice}")
            raise told from None

    def close(self, patience: float = 0.0) -> None:
        """See :class:`Crew`."""
        self._watch.end(patience)


def _commands(ranks: int, file: Path, port: int, device: torch.device) -> list[list[str]]:
    words = [str(file), str(port), str(device), str(torch.get_num_threads()), str(ranks)]
    # Not from the folder that this process is in: PYTHONPATH has what is imported here.
    start = [sys.executable, "-P", "-m", "dpa3sim.parallel"]
    return [[*start, *words, str(rank)] for rank in range(1, ranks)]


@contextmanager
def _on_file(work: object) -> Iterator[Path]:
    """The work in a private file, which all children read at once, however large it is."""
    with tempfile.TemporaryDirectory(prefix="dpa3sim-") as folder:
        path = Path(folder) / "work"
        with open(path, "wb") as file:
            pickle.dump(work, file, pickle.HIGHEST_PROTOCOL)
        yield path


@contextmanager
def on_loopback() -> Iterator[None]:
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


def local_store() -> TCPStore:
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
def threads_shared(ranks: int) -> Iterator[None]:
    """Divide the threads among the ranks; the children begin with as many as this process has."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // ranks))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Watch:
    """Notices the end of a child, and ends the work of the thread that works then.

    Attributes:
        children: the processes.
    """

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._caller: int | None = None
        self._ending = False
        self._lock = threading.Lock()
        self._decided = threading.Event()
        self._lost: str | None = None

    def start(self, commands: Sequence[Sequence[str]]) -> None:
        """Start the children. They have a pipe from here, which ends with this process."""
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        environment = os.environ | {"PYTHONPATH": path}
        # Children inherit what is blocked, and so are safe from their first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for command in commands:
                child = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
                )
                self.children.append(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for child in self.children:
                self._threads.append(threading.Thread(target=self._wait, args=(child,)))
                self._threads[-1].daemon = True
                self._threads[-1].start()

    def begin(self) -> None:
        """Interrupt this thread when a child ends, from here on.

        Raises:
            RankLostError: one has ended already.
        """
        with self._lock:
            if self._decided.is_set() or self._ending:
                raise RankLostError(self._lost or "the other ranks have ended")
            self._caller = threading.get_ident()

    def release(self) -> None:
        """Do not interrupt the caller from here on."""
        with self._lock:
            if self._caller is not None:
                _raise_in(self._caller, None)
            self._caller = None

    def reason(self, store: Store, error: RankLostError) -> Dpa3simError:
        """Why a rank is lost: what a child said, how it ended, or else what was noticed here."""
        if not isinstance(error, NoAnswerError) and not self._ending:
            self._decided.wait(_END)
        told = _told(store)
        if told is None and self._lost is not None:
            return RankLostError(self._lost)
        return told or error

    def end(self, patience: float) -> None:
        """Kill the children that do not end by themselves within some seconds."""
        with self._lock:
            self._ending = True
        stop = time.monotonic() + patience
        try:
            for thread in self._threads:
                thread.join(max(0.0, stop - time.monotonic()))
        finally:
            for child in self.children:
                child.kill()
        for child, thread in zip(self.children, self._threads, strict=False):
            thread.join()
            assert child.stdin is not None
            child.stdin.close()

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        if child.wait() != DONE and not self._decided.is_set():
            self._lose(child)

    def _lose(self, child: subprocess.Popen[bytes]) -> None:
        """End everything, because a child ended that should not."""
        if child.returncode == CONNECTION_LOST:
            # It only found that another one is gone, which comes to light in a moment.
            time.sleep(_FOLLOW)
            innocent = (None, DONE, CONNECTION_LOST)
            guilty = [x for x in self.children if x.returncode not in innocent]
            child = guilty[0] if guilty else child
        with self._lock:
            if self._ending or self._decided.is_set():
                return
            self._lost = _ended(self.children.index(child) + 1, child.returncode)
            self._decided.set()
            for other in self.children:
                other.kill()
            if self._caller is not None:
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


def main(arguments: Sequence[str]) -> None:
    """The program of a child."""
    file, port, device, threads, size, rank = arguments
    path = Path(file)
    threading.Thread(target=_end_with_parent, args=(path.parent,), daemon=True).start()
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")  # rank 0 gives the same ones
    me = Place(int(rank), int(size), int(rank))
    store = TCPStore(_HERE, int(port), is_master=False)
    with _telling(me, store):
        with open(path, "rb") as opened:
            work = pickle.load(opened)
        select(torch.device(device), me)
        store.set(f"{_READY}{me.rank}", "")
        work(Meeting(me, store, torch.device(device), CONNECT))


def _end_with_parent(folder: Path) -> None:
    """End this process when its parent has ended without ending it."""
    os.read(0, 1)  # the pipe from the parent, which never writes to it
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(CONNECTION_LOST)


# -- processes of a launcher ---------------------------------------------------------------------


class Launched:
    """The processes of torchrun or srun, in the first of them.

    Args:
        meeting: of the first. advice: what to do when one is lost.
    """

    def __init__(self, meeting: Meeting, advice: str = "") -> None:
        self.meeting = meeting
        self._advice = advice

    @contextmanager
    def working(self) -> Iterator[None]:
        """See :class:`Crew`."""
        try:
            yield
        except RankLostError as error:
            lost = f"{error}; {self._advice}" if self._advice else str(error)
            raise _told(self.meeting.store) or RankLostError(lost) from None

    def close(self, patience: float = 0.0) -> None:
        """The launcher ends the others."""


def _meet_launched(me: Place, device: torch.device) -> Meeting:
    select(device, me)
    return Meeting(me, _launched_store(me), device, CONNECT_LAUNCHED)


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
            meeting = rendezvous("env://", me.rank, me.size, timeout=CONNECT_LAUNCHED)
            return next(meeting)[0]
        host = first_host(os.environ["SLURM_STEP_NODELIST"])
        # Steps of all jobs of a machine have different ports, as far as there are enough.
        port = 20_000 + (31 * _number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")) % 10_000
        return TCPStore(host, port, me.size, me.rank == 0, CONNECT_LAUNCHED)
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


def select(device: torch.device, me: Place) -> None:
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


@contextmanager
def _telling(me: Place, store: Store) -> Iterator[None]:
    """Leave an error in this block for rank 0, and end the process; a bug also has a traceback."""
    try:
        yield
    except RankLostError as error:
        sys.exit(error.exit_code)  # rank 0 learns of it, too
    except Exception as error:
        fail(store, me.rank, error)
        if isinstance(error, Dpa3simError):
            sys.exit(error.exit_code)
        raise


def fail(store: Store, rank: int, error: BaseException) -> None:
    """Leave an error of a rank for rank 0."""
    store.set(_FAILURE, json.dumps(_in_words(rank, error)))


def _in_words(rank: int, error: BaseException) -> tuple[str, str]:
    """The class of an error for the user, one of :mod:`dpa3sim.common.errors`, and its text."""
    name = class_for_others(error).__name__
    if isinstance(error, Dpa3simError):
        return name, str(error)
    return name, f"rank {rank} failed: {type(error).__name__}: {error}"


def _told(store: Store) -> Dpa3simError | None:
    """The error that another rank left."""
    if not store.check([_FAILURE]):
        return None
    name, text = json.loads(store.get(_FAILURE))
    return getattr(errors, name, RankLostError)(text)
