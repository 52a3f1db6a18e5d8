"""Runs of the real i-PI, toy clients and fake servers; everything has a time limit."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
from ase.io import read, write
from toy_pes import pair

import dpa3sim
from dpa3sim.clients.ipi.client import IPIClient
from dpa3sim.clients.ipi.wire import Address, order_hash, pack_header

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "data"
INPUTS = DATA / "ipi"
# Other processes find the same dpa3sim and these files.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(dpa3sim.__file__).parent.parent), str(HERE)]),
    "OMP_NUM_THREADS": "1",
}
IPI = Path(sys.executable).with_name("i-pi")
SMALL_MODEL = DATA / "models/dynamic/model.pt"
WATER = INPUTS / "water8.extxyz"
NATOMS = 24
LIMIT = 60.0


def wait_until(condition, what, limit=LIMIT):
    """Poll until something is true."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {limit} s"
        time.sleep(0.01)


class Server:
    """One i-PI process in a folder of its own, killed at the end whatever happens.

    Args:
        folder: where it runs.
        name: beginning of the name of its input, such as ``t01``.
        steps: total steps, if other than in the input.
        edit: pairs of a regular expression and what replaces its matches, of which there must
            be some.
        water, frames: what stands in the place of water8.extxyz and frames.extxyz.
    """

    def __init__(self, folder, name, *, steps=None, edit=(), water=None, frames=None):
        (source,) = INPUTS.glob(f"{name}_*.xml")
        text = source.read_text()
        if steps is not None:
            total = r"<total_steps>.*?</total_steps>", f"<total_steps>{steps}</total_steps>"
            edit = [total, *edit]
        for pattern, replacement in edit:
            text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
            assert count, f"{pattern} is not in {source.name}"
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.prefix = f"/tmp/ipi_{uuid.uuid4().hex[:12]}_"
        found = re.findall(r"<address>\s*(\S+)\s*</address>", text)
        self.names = found
        for data, atoms in (("water8.extxyz", water), ("frames.extxyz", frames)):
            if atoms is None:
                shutil.copy(INPUTS / data, folder)
            else:
                write(folder / data, atoms, format="extxyz", columns=["symbols", "positions"])
        (folder / "input.xml").write_text(text)
        self.start()

    def start(self):
        self.log_file = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [str(IPI), "-S", self.prefix, "input.xml"],
            cwd=self.folder,
            env=ENVIRONMENT,
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
        )

    @property
    def address(self):
        return Address.unix(self.prefix + self.names[0])

    @property
    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    @property
    def out(self):
        return (self.folder / "sim.out").read_bytes()

    def columns(self, file="sim.out"):
        return np.atleast_2d(np.loadtxt(self.folder / file))

    def steps(self):
        """How many steps have been written so far."""
        file = self.folder / "sim.out"
        lines = file.read_text().splitlines() if file.exists() else []
        return sum(not line.startswith("#") for line in lines) - 1

    def wait(self, limit=LIMIT):
        """Exit code."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"i-PI did not end within {limit} s:\n{self.log[-2000:]}"
            ) from None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log_file.close()
        for name in self.names:
            with suppress(OSError):
                Path(self.prefix + name).unlink()


class Toy:
    """An evaluator that counts, and can be slow or broken on purpose."""

    def __init__(self, kk=0.02, delay=0.0, nan_at=None, extra=""):
        self.pair, self.delay, self.nan_at, self.extra = pair(kk), delay, nan_at, extra
        self.batches = []
        self.computing = threading.Event()

    def __call__(self, cells, positions):
        self.batches.append(len(positions))
        self.computing.set()
        time.sleep(self.delay)
        energies, forces, virials, extras = self.pair(cells, positions)
        if self.nan_at is not None and len(self.batches) == self.nan_at:
            forces[-1, 3, 1] = np.nan
        return energies, forces, virials, [self.extra] * len(extras)


class ClientThread(threading.Thread):
    """A client in this process."""

    def __init__(self, address, evaluate, natoms=NATOMS, **options):
        super().__init__(daemon=True)
        options = {"wait": 20.0} | options
        self.lines = []
        self.client = IPIClient(evaluate, natoms, address, say=self.lines.append, **options)
        self.error = None
        self.start()

    def run(self):
        try:
            self.client.run()
        except Exception as error:
            self.error = error

    def done(self, limit=LIMIT):
        """Statistics; errors are raised."""
        self.join(limit)
        assert not self.is_alive(), "the client did not end"
        if self.error is not None:
            raise self.error
        return self.client.statistics


def toy_process(address, *options):
    """A client in a process of its own, to be killed."""
    where = [address.path] if address.path else [address.host, str(address.port)]
    return subprocess.Popen(
        [sys.executable, str(HERE / "toy_client.py"), *options, *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


class FakeServer:
    """Speaks the server's side of the protocol byte by byte."""

    def __init__(self):
        self.path = f"/tmp/ipi_{uuid.uuid4().hex[:12]}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.listener.settimeout(LIMIT)
        self.peer = None
        self.chunks = None

    @property
    def address(self):
        return Address.unix(self.path)

    def accept(self):
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(LIMIT)

    def send(self, *parts):
        data = b"".join(pack_header(p) if isinstance(p, str) else p for p in parts)
        if self.chunks is None:
            self.peer.sendall(data)
            return
        while data:
            size = self.chunks()
            self.peer.sendall(data[:size])
            data = data[size:]

    def receive(self, count):
        data = b""
        while len(data) < count:
            part = self.peer.recv(count - len(data))
            assert part, f"the client closed after {data!r}"
            data += part
        return data

    def header(self):
        return self.receive(12).decode().rstrip()

    def status(self):
        self.send("STATUS")
        return self.header()

    def initialize(self, text=" "):
        assert self.status() == "NEEDINIT"
        self.send("INIT", np.int32(0).tobytes(), np.int32(len(text)).tobytes(), text.encode())
        assert self.status() == "READY"

    def close(self):
        for sock in (self.peer, self.listener):
            if sock is not None:
                sock.close()
        with suppress(OSError):
            Path(self.path).unlink()


def posdata(cells, positions, single=True):
    """The message POSDATA; cells have vectors as rows."""
    natoms = np.int32(positions.shape[1]).tobytes()
    pairs = b"".join(c.T.tobytes() + np.linalg.inv(c.T).tobytes() for c in cells)
    start = pairs + natoms if single else natoms + pairs
    return pack_header("POSDATA") + start + positions.tobytes()


def read_forces(server, batch, natoms):
    """What follows GETFORCE."""
    assert server.header() == "FORCEREADY"

    def floats(*shape):
        return np.frombuffer(server.receive(8 * int(np.prod(shape)))).reshape(shape)

    energies = floats(batch)
    assert np.frombuffer(server.receive(4), np.int32)[0] == natoms
    forces, virials = floats(batch, natoms, 3), floats(batch, 3, 3).swapaxes(1, 2)
    extras = []
    for _ in range(batch):
        length = int(np.frombuffer(server.receive(4), np.int32)[0])
        extras.append(server.receive(length).decode())
    return energies, forces, virials, extras


def water():
    return read(WATER)


def water_hash():
    return order_hash(water().numbers)
