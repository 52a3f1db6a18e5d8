"""The i-PI protocol as bytes on a socket, single and batched, with or without shared memory.

i-PI is the server, and the program that computes forces is the client. Headers are 12 ASCII bytes;
numbers are native int32 and float64 in atomic units; cells and virials are transposed, with lattice
vectors as columns (docs/ipi.md#on-the-wire). This module does not depend on a model, on torch or on
i-PI's own code.
"""

from __future__ import annotations

import hashlib
import math
import select
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker, shared_memory

import numpy as np

from dpa3sim.common.errors import ConnectionLostError, ProtocolError

HEADER_LENGTH = 12
STATUS, INIT, POSDATA, GETFORCE, EXIT = "STATUS", "INIT", "POSDATA", "GETFORCE", "EXIT"
NEEDINIT, READY, HAVEDATA, FORCEREADY = "NEEDINIT", "READY", "HAVEDATA", "FORCEREADY"
UNIX_PREFIX = "/tmp/ipi_"
# The parameter of an ffsocket that identifies the atoms for which i-PI was set up.
ORDER_PARAMETER = "dpa3sim_order"

# Larger numbers do not come from a valid message.
MAX_ATOMS, MAX_BATCH, MAX_TEXT = 10**7, 10**6, 10**8

Results = tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[str]]
"""Energies ``(m,)``, forces ``(m, n, 3)``, virials ``(m, 3, 3)`` and m extras, atomic units."""

Evaluate = Callable[[np.ndarray, np.ndarray], Results]
"""Cells ``(m, 3, 3)`` with vectors as rows, bohr, and positions ``(m, n, 3)``, bohr: results."""


def order_hash(numbers: Sequence[int] | np.ndarray) -> str:
    """Hash of atomic numbers in their order, for ``<parameters> { dpa3sim_order: ... }``.

    i-PI does not send the elements: this is the only way to detect another order of the atoms
    (docs/ipi.md#the-client). The leading letter keeps i-PI from reading it as a number.
    """
    text = ",".join(str(int(z)) for z in numbers)
    return "z" + hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_header(name: str) -> bytes:
    """A header as it is sent."""
    return name.ljust(HEADER_LENGTH).encode("ascii")


def parse_parameters(text: str) -> dict[str, str]:
    """Parameters of the INIT message, ``" k : v , k2 : v2 , batch_size:8"``, as text."""
    tokens = (token.partition(":") for token in text.split(","))
    return {key.strip(): value.strip() for key, colon, value in tokens if colon and key.strip()}


@dataclass(frozen=True)
class Address:
    """Where i-PI listens: a unix socket, or a host and a port.

    Attributes:
        path: path of the unix socket, None for inet.
        host, port: address for inet.
    """

    path: str | None = None
    host: str = "localhost"
    port: int = 31415

    @classmethod
    def unix(cls, name: str, prefix: str = UNIX_PREFIX) -> Address:
        """The socket that i-PI creates for ``<address> name </address>``, or a full path."""
        return cls(path=name if "/" in name else prefix + name)

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        """A connected blocking socket.

        Raises:
            OSError: no server listens there.
        """
        if self.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self.path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((self.host, self.port), timeout=5.0)
        sock.settimeout(None)
        # Messages are small, and each of them waits for its answer.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock


class Connection:
    """Exact reads and writes: a read returns when all bytes have arrived.

    Attributes:
        sock: the connected socket, blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._returned = b""

    def header(self) -> str | None:
        """The next header; None if the server has closed the connection before it.

        Raises:
            ConnectionLostError: it was reset, or closed in the middle of the header.
            ProtocolError: the header is not ASCII.
        """
        first = self._receive(HEADER_LENGTH)
        if not first:
            return None
        data = first + self.read(HEADER_LENGTH - len(first))
        try:
            return data.decode("ascii").rstrip(" \0")
        except UnicodeDecodeError:
            raise ProtocolError(f"not a header of the i-PI protocol: {data!r}") from None

    def read(self, count: int) -> bytes:
        """Read ``count`` bytes."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer))
        return bytes(buffer)

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``.

        Raises:
            ConnectionLostError: the connection ended too early.
        """
        done = min(len(self._returned), len(view))
        view[:done] = self._returned[:done]
        self._returned = self._returned[done:]
        while done < len(view):
            try:
                count = self.sock.recv_into(view[done:])
            except ConnectionError:
                count = 0
            if count == 0:
                raise ConnectionLostError("connection lost inside a message")
            done += count

    def read_array(self, array: np.ndarray) -> np.ndarray:
        """Fill a contiguous array."""
        if array.size:
            self.read_into(array.data.cast("B"))
        return array

    def read_int(self, what: str, largest: int) -> int:
        """Read an int32 that must be between 0 and ``largest``.

        Raises:
            ProtocolError: it is not.
        """
        value = int(self.read_array(np.empty(1, dtype=np.int32))[0])
        if not 0 <= value <= largest:
            raise ProtocolError(f"the i-PI server sent {value} as {what}")
        return value

    def read_text(self, what: str) -> str:
        """Read a length and so many bytes."""
        return self.read(self.read_int(f"length of {what}", MAX_TEXT)).decode("utf-8", "replace")

    def put_back(self, data: bytes) -> None:
        """Let the next read begin with ``data``."""
        self._returned = data + self._returned

    def readable(self, timeout: float, *others: int) -> bool:
        """Whether there are bytes to read, or the end, within ``timeout`` s.

        Waiting also ends when one of the file descriptors ``others`` can be read; a negative
        timeout waits forever.
        """
        if self._returned:
            return True
        poll = select.poll()
        for descriptor in (self.sock.fileno(), *others):
            poll.register(descriptor, select.POLLIN)
        found = poll.poll(None if timeout < 0 else 1e3 * timeout)
        return any(descriptor == self.sock.fileno() for descriptor, _ in found)

    def send(self, data: bytes) -> None:
        """Send everything in one call: i-PI gives up on messages that come in parts.

        Raises:
            ConnectionLostError: the server has closed the connection.
        """
        try:
            self.sock.sendall(data)
        except ConnectionError as error:
            raise ConnectionLostError(f"connection lost ({error.strerror})") from None

    def close(self, patience: float) -> bytes:
        """Announce the end to the server, read what it still sends, then close.

        A connection that is closed with unread bytes is reset, and a reset at the wrong moment
        kills the polling thread of i-PI 3.3, which then hangs forever. So wait until the server has
        closed it as well, at most ``patience`` s (docs/ipi.md#when-a-client-fails).

        Returns:
            The bytes that were still read.
        """
        tail = self._returned
        with suppress(OSError, ConnectionLostError):
            self.sock.shutdown(socket.SHUT_WR)
            while self.readable(patience):
                data = self._receive(65536)
                if not data:
                    break
                tail += data
        self.sock.close()
        return tail

    def _receive(self, count: int) -> bytes:
        """The available bytes, at most ``count``; empty at the end."""
        if self._returned:
            data, self._returned = self._returned[:count], self._returned[count:]
            return data
        try:
            return self.sock.recv(count)
        except ConnectionError as error:
            raise ConnectionLostError(f"connection lost ({error.strerror})") from None


class Exchange:
    """Reads positions and writes results in the layout of this connection.

    Shared memory needs no flag: the first POSDATA then contains names of segments instead of a
    cell, and these names begin with ``ipi_shm_`` (docs/ipi.md#shared-memory).

    Args:
        connection: the connection.
        batch: number of structures in a message, as announced in INIT.
    """

    def __init__(self, connection: Connection, batch: int) -> None:
        self._connection = connection
        self.batch = batch
        self._shared: _SharedMemory | None = None
        self._is_known = False
        self._cells = np.empty((batch, 2, 3, 3))
        self._positions = np.empty((batch, 0, 3))

    @property
    def transport(self) -> str:
        """How the numbers are transferred."""
        return "shared memory" if self._shared is not None else "socket"

    def read_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Read what follows the header POSDATA.

        Returns:
            Cells ``(batch, 3, 3)`` with vectors as rows, positions ``(batch, n, 3)``, bohr; valid
            until the next call.
        """
        if not self._is_known:
            self._detect()
        if self._shared is not None:
            natoms = self._connection.read_int("number of atoms", MAX_ATOMS)
            cells, positions = self._shared.positions()
            if natoms != positions.shape[1]:
                raise ProtocolError(
                    f"the i-PI server sent {natoms} as number of atoms, {positions.shape[1]} before"
                )
            return cells, positions
        connection = self._connection
        if self.batch > 1:
            natoms = connection.read_int("number of atoms", MAX_ATOMS)
            connection.read_array(self._cells)
        else:
            connection.read_array(self._cells)
            natoms = connection.read_int("number of atoms", MAX_ATOMS)
        if natoms * self.batch > MAX_ATOMS:
            raise ProtocolError(f"the i-PI server sent {self.batch} structures of {natoms} atoms")
        if self._positions.shape[1] != natoms:
            self._positions = np.empty((self.batch, natoms, 3))
        connection.read_array(self._positions)
        # The second of each pair is the inverse cell, about which servers disagree.
        return self._cells[:, 0].swapaxes(1, 2), self._positions

    def send_results(self, results: Results) -> None:
        """Answer GETFORCE, in one piece.

        Args:
            results: the results for ``batch`` structures.
        """
        energies, forces, virials, extras = results
        columns = np.ascontiguousarray(virials.swapaxes(1, 2))
        parts = [pack_header(FORCEREADY)]
        if self._shared is not None:
            self._shared.store(energies, forces, columns)
        else:
            parts.append(_bytes(energies))
            parts.append(np.int32(forces.shape[1]).tobytes())
            parts.append(_bytes(forces))
            parts.append(_bytes(columns))
        for text in extras:
            data = text.encode("utf-8")
            parts += [np.int32(len(data)).tobytes(), data]
        self._connection.send(b"".join(parts))

    def close(self) -> None:
        """Close the shared memory."""
        if self._shared is not None:
            self._shared.close()

    def _detect(self) -> None:
        start = self._connection.read(16)
        self._is_known = True
        if start[8:] != b"ipi_shm_":
            self._connection.put_back(start)
            return
        self._connection.put_back(start[4:])
        natoms = int(np.frombuffer(start[:4], dtype=np.int32)[0])
        if not 0 <= natoms <= MAX_ATOMS:
            raise ProtocolError(f"the i-PI server sent {natoms} as number of atoms")
        names = [self._connection.read_text("a name") for _ in _SharedMemory.KINDS]
        self._shared = _SharedMemory(names, self.batch, natoms)
        self._connection.put_back(start[:4])  # later messages consist of this number alone


class _SharedMemory:
    """Segments owned by i-PI, each for ``batch`` structures."""

    KINDS = ("pos", "h", "ih", "pot", "force", "vir")

    def __init__(self, names: Sequence[str], batch: int, natoms: int) -> None:
        atoms, cells = (batch, natoms, 3), (batch, 3, 3)
        shapes = (atoms, cells, cells, (batch,), atoms, cells)
        self._segments: list[shared_memory.SharedMemory] = []
        self._arrays: dict[str, np.ndarray] = {}
        for kind, name, shape in zip(self.KINDS, names, shapes, strict=True):
            segment = _attach(name)
            self._segments.append(segment)
            if segment.size < 8 * math.prod(shape):
                raise ProtocolError(
                    f"shared memory {name} has {segment.size} bytes, too few for {shape}"
                )
            self._arrays[kind] = np.ndarray(shape, dtype=np.float64, buffer=segment.buf)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        return self._arrays["h"].swapaxes(1, 2).copy(), self._arrays["pos"].copy()

    def store(self, energies: np.ndarray, forces: np.ndarray, virials: np.ndarray) -> None:
        self._arrays["pot"][:] = energies
        self._arrays["force"][:] = forces
        self._arrays["vir"][:] = virials

    def close(self) -> None:
        self._arrays.clear()  # a segment with views cannot be closed
        for segment in self._segments:
            with suppress(BufferError):
                segment.close()


def _attach(name: str) -> shared_memory.SharedMemory:
    """A segment that belongs to another process, which will remove it."""
    try:
        if sys.version_info >= (3, 13):
            return shared_memory.SharedMemory(name=name, track=False)
        segment = shared_memory.SharedMemory(name=name)
    except (OSError, ValueError) as error:
        raise ProtocolError(
            f"shared memory {name!r} cannot be opened ({error}): is i-PI running on this machine?"
        ) from None
    # Otherwise Python would remove it when this process ends.
    resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]
    return segment


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, dtype=np.float64).tobytes()
