"""All ways to i-PI give the same trajectory."""

import socket
from collections import Counter

import numpy as np
import pytest
from ipi_support import HERE, ClientThread, Toy

from dpa3sim.clients.ipi.wire import Address

STEPS = 20
BEADS = 8
TOY_PES = (r"custom_pes\.py", str(HERE / "toy_pes.py"))


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """PIMD of eight beads, one structure in a message."""
    from ipi_support import Server

    server = Server(tmp_path_factory.mktemp("t02"), "t02", steps=STEPS)
    try:
        toy = Toy()
        client = ClientThread(server.address, toy)
        assert server.wait() == 0
        statistics = client.done()
        assert statistics.ending == "exit"
        assert toy.batches == [1] * BEADS * (STEPS + 1)
        return server.out
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("t03", {8: STEPS}),
        ("t03b", {3: 2 * STEPS, 2: STEPS}),
        ("t03c", {8: STEPS}),
        ("t03d", {1: 8 * STEPS}),
    ],
)
def test_every_transport_gives_the_same_trajectory(ipi, reference, name, sizes):
    server = ipi(name, steps=STEPS)
    toy = Toy()
    client = ClientThread(server.address, toy, verbose=True)
    assert server.wait() == 0
    statistics = client.done()
    assert statistics.ending == "exit"
    assert server.out == reference
    # All beads are equal at the first step: those in one message are evaluated once.
    start = {8: {1: 1}, 3: {1: 3}, 1: {1: 8}}[max(sizes)]
    assert Counter(toy.batches) == Counter(sizes) + Counter(start)
    assert statistics.calls == len(toy.batches)
    assert statistics.structures == sum(toy.batches)
    messages = {"t03": 8, "t03b": 9, "t03c": 8, "t03d": 8}[name] * (STEPS + 1)
    assert statistics.structures + statistics.copies == messages
    transport = "shared memory" if name == "t03c" else "socket"
    assert sum(f"({transport})" in line for line in client.lines) == statistics.calls


@pytest.mark.parametrize("name", ["t07", "t07b"])
def test_in_process_potential_gives_the_same_trajectory(ipi, reference, name):
    server = ipi(name, steps=STEPS, edit=[TOY_PES])
    assert server.wait() == 0, server.log
    assert server.out == reference


def test_two_clients_share_the_work(ipi, reference):
    server = ipi("t02", steps=STEPS)
    toys = Toy(delay=0.002), Toy(delay=0.002)
    clients = [ClientThread(server.address, toy) for toy in toys]
    assert server.wait() == 0
    assert [client.done().ending for client in clients] == ["exit", "exit"]
    assert server.out == reference
    work = [len(toy.batches) for toy in toys]
    assert sum(work) == BEADS * (STEPS + 1)
    assert min(work) > 0.3 * sum(work)


def test_tcp_gives_the_trajectory_of_a_unix_socket(ipi):
    unix = ipi("t01", steps=20)
    client = ClientThread(unix.address, Toy())
    assert unix.wait() == 0
    client.done()
    port = free_port()
    inet = ipi("t08", steps=20, edit=[("31417", str(port))])
    client = ClientThread(Address(host="localhost", port=port), Toy())
    assert inet.wait() == 0
    assert client.done().ending == "exit"
    assert inet.out == unix.out


def test_replicas_of_different_systems_are_one_batch(ipi):
    # i-PI sends what it has: so give the systems the time to ask.
    server = ipi("t12", steps=4, edit=[("<latency> 1e-4", "<latency> 2e-2")])
    toy = Toy()
    client = ClientThread(server.address, toy)
    assert server.wait() == 0
    client.done()
    assert max(toy.batches) == 4
    assert len(toy.batches) <= 8
    energies = [server.columns(f"{k}_sim.out")[-1, 3] for k in range(4)]
    assert len(set(energies)) == 4


def test_ring_polymer_contraction_asks_two_clients(ipi):
    server = ipi("t13", steps=5)
    toys = {name: Toy() for name in server.names}
    clients = [ClientThread(Address.unix(server.prefix + name), toy) for name, toy in toys.items()]
    assert server.wait() == 0
    for client in clients:
        client.done()
    fast, slow = (len(toys[name].batches) for name in ("dpa3_t13a", "dpa3_t13b"))
    # Eight beads twice a step, against two beads once a step.
    assert fast == 8 * (1 + 2 * 5)
    assert slow == 2 * (1 + 5)


def test_trpmd_is_one_call_a_step(ipi):
    server = ipi("t15", steps=10)
    toy = Toy()
    client = ClientThread(server.address, toy)
    assert server.wait() == 0
    client.done()
    assert toy.batches == [1] + [4] * 10
    assert (server.folder / "sim.vc.xyz").stat().st_size > 0


@pytest.mark.slow
def test_thermostat_gives_the_temperature(ipi):
    """Eight beads over 10 ps: <T> is right, both estimators of the kinetic energy agree."""
    edit = [(r"filename='pos' stride='1'", "filename='pos' stride='1000'")]
    edit += [(r"filename='frc' stride='1'", "filename='frc' stride='1000'")]
    server = ipi("t03", steps=8000, edit=edit)
    client = ClientThread(server.address, Toy(kk=2e-4))
    assert server.wait(600) == 0
    client.done()
    data = server.columns()[800:]
    temperature, kinetic_td, kinetic_cv = data[:, 3], data[:, 4], data[:, 5]

    def error(x):  # of the mean, from blocks longer than the thermostat's memory
        blocks = x[: len(x) // 12 * 12].reshape(12, -1).mean(axis=1)
        return blocks.std(ddof=1) / np.sqrt(len(blocks))

    assert abs(temperature.mean() - 300.0) < 4 * error(temperature)
    difference = kinetic_td - kinetic_cv
    assert abs(difference.mean()) < 4 * error(difference)
