"""The client of i-PI's sockets: it receives positions and sends forces until i-PI ends.

This is only the transport. Any function of cells and positions can compute the forces
(:data:`dpa3sim.clients.ipi.wire.Evaluate`). It must be warmed up before the client connects,
because a client that is connected but silent blocks all others of the same i-PI
(docs/ipi.md#what-i-pi-expects-of-a-client).
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dpa3sim.clients.ipi import wire
from dpa3sim.clients.ipi.wire import Address, Connection, Evaluate, Exchange, Results
from dpa3sim.common.errors import (
    ConnectionLostError,
    Dpa3simError,
    InputError,
    NonFiniteError,
    ProtocolError,
    RefusedError,
)

# How long to wait for the header that i-PI sends together with positions, s.
AHEAD = 0.05
# Time between attempts to connect, s, and errors that may vanish while i-PI starts.
RETRY = 0.05
NOT_YET = {errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ECONNRESET, errno.ETIMEDOUT}
# How long i-PI may take to close a connection that we have ended, s.
PATIENCE = 1.0
# An i-PI that ends has closed its socket after this time, s; one that dropped us still listens.
ENDING = 1.0

Ending = Literal["exit", "eof", "stopped"]


@dataclass
class Statistics:
    """What a client has done.

    Attributes:
        calls: number of batches; structures: number of structures in them; copies: bitwise copies
            with which i-PI filled batches (and equal beads), which were not evaluated again.
        connections: number of servers that sent anything.
        waiting, computing, exchanging: seconds spent until i-PI asked, in the model, and on
            reading and writing messages.
        largest: structures of the largest batch.
        ending: why it ended: i-PI sent EXIT, it closed the connection, or the client was stopped.
    """

    calls: int = 0
    structures: int = 0
    copies: int = 0
    connections: int = 0
    waiting: float = 0.0
    computing: float = 0.0
    exchanging: float = 0.0
    largest: int = 0
    ending: Ending = "exit"

    def __str__(self) -> str:
        calls = max(self.calls, 1)
        total = max(self.waiting + self.computing + self.exchanging, 1e-9)
        shares = ", ".join(
            f"{name} {seconds:.2f} s ({100 * seconds / total:.1f} %)"
            for name, seconds in (
                ("waiting for i-PI", self.waiting),
                ("computing", self.computing),
                ("messages", self.exchanging),
            )
        )
        return (
            f"{self.calls} calls, {self.structures} structures, {self.copies} padded; mean batch "
            f"{self.structures / calls:.2f}, {1e3 * self.computing / calls:.2f} ms/call; {shares}"
        )


@dataclass
class _Session:
    """State of one connection."""

    connection: Connection
    exchange: Exchange | None = None
    results: Results | None = None
    ahead: list[str] = field(default_factory=list)

    def close(self, patience: float = 0.0) -> bytes:
        if self.exchange is not None:
            self.exchange.close()
        return self.connection.close(patience)


class IPIClient:
    """A client that serves one i-PI after the other with the same evaluator.

    The next header is read before computing, so that no unread bytes are left if this process
    dies: i-PI 3.3 would hang forever instead of giving the work to another client.

    Args:
        evaluate: see :data:`dpa3sim.clients.ipi.wire.Evaluate`; must be warmed up.
        natoms: number of atoms of its structure.
        address: where i-PI listens.
        order: :func:`dpa3sim.clients.ipi.wire.order_hash` of the structure; compared with the
            hash in i-PI's input, if there is one.
        wait: time to wait until i-PI listens, s.
        reconnect: how often to wait for another i-PI after a lost connection. A connection that
            ends without the message EXIT then counts as lost.
        say: receives lines for the user.
        verbose: whether to print a line for each batch.

    Attributes:
        statistics: the work done so far.
        failed: cells ``(m, 3, 3)`` and positions ``(m, n, 3)``, bohr, of the batch that could not
            be evaluated.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        natoms: int,
        address: Address,
        *,
        order: str | None = None,
        wait: float = 60.0,
        reconnect: int = 0,
        say: Callable[[str], None] = lambda line: None,
        verbose: bool = False,
    ) -> None:
        self._evaluate = evaluate
        self._natoms = natoms
        self._address = address
        self._order = order
        self._wait = wait
        self._reconnect = reconnect
        self._say = say
        self._verbose = verbose
        self.statistics = Statistics()
        self.failed: tuple[np.ndarray, np.ndarray] | None = None
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()

    def __del__(self) -> None:
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)

    def stop(self) -> None:
        """End after the current batch; for signal handlers and other threads."""
        if not self._stopping:
            self._stopping = True
            os.write(self._wake_write, b"x")

    def run(self) -> Statistics:
        """Serve until i-PI ends, the connection is lost for good, or :meth:`stop`.

        Raises:
            RefusedError: the atoms are not ours, or the peer does not speak the i-PI protocol.
            ConnectionLostError: i-PI does not listen, it died, or it dropped us.
            NonFiniteError: the model returned NaN; others as the evaluator raises them.
        """
        chances = self._reconnect
        end = time.monotonic() + self._wait
        sock: socket.socket | None = None
        while True:
            served = self.statistics.connections
            if sock is None:
                sock = self._connect(end)
            if sock is None:
                self.statistics.ending = "stopped"
                return self.statistics
            lost: ConnectionLostError | None = None
            try:
                self.statistics.ending = self._serve(sock)
                if self.statistics.ending != "eof":
                    return self.statistics
                sock = None
            except _DroppedError as error:
                sock, lost = error.probe, ConnectionLostError(str(error))
            except ConnectionLostError as error:
                sock, lost = None, error
            silent = self.statistics.connections == served
            if silent and self._reconnect and time.monotonic() < end:
                # A dying i-PI may close a connection before it closes the socket that listens.
                self._pause()
                continue
            if chances == 0:
                if sock is not None:
                    sock.close()
                if lost is not None:
                    raise lost
                return self.statistics
            chances -= 1
            end = time.monotonic() + self._wait
            reason = lost or "i-PI closed the connection"
            self._say(f"{reason}; waiting for i-PI at {self._address}")

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self, end: float) -> socket.socket | None:
        """A connection, attempted until ``end``; None if stopped before it succeeds."""
        while not self._stopping:
            try:
                return self._address.connect()
            except socket.gaierror as error:
                raise InputError(f"host {self._address.host!r}: {error.strerror}") from None
            except OSError as error:
                if error.errno not in NOT_YET and not isinstance(error, TimeoutError):
                    raise InputError(f"{self._address}: {error.strerror}") from None
                if time.monotonic() >= end:
                    raise ConnectionLostError(
                        f"no i-PI at {self._address} within {self._wait:g} s ({error.strerror})"
                    ) from None
            self._pause()
        return None

    def _pause(self) -> None:
        select.select([self._wake_read], [], [], RETRY)

    # -- one connection --------------------------------------------------------------------------

    def _serve(self, sock: socket.socket) -> Ending:
        session = _Session(Connection(sock))
        patience, silent = PATIENCE, True
        try:
            while True:
                header = self._next_header(session)
                if header is not None and silent:
                    self.statistics.connections += 1
                    silent = False
                if header == wire.EXIT:
                    patience = 0.0
                    return "exit"
                if header is None:
                    return "stopped" if self._stopping else "eof"
                self._handle(session, header)
        except _DroppedError:
            patience = 0.0
            raise
        except ConnectionLostError:
            patience = 0.0
            if session.close().rstrip().endswith(wire.EXIT.encode()):
                return self._told_to_exit()
            raise
        finally:
            session.close(patience)

    def _next_header(self, session: _Session) -> str | None:
        """The next header; None at the end of the connection, or when stopped."""
        start = time.monotonic()
        if session.ahead:
            return session.ahead.pop(0)
        if self._stopping and session.results is None:
            # Read what i-PI sends after a reply, so that the connection ends in order.
            if session.connection.readable(PATIENCE):
                header = session.connection.header()
                return wire.EXIT if header == wire.EXIT else None
            return None
        wake = () if self._stopping else (self._wake_read,)
        if not session.connection.readable(-1.0, *wake):
            return None
        header = session.connection.header()
        self.statistics.waiting += time.monotonic() - start
        return header

    def _handle(self, session: _Session, header: str) -> None:
        connection = session.connection
        if header == wire.STATUS:
            ready = wire.HAVEDATA if session.results is not None else wire.READY
            connection.send(wire.pack_header(wire.NEEDINIT if session.exchange is None else ready))
        elif header == wire.INIT:
            session.exchange = self._initialize(connection)
        elif header == wire.POSDATA:
            if session.exchange is None:  # a server that skips INIT sends single structures
                session.exchange = Exchange(connection, 1)
            self._compute(session, session.exchange)
        elif header == wire.GETFORCE:
            if session.exchange is None or session.results is None:
                raise ProtocolError("i-PI asks for forces without having sent positions")
            start = time.monotonic()
            session.exchange.send_results(session.results)
            self.statistics.exchanging += time.monotonic() - start
            session.results = None
        else:
            raise ProtocolError(f"unknown message {header!r} from {self._address}")

    def _initialize(self, connection: Connection) -> Exchange:
        connection.read(4)  # which bead was the first to be asked for does not matter
        parameters = wire.parse_parameters(connection.read_text("INIT"))
        theirs = parameters.get(wire.ORDER_PARAMETER)
        if self._order is not None and theirs not in (None, self._order):
            raise RefusedError(
                f"the elements or their order differ: {wire.ORDER_PARAMETER} is {theirs} in "
                f"i-PI's input and {self._order} for the structure of the client"
            )
        text = parameters.get("batch_size", "1")
        if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII) or int(text) > wire.MAX_BATCH:
            raise ProtocolError(
                f"batch_size {text!r} from i-PI is not a number from 1 to {wire.MAX_BATCH}"
            )
        return Exchange(connection, int(text))

    def _compute(self, session: _Session, exchange: Exchange) -> None:
        """Read positions and evaluate them."""
        connection, statistics = session.connection, self.statistics
        start = time.monotonic()
        cells, positions = exchange.read_positions()
        # Read GETFORCE or STATUS from the socket before computing.
        if connection.readable(AHEAD):
            header = connection.header()
            if header is None:
                raise ConnectionLostError("connection lost: i-PI closed it after sending positions")
            session.ahead.append(header)
            if header == wire.EXIT:
                return
        if positions.shape[1] != self._natoms:
            raise RefusedError(
                f"i-PI sends {positions.shape[1]} atoms, the structure has {self._natoms}"
            )
        different = _without_copies(cells, positions)
        statistics.exchanging += time.monotonic() - start
        start = time.monotonic()
        results = self._checked(cells[:different], positions[:different])
        duration = time.monotonic() - start
        statistics.computing += duration
        statistics.calls += 1
        statistics.structures += different
        statistics.copies += exchange.batch - different
        statistics.largest = max(statistics.largest, different)
        start = time.monotonic()
        session.results = _repeated(results, exchange.batch)
        if self._verbose:
            self._say(
                f"call {statistics.calls}: {different} structures of {exchange.batch}, "
                f"{1e3 * duration:.2f} ms ({exchange.transport})"
            )
        # Meanwhile, i-PI may have ended or dropped us.
        if connection.readable(0.0):
            header = connection.header()
            if header is None:
                raise ConnectionLostError("connection lost: i-PI closed it during the computation")
            session.ahead.append(header)
            if header == wire.EXIT:
                self._told_to_exit()
                session.ahead = [header]
        statistics.exchanging += time.monotonic() - start

    def _checked(self, cells: np.ndarray, positions: np.ndarray) -> Results:
        """Results that can be sent to i-PI: they have the right shapes and are finite."""
        try:
            results = self._evaluate(cells, positions)
        except Dpa3simError:
            self.failed = cells.copy(), positions.copy()
            raise
        energies, forces, virials, extras = results
        n = len(positions)
        shapes = energies.shape, forces.shape, virials.shape, (len(extras),)
        expected = (n,), positions.shape, (n, 3, 3), (n,)
        if shapes != expected:
            raise InputError(f"the evaluator returned shapes {shapes}, not {expected}")
        finite = np.isfinite(energies)
        for array in (forces, virials):
            finite &= np.isfinite(array).reshape(n, -1).all(axis=1)
        if not finite.all():
            self.failed = cells.copy(), positions.copy()
            bad = ", ".join(str(k + 1) for k in np.flatnonzero(~finite))
            raise NonFiniteError(f"the model returned NaN or infinity for structure {bad} of {n}")
        return results

    def _told_to_exit(self) -> Ending:
        """Whether an EXIT during the computation was the end of i-PI, or only of this client.

        Raises:
            _DroppedError: i-PI still listens.
        """
        if select.select([self._wake_read], [], [], ENDING)[0]:
            return "stopped"
        try:
            probe = self._address.connect()
        except OSError:
            return "exit"
        raise _DroppedError(probe)


class _DroppedError(Exception):
    """i-PI dropped this client but continues; ``probe`` is a new connection to it."""

    def __init__(self, probe: socket.socket) -> None:
        super().__init__("dropped by i-PI (timeout?): it closed this connection but still listens")
        self.probe = probe


def _without_copies(cells: np.ndarray, positions: np.ndarray) -> int:
    """The number of structures without the copies of the last one that fill a batch."""
    count = len(positions)
    while count > 1 and (
        positions[count - 1].tobytes() == positions[count - 2].tobytes()
        and cells[count - 1].tobytes() == cells[count - 2].tobytes()
    ):
        count -= 1
    return count


def _repeated(results: Results, batch: int) -> Results:
    """The results, with the last ones repeated to fill a batch."""
    energies, forces, virials, extras = results
    index = np.minimum(np.arange(batch), len(energies) - 1)
    return energies[index], forces[index], virials[index], [extras[k] for k in index]
