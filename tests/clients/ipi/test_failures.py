"""Failures, with the real i-PI: nothing hangs or is corrupted."""

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ipi_support import ClientThread, Toy, toy_process, wait_until, water, water_hash

from dpa3sim.clients.ipi.wire import Address, order_hash
from dpa3sim.common.errors import ConnectionLostError, NonFiniteError, RefusedError

EVERY_STEP = ("stride='2'", "stride='1'")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Six steps of one bead."""
    from ipi_support import Server

    server = Server(tmp_path_factory.mktemp("t01"), "t01", steps=6, edit=[EVERY_STEP])
    try:
        client = ClientThread(server.address, Toy())
        assert server.wait() == 0
        client.done()
        return server.out
    finally:
        server.kill()


def kill_during_computation(process, number):
    """kill -9 in the middle of the ``number``-th evaluation."""
    for _ in range(number):
        assert process.stdout.readline() == "computing\n"
    time.sleep(0.2)
    process.kill()
    process.wait()


@pytest.mark.parametrize("transport", ["unix", "inet", "shm"])
def test_client_killed_and_started_again(ipi, processes, undisturbed, transport):
    edit, address = [EVERY_STEP], None
    if transport == "inet":
        from test_transports import free_port

        address = Address(host="localhost", port=free_port())
        edit.append(("31417", str(address.port)))
    if transport == "shm":
        edit.append(("mode='unix'", "mode='shm'"))
    server = ipi("t08" if transport == "inet" else "t01", steps=6, edit=edit)
    process = toy_process(address or server.address, "--delay", "0.6")
    processes.append(process)
    kill_during_computation(process, 3)
    client = ClientThread(address or server.address, Toy())
    assert server.wait() == 0
    client.done()
    assert "died" in server.log
    assert server.out == undisturbed


@pytest.mark.slow
def test_without_reading_ahead_i_pi_would_hang(ipi, processes):
    """Why the next header is read before computing; if this fails, i-PI has been mended."""
    server = ipi("t01", steps=6, edit=[EVERY_STEP])
    process = toy_process(server.address, "--delay", "1.0", "--blind")
    processes.append(process)
    kill_during_computation(process, 3)
    client = ClientThread(server.address, Toy())
    time.sleep(10.0)
    assert server.process.poll() is None
    client.client.stop()
    client.done()


@pytest.mark.parametrize("refused", ["number", "order"])
def test_refused_work_is_done_by_another_client(ipi, undisturbed, refused):
    token = f"<parameters> {{ dpa3sim_order: {water_hash()} }} </parameters><latency>"
    server = ipi("t01", steps=6, edit=[EVERY_STEP, ("<latency>", token)])
    natoms = 20 if refused == "number" else 24
    theirs = order_hash(sorted(water().numbers)) if refused == "order" else None
    wrong = ClientThread(server.address, Toy(), natoms, order=theirs)
    with pytest.raises(RefusedError) as caught:
        wrong.done()
    both = ("24", "20") if refused == "number" else (water_hash(), theirs)
    assert all(value in str(caught.value) for value in both)
    right = ClientThread(server.address, Toy(), order=water_hash())
    assert server.wait() == 0
    right.done()
    assert server.out == undisturbed


def test_nan_does_not_reach_i_pi(ipi, undisturbed):
    server = ipi("t01", steps=6, edit=[EVERY_STEP])
    broken = ClientThread(server.address, Toy(nan_at=4))
    with pytest.raises(NonFiniteError):
        broken.done()
    cells, positions = broken.client.failed
    assert cells.shape == (1, 3, 3)
    assert np.isfinite(positions).all()
    client = ClientThread(server.address, Toy())
    assert server.wait() == 0
    client.done()
    assert server.out == undisturbed


@pytest.mark.parametrize("how", ["SIGTERM", "EXIT"])
def test_end_of_i_pi_while_the_client_computes(ipi, how):
    server = ipi("t01", steps=1000)
    toy = Toy(delay=1.5)
    client = ClientThread(server.address, toy)
    wait_until(lambda: len(toy.batches) == 2, "the second step")
    if how == "SIGTERM":
        server.process.send_signal(signal.SIGTERM)
    else:
        (server.folder / "EXIT").touch()
    assert server.wait() == 0
    assert client.done().ending == "exit"
    assert (server.folder / "RESTART").exists()
    assert not Path(server.address.path).exists()


def test_dropped_for_being_slow(ipi):
    server = ipi("t09", edit=[("<timeout> 2", "<timeout> 1")])
    client = ClientThread(server.address, Toy(delay=2.0))
    with pytest.raises(ConnectionLostError, match=r"dropped by i-PI \(timeout\?\)"):
        client.done()
    # i-PI lives, and a faster client goes on.
    toy = Toy()
    client = ClientThread(server.address, toy)
    wait_until(lambda: len(toy.batches) > 20, "the work of the faster client")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert client.done().ending == "exit"


def test_dropped_client_that_reconnects_goes_on(ipi):
    server = ipi("t09", steps=2, edit=[("<timeout> 2", "<timeout> 1")])

    class OnceSlow(Toy):
        def __call__(self, cells, positions):
            self.delay = 2.0 if not self.batches else 0.0
            return super().__call__(cells, positions)

    client = ClientThread(server.address, OnceSlow(), reconnect=1)
    assert server.wait() == 0
    assert client.done().ending == "exit"
    assert client.client.statistics.connections == 2


def test_kill_of_i_pi_and_reconnection(ipi, undisturbed):
    server = ipi("t01", steps=6, edit=[EVERY_STEP])
    toy = Toy(delay=0.3)
    plain = ClientThread(server.address, toy)
    wait_until(lambda: len(toy.batches) == 3, "the third step")
    server.process.kill()
    start = time.monotonic()
    with pytest.raises(ConnectionLostError, match="connection lost"):
        plain.done()
    assert time.monotonic() - start < 1.0
    # The socket of a killed i-PI stays, and keeps the next one from starting.
    Path(server.address.path).unlink()

    patient = ClientThread(server.address, Toy(delay=0.3), reconnect=1)
    server.start()
    wait_until(lambda: patient.client.statistics.calls >= 2, "two steps")
    server.process.kill()
    server.process.wait()
    Path(server.address.path).unlink()
    server.start()
    assert server.wait() == 0
    assert patient.done().connections == 2
    assert server.out == undisturbed


def test_silent_time_between_requests_costs_nothing(ipi):
    """No spinning: the processor time of a waiting client stays small."""
    server = ipi("t01", steps=1000)
    toy = Toy(delay=0.0)
    client = ClientThread(server.address, toy)
    wait_until(lambda: len(toy.batches) > 5, "some steps")
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.2
    server.process.send_signal(signal.SIGCONT)
    client.client.stop()
    client.done()
    assert threading.active_count() < 10
