"""Servers that send anything: the client ends with its statistics, or one clear line."""

from __future__ import annotations

import atexit
import socket
import struct
import threading
from contextlib import closing, contextmanager, suppress
from functools import cache
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ase.build import molecule
from fuzz_support import long, refused_or_fine, short, slow
from hypothesis import strategies as st
from tests_support import DATA

from dpa3sim import Potential
from dpa3sim.clients.ipi import client as clients
from dpa3sim.clients.ipi import wire
from dpa3sim.clients.ipi.client import IPIClient, Statistics
from dpa3sim.clients.ipi.evaluator import BatchEvaluator

NATOMS = 3
HEADERS = ["STATUS", "INIT", "POSDATA", "GETFORCE", "EXIT", "READY", "", "status", "\0"]
PARAMETERS = [
    "",
    " ",
    "batch_size:2",
    "batch_size:0",
    "batch_size:-1",
    "batch_size:1000000000000",
    "batch_size:" + "9" * 5000,
    "batch_size:٣",
    "batch_size:999999",
    "dpa3sim_order:x",
    ":,:,:::",
    "\0" * 40,
    "a:b," * 1000,
]
counts = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([0, 1, 2, NATOMS, NATOMS, NATOMS, 4, -1, 10**8, 10**8 + 1, 2**31 - 1]),
)
numbers = st.one_of(
    st.floats(width=64),
    st.sampled_from([0.0, 1.0, -1.0, 10.0, 20.0, np.nan, np.inf, 1e308, 1e-308, 1e18, 1e6, -1e7]),
)


def header(name: str) -> bytes:
    return name.encode().ljust(12)[:12]


@st.composite
def messages(draw: Any) -> bytes:
    """One message, more or less as i-PI sends it."""
    kind = draw(st.sampled_from(["status", "init", "posdata", "posdata", "getforce", "any", "shm"]))
    if kind == "status":
        return header("STATUS")
    if kind == "getforce":
        return header("GETFORCE")
    if kind == "init":
        text = draw(st.sampled_from(PARAMETERS)).encode()
        length = draw(st.sampled_from([len(text), len(text), len(text), -1, 2**31 - 1]))
        return header("INIT") + struct.pack("<ii", draw(counts), length) + text
    if kind == "any":
        return header(draw(st.sampled_from(HEADERS))) + draw(st.binary(max_size=40))
    if kind == "shm":
        names = b"".join(sized(draw(st.sampled_from(segment_names()))) for _ in range(6))
        return header("POSDATA") + struct.pack("<i", draw(counts)) + names
    batch = draw(st.sampled_from([1, 1, 1, 2]))
    natoms = draw(st.sampled_from([NATOMS, NATOMS, NATOMS, 1, 4]))
    cells = np.tile(np.eye(3) * 20, (batch, 2, 1, 1))
    positions = np.arange(batch * natoms * 3).reshape(batch, natoms, 3) * 1.5
    for array in (cells, positions):
        if draw(st.integers(0, 3)) == 0:
            array.flat[draw(st.integers(0, array.size - 1))] = draw(numbers)
    count = struct.pack("<i", draw(st.one_of(st.just(natoms), st.just(natoms), counts)))
    parts = [cells.tobytes(), count] if batch == 1 else [count, cells.tobytes()]
    return header("POSDATA") + b"".join(parts) + positions.tobytes()


def sized(name: str) -> bytes:
    data = name.encode()
    return struct.pack("<i", len(data)) + data


@cache
def segments() -> list[shared_memory.SharedMemory]:
    """Shared memory for three atoms, and some that is too small; removed at the end."""
    made = [shared_memory.SharedMemory(create=True, size=size) for size in (72, 72, 72, 8, 72, 1)]
    for segment in made:
        # Else Python does it as well, and complains.
        resource_tracker.unregister(f"/{segment.name}", "shared_memory")
        atexit.register(Path("/dev/shm", segment.name).unlink)
    return made


@cache
def segment_names() -> list[str]:
    real = [segment.name for segment in segments()]
    return [*real * 2, "ipi_shm_none", "", "\0", "/", "a/b", "x" * 300, "../x"]


@st.composite
def streams(draw: Any) -> tuple[bytes, int]:
    """All that a server sends before it closes, and how many bytes it sends at a time."""
    data = b"".join(draw(st.lists(messages(), min_size=1, max_size=6)))
    if draw(st.booleans()):
        data = header("STATUS") + header("INIT") + struct.pack("<ii", 0, 0) + data
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=12)) + data[at + draw(st.integers(0, 30)) :]
    return data, draw(st.sampled_from([1, 7, 12, 100, 10**6]))


class Server:
    """The other end of a pair of sockets, which can be connected to once."""

    def __init__(self, data: bytes, chunk: int) -> None:
        self.ours, self.theirs = socket.socketpair()
        self._used = False
        self._data, self._chunk = data, chunk
        self._thread = threading.Thread(target=self._send, daemon=True)

    def connect(self) -> socket.socket:
        if self._used:
            raise ConnectionRefusedError(111, "refused")
        self._used = True
        self._thread.start()
        return self.ours

    def _send(self) -> None:
        reader = threading.Thread(target=self._drain, daemon=True)
        reader.start()
        with suppress(OSError):
            for start in range(0, len(self._data), self._chunk):
                self.theirs.sendall(self._data[start : start + self._chunk])
            self.theirs.shutdown(socket.SHUT_WR)
        reader.join()

    def _drain(self) -> None:
        with suppress(OSError):
            while self.theirs.recv(1 << 16):
                pass

    def close(self) -> None:
        self.theirs.close()
        self.ours.close()


@cache
def evaluator() -> BatchEvaluator:
    water = molecule("H2O", vacuum=5.0, pbc=True)
    made = BatchEvaluator(Potential(DATA / "models/dynamic/model.pt"), water)
    made.warm_up()
    return made


@contextmanager
def impatient() -> Any:
    with mock.patch.multiple(clients, AHEAD=0.001, PATIENCE=0.05, ENDING=0.01, RETRY=0.001):
        yield


def check_wire(example: tuple[bytes, int]) -> None:
    data, chunk = example
    evaluate = evaluator()
    with closing(Server(data, chunk)) as server, impatient():
        client = IPIClient(evaluate, NATOMS, server, order="z", wait=0.0)  # type: ignore[arg-type]
        with refused_or_fine():
            assert isinstance(client.run(), Statistics)


test_wire = short(streams(), 120)(check_wire)


@slow
def test_wire_for_long():
    long(check_wire, streams())


def test_messages_of_the_strategy_are_those_of_the_protocol():
    """Else nothing behind the first check of the client would be tried."""
    cells = np.tile(np.eye(3) * 20, (1, 2, 1, 1))
    positions = evaluator()._structure.positions[None] / 0.529
    posdata = header("POSDATA") + cells.tobytes() + struct.pack("<i", NATOMS) + positions.tobytes()
    init = header("INIT") + struct.pack("<ii", 0, 0)
    with closing(Server(init + posdata + header("GETFORCE") + header("EXIT"), 7)) as server:
        statistics = IPIClient(evaluator(), NATOMS, server, wait=0.0).run()  # type: ignore[arg-type]
    assert statistics.calls == 1
    assert statistics.ending == "exit"
    assert wire.pack_header("EXIT") == header("EXIT")
