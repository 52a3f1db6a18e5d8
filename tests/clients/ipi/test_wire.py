"""The protocol byte by byte, against servers that send what they like."""

import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from ipi_support import ENVIRONMENT, ClientThread, Toy, posdata, read_forces, water, water_hash
from toy_pes import pair

from dpa3sim.clients.ipi import wire
from dpa3sim.common.errors import (
    ConnectionLostError,
    InputError,
    NonFiniteError,
    ProtocolError,
    RefusedError,
)

RNG = np.random.default_rng(3)
CELLS = np.array([[[12.0, 0, 0], [1.5, 11.5, 0], [-0.7, 0.9, 12.3]]]) * [[[1.0]], [[1.02]], [[1.1]]]
POSITIONS = RNG.uniform(0, 12, (3, 24, 3))


@pytest.mark.parametrize("module", ["wire", "client", "serving"])
def test_transport_needs_neither_torch_nor_ipi(module):
    code = (
        f"import sys, dpa3sim.clients.ipi.{module}\n"
        "print([m for m in ('torch', 'ipi', 'ase') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.strip() == "[]"


def test_parameters_of_init():
    assert wire.parse_parameters(" ") == {}
    assert wire.parse_parameters("\0") == {}
    assert wire.parse_parameters("  batch_size:8") == {"batch_size": "8"}
    text = " head : water , dpa3sim_order : z12 , , batch_size:8"
    assert wire.parse_parameters(text) == {
        "head": "water",
        "dpa3sim_order": "z12",
        "batch_size": "8",
    }


def test_order_hash_depends_on_order_alone():
    assert wire.order_hash([8, 1, 1]) == wire.order_hash(np.array([8, 1, 1]))
    hashes = {wire.order_hash(z) for z in ([8, 1, 1], [1, 8, 1], [1, 1, 8], [8, 1], [81, 1])}
    assert len(hashes) == 5
    # i-PI turns parameters that look like numbers into numbers, and cuts at commas.
    assert all(h.isalnum() and h[0] == "z" for h in hashes)


@pytest.mark.parametrize(
    ("name", "path"), [("x", "/tmp/ipi_x"), ("/run/a/b", "/run/a/b"), ("./s", "./s")]
)
def test_address_is_a_name_or_a_path(name, path):
    assert wire.Address.unix(name).path == path


def test_single_structure(fake):
    toy = Toy()
    client = ClientThread(fake.address, toy)
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "STATUS")
    assert fake.header() == "HAVEDATA"
    fake.send("GETFORCE")
    e, f, w, x = read_forces(fake, 1, 24)
    expected = pair()(CELLS[:1], POSITIONS[:1])
    for got, wanted in zip((e, f, w), expected, strict=False):
        np.testing.assert_array_equal(got, wanted)
    assert x == [""]
    assert fake.status() == "READY"
    fake.send("EXIT")
    statistics = client.done()
    assert (statistics.calls, statistics.structures, statistics.ending) == (1, 1, "exit")


def test_batch_and_its_padding(fake):
    toy = Toy(extra='{"a": "Å"}')
    client = ClientThread(fake.address, toy)
    fake.accept()
    fake.initialize("  batch_size:5")
    index = [0, 1, 2, 2, 2]
    fake.send(posdata(CELLS[index], POSITIONS[index], single=False), "GETFORCE")
    e, f, w, x = read_forces(fake, 5, 24)
    expected = pair()(CELLS, POSITIONS)
    for got, wanted in zip((e, f, w), expected, strict=False):
        np.testing.assert_array_equal(got, wanted[index])
    assert x == ['{"a": "Å"}'] * 5
    # The same positions in another cell are no copy.
    positions = np.repeat(POSITIONS[:1], 5, axis=0)
    fake.send(posdata(CELLS[[0, 1, 2, 0, 0]], positions, single=False), "GETFORCE")
    e, *_ = read_forces(fake, 5, 24)
    np.testing.assert_array_equal(e, pair()(CELLS[[0, 1, 2, 0, 0]], positions)[0])
    fake.send("EXIT")
    statistics = client.done()
    assert toy.batches == [3, 4]
    assert (statistics.structures, statistics.copies, statistics.largest) == (7, 3, 4)


@pytest.mark.parametrize("chunks", ["one byte", "random"])
def test_slow_peer(fake, chunks):
    rng = np.random.default_rng(1)
    fake.chunks = (lambda: 1) if chunks == "one byte" else lambda: int(rng.integers(1, 40))
    client = ClientThread(fake.address, Toy())
    fake.accept()
    fake.initialize(" dpa3sim_order : zz , batch_size:3")
    for _ in range(2):
        fake.send(posdata(CELLS, POSITIONS, single=False), "GETFORCE")
        e, *_ = read_forces(fake, 3, 24)
        np.testing.assert_array_equal(e, pair()(CELLS, POSITIONS)[0])
    fake.send("EXIT")
    assert client.done().calls == 2


def test_large_messages(fake):
    n = 50_000
    extra = "x" * 2**20

    def evaluate(cells, positions):
        m = len(positions)
        return positions.sum((1, 2)), 2 * positions, cells * 1.0, [extra] * m

    client = ClientThread(fake.address, evaluate, n)
    fake.accept()
    fake.initialize("batch_size:2")
    positions = RNG.normal(size=(2, n, 3))
    sender = threading.Thread(
        target=fake.send, args=(posdata(CELLS[:2], positions, single=False), "GETFORCE")
    )
    sender.start()
    _, f, w, x = read_forces(fake, 2, n)
    sender.join()
    np.testing.assert_array_equal(f, 2 * positions)
    np.testing.assert_array_equal(w, CELLS[:2])
    assert x == [extra] * 2
    fake.send("EXIT")
    client.done()


def test_getforce_is_read_before_computing(fake):
    """Unread bytes of a client that dies would make i-PI 3.3 hang."""
    started, go_on = threading.Event(), threading.Event()

    def evaluate(cells, positions):
        started.set()
        assert go_on.wait(10)
        return pair()(cells, positions)

    client = ClientThread(fake.address, evaluate)
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE")
    assert started.wait(10)
    # What is left unread at the other end of a unix socket counts as unsent here.
    import array
    import fcntl
    import termios

    unsent = array.array("i", [0])
    fcntl.ioctl(fake.peer.fileno(), termios.TIOCOUTQ, unsent)
    assert unsent[0] == 0
    go_on.set()
    read_forces(fake, 1, 24)
    fake.send("EXIT")
    client.done()


def test_server_that_skips_init(fake):
    client = ClientThread(fake.address, Toy())
    fake.accept()
    assert fake.status() == "NEEDINIT"
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE")
    read_forces(fake, 1, 24)
    fake.peer.close()
    assert client.done().ending == "eof"


@pytest.mark.parametrize("length", [5, 12 + 100, 12 + 144 + 4 + 100])
def test_server_dies_inside_a_message(fake, length):
    client = ClientThread(fake.address, Toy())
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1])[:length])
    start = time.monotonic()
    fake.peer.close()
    with pytest.raises(ConnectionLostError, match="inside a message"):
        client.done()
    assert time.monotonic() - start < 1.0
    assert ConnectionLostError.exit_code == 6


def test_server_dies_while_computing(fake):
    toy = Toy(delay=0.3)
    client = ClientThread(fake.address, toy)
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE")
    assert toy.computing.wait(10)
    fake.peer.close()
    with pytest.raises(ConnectionLostError, match="connection lost"):
        client.done()


def test_reconnecting_serves_the_next_server_with_the_same_evaluator(fake):
    toy = Toy()
    client = ClientThread(fake.address, toy, reconnect=2)
    for _ in range(3):
        fake.accept()
        fake.initialize()
        fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE")
        read_forces(fake, 1, 24)
        fake.send(posdata(CELLS[:1], POSITIONS[:1])[:99])
        fake.peer.close()
    with pytest.raises(ConnectionLostError):
        client.done()
    assert client.client.statistics.connections == 3
    assert len(toy.batches) == 3
    assert sum("waiting for i-PI" in line for line in client.lines) == 2


def test_connections_that_a_dying_server_closes_are_no_servers(fake):
    """A killed i-PI may close a connection before its socket: what comes then is not lost."""
    client = ClientThread(fake.address, Toy(), reconnect=1)
    for silent in (2, 3):
        for _ in range(silent):
            fake.accept()
            fake.peer.close()
        fake.accept()
        fake.initialize()
        fake.peer.close()
    assert client.done().ending == "eof"
    assert client.client.statistics.connections == 2


def test_connections_that_are_only_closed_come_to_an_end(fake):
    client = ClientThread(fake.address, Toy(), reconnect=3, wait=0.3)
    accepted = 0
    while client.is_alive():
        with suppress(TimeoutError):
            fake.listener.settimeout(0.1)
            fake.accept()
            fake.peer.close()
            accepted += 1
    assert client.done().connections == 0
    assert accepted >= 3


def test_nobody_listens():
    client = ClientThread(wire.Address.unix("no_such_ipi_anywhere"), Toy(), wait=0.2)
    with pytest.raises(ConnectionLostError, match=r"no i-PI at /tmp/ipi_no_such.*0\.2 s"):
        client.done()
    client = ClientThread(wire.Address(host="no.such.host.invalid", port=1), Toy(), wait=0.2)
    with pytest.raises(InputError, match=r"no\.such\.host"):
        client.done()


def test_wrong_number_of_atoms_is_refused_after_reading_all(fake):
    client = ClientThread(fake.address, Toy())
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1, :20]), "GETFORCE")
    assert fake.peer.recv(100) == b""  # an orderly end, no reset
    fake.peer.close()
    with pytest.raises(RefusedError, match="sends 20 atoms, the structure has 24"):
        client.done()
    assert RefusedError.exit_code == 2


def test_wrong_order_is_refused(fake):
    client = ClientThread(fake.address, Toy(), order=water_hash())
    other = wire.order_hash(sorted(water().numbers))
    fake.accept()
    text = f" dpa3sim_order : {other} , "
    assert fake.status() == "NEEDINIT"
    fake.send("INIT", np.int32(0).tobytes(), np.int32(len(text)).tobytes(), text.encode())
    assert fake.peer.recv(100) == b""
    fake.peer.close()
    with pytest.raises(RefusedError) as caught:
        client.done()
    assert other in str(caught.value)
    assert water_hash() in str(caught.value)


@pytest.mark.parametrize("bead", [0, 2])
def test_nan_is_refused(fake, bead):
    def evaluate(cells, positions):
        e, f, w, x = pair()(cells, positions)
        w[bead, 0, 2] = np.nan
        return e, f, w, x

    client = ClientThread(fake.address, evaluate)
    fake.accept()
    fake.initialize("batch_size:3")
    fake.send(posdata(CELLS, POSITIONS, single=False), "GETFORCE")
    assert fake.peer.recv(100) == b""
    fake.peer.close()
    with pytest.raises(NonFiniteError, match=f"structure {bead + 1} of 3"):
        client.done()
    np.testing.assert_array_equal(client.client.failed[1], POSITIONS)
    assert NonFiniteError.exit_code == 4


def test_wrong_shapes_are_refused(fake):
    client = ClientThread(fake.address, lambda c, p: (p.sum(0), p, c, [""]))
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE")
    assert fake.peer.recv(100) == b""
    with pytest.raises(InputError, match="returned shapes"):
        client.done()


def init(parameters):
    data = parameters.encode()
    return wire.pack_header("INIT") + np.array([0, len(data)], np.int32).tobytes() + data


def segments(natoms, names):
    """What POSDATA brings where there is shared memory."""
    parts = [np.int32(natoms).tobytes()]
    for name in names:
        parts += [np.int32(len(name)).tobytes(), name.encode()]
    return b"".join(parts)


NATOMS_AND_CELLS = np.int32(2**31 - 1).tobytes() + bytes(100)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("HELLO", "unknown message 'HELLO'"),
        ("GETFORCE", "without having sent positions"),
        (b"\xff" * 12, "not a header"),
        (wire.pack_header("INIT") + np.array([0, -5], np.int32).tobytes(), "-5 as length of INIT"),
        (
            wire.pack_header("INIT") + np.array([0, 12], np.int32).tobytes() + b"batch_size:x",
            "batch_size 'x'",
        ),
        (init("batch_size:1000000000000"), "batch_size '1000000000000'"),
        (init("batch_size:" + "9" * 5000), "batch_size '99999"),
        (init("batch_size:٣"), "batch_size '٣'"),
        (
            init("batch_size:1000000") + wire.pack_header("POSDATA") + NATOMS_AND_CELLS,
            "structures of 2147483647 atoms|2147483647 as number of atoms",
        ),
        (
            wire.pack_header("POSDATA") + segments(-1, ["ipi_shm_x"] * 6),
            "-1 as number of atoms",
        ),
    ],
)
def test_other_protocols(fake, message, text):
    client = ClientThread(fake.address, Toy())
    fake.accept()
    fake.send(message)
    assert fake.peer.recv(100) == b""
    fake.peer.close()
    with pytest.raises(ProtocolError, match=text):
        client.done()


def test_stopped_while_idle(fake):
    client = ClientThread(fake.address, Toy())
    fake.accept()
    fake.initialize()
    client.client.stop()
    assert fake.peer.recv(100) == b""
    # What the server sends at that moment must not meet a reset.
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE")
    assert fake.peer.recv(100) == b""
    fake.peer.close()
    assert client.done().ending == "stopped"


@pytest.mark.parametrize("consolidated", [True, False])
def test_stopped_while_computing_answers_first(fake, consolidated):
    toy = Toy(delay=0.2)
    client = ClientThread(fake.address, toy)
    fake.accept()
    fake.initialize()
    fake.send(posdata(CELLS[:1], POSITIONS[:1]), "GETFORCE" if consolidated else "STATUS")
    assert toy.computing.wait(10)
    client.client.stop()
    if not consolidated:
        assert fake.header() == "HAVEDATA"
        fake.send("GETFORCE")
    read_forces(fake, 1, 24)
    fake.send("STATUS")
    assert fake.peer.recv(100) == b""
    fake.peer.close()
    assert client.done().ending == "stopped"


def test_stopped_while_waiting_for_a_server():
    client = ClientThread(wire.Address.unix("no_such_ipi_anywhere"), Toy(), wait=60.0)
    client.client.stop()
    assert client.done(5.0).ending == "stopped"


def test_verbose_tells_each_batch(fake):
    client = ClientThread(fake.address, Toy(), verbose=True)
    fake.accept()
    fake.initialize("batch_size:4")
    index = [0, 1, 1, 1]
    fake.send(posdata(CELLS[index], POSITIONS[index], single=False), "GETFORCE")
    read_forces(fake, 4, 24)
    fake.send("EXIT")
    assert "1 calls, 2 structures, 2 padded; mean batch 2.00" in str(client.done())
    assert any("2 structures of 4" in line and "(socket)" in line for line in client.lines)
