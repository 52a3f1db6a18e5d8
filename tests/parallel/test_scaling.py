"""The estimate of times on several ranks, and what commands say of ranks."""

import json

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE
from dpa3sim.parallel.halo import find_halo
from dpa3sim.parallel.partition import owners
from dpa3sim.parallel.scaling import LINKS, Link, Scaling
from dpa3sim.parallel.sharing import share_out

# The embedded model in float32, with a skin of 1 Å.
EMBEDDED = Scaling(layers=9, row=1024, reach=7.0, link=Link(0.0, np.inf))


@pytest.mark.parametrize(
    ("n", "density", "each"), [(500, 0.1, 3.6), (2000, 0.1, 1.9), (10_000, 0.1, 1.0)]
)
def test_ghosts_of_a_compact_part(n, density, each):
    assert EMBEDDED.ghosts(n, density) / n == pytest.approx(each, rel=0.05)


@pytest.mark.parametrize("ranks", [8, 27])
def test_ghosts_are_those_that_are_found(ranks):
    n, length = 8000, 80_000 ** (1 / 3)
    positions = np.random.default_rng(0).uniform(0, length, (n, 3))
    cell, pbc = np.eye(3) * length, np.ones(3, dtype=bool)
    owner = owners(positions, cell, pbc, np.ones(n, dtype=np.int64), ranks)
    found = len(find_halo(positions, cell, pbc, owner, 0, ranks, 6.0, 1.0).ghosts)
    expected = min(EMBEDDED.ghosts(n / ranks, 0.1), n - n / ranks)
    assert found == pytest.approx(expected, rel=0.25)


def test_bytes_of_a_step():
    assert EMBEDDED.sent(1) == 16 * 1024 + 24


def test_times():
    fast = EMBEDDED.seconds(8.0, 8000, 8, 0.1)
    assert 1.03 < fast < 1.1  # an eighth, and a little for imbalance and ghosts
    slow = Scaling(9, 1024, 7.0, LINKS["cpu"]).seconds(8.0, 8000, 8, 0.1)
    assert slow > fast + 21 * LINKS["cpu"].latency


def test_what_the_busiest_rank_has():
    sizes = [400] * 3
    sharing = share_out(sizes, 2, 100)
    assert sharing.busiest(sizes) == 600
    assert str(sharing) == (
        "1 structure divided among 2 ranks, 2 structures on 2 ranks, whole ones side by side"
    )


@pytest.mark.slow
def test_bench_and_plan_say_how_ranks_share(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    atoms = bulk("Si", cubic=True) * (3, 3, 3)
    write("Si.vasp", atoms)
    options = ["Si.vasp", "--ranks", "2", "--json"]
    assert main(["bench", *options, "--steps", "1", "--warm-up", "1"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == 2
    assert sum(found["atoms_of_ranks"]) == 216
    assert found["imbalance"] <= 1.05
    assert found["predicted_step_ms"] > 0
    assert len(found["peak_memory_of_ranks_MiB"]) == 2
    traffic = found["traffic_of_ranks"]
    assert traffic[0]["sent"] == traffic[1]["received"]
    assert main(["plan", "sp", *options]) == DONE
    plan = json.loads(capsys.readouterr().out)
    assert "2 ranks" in plan["time_basis"]
    assert "1 structure divided among 2 ranks" in plan["time_basis"]


def test_memory_of_a_part(embedded):
    """What is needed of a structure that two ranks share is that of a half."""
    edges, angle_edges = np.full(1000, 60), np.full(1000, 20)
    whole, _ = embedded.memory_needed(edges, angle_edges)

    class Two:
        @staticmethod
        def sharing(sizes):
            return share_out(sizes, 2, 100)

    part = Potential(embedded.model)
    part._shared = Two()
    assert part.memory_needed(edges, angle_edges)[0] < 0.6 * whole


def test_a_bad_number_of_ranks_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("Si.vasp", bulk("Si"))
    assert main(["sp", "Si.vasp", "--ranks", "none"]) == BAD_INPUT
    assert "option ranks = 'none' must be a number of processes" in capsys.readouterr().err
