"""Fixtures that leave no process and no socket behind."""

import pytest
from ipi_support import FakeServer, Server


@pytest.fixture
def ipi(tmp_path):
    """Starts i-PI; see :class:`Server`."""
    servers = []

    def start(name, **options):
        servers.append(Server(tmp_path / f"run{len(servers)}", name, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def fake():
    """A server whose every byte the test decides."""
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def processes():
    """A list of client processes, killed at the end."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
