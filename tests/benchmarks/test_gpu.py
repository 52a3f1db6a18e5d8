"""The benchmark of a GPU, as far as a machine without one can run it."""

import importlib
import json
import math
import os
import sys
import time

import numpy as np
import pytest
import torch
from tests_support import TESTS

ROOT = TESTS.parent


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("gpu")


@pytest.fixture
def parts(monkeypatch):
    # Triton decides when the programs are defined.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    from dpa3sim.kernels import choice

    monkeypatch.setattr(choice, "_compare", choice._compare)  # what a dry run replaces
    monkeypatch.setattr(choice, "_faults", {})
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu_parts")


def records(parts, name):
    found = list(parts.PARTS[name](parts.plan(dry_run=True)))
    assert found
    assert all(record["case"] for record in found)
    json.dumps(found)  # as a part prints them
    return found


SLOW = ("programs", "memory", "profile", "tiles", "tests")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in (
            *("limits", "programs", "speed", "memory", "profile"),
            *("training", "batches", "tiles", "tests"),
        )
    ],
)
def test_every_part_has_a_dry_run(parts, name):
    for record in records(parts, name):
        assert record.get("passed", True)
        assert "failed" not in record
        numbers = [x for x in record.values() if isinstance(x, float)]
        assert all(math.isfinite(x) for x in numbers)


def test_every_part_has_a_time_box(gpu, parts):
    assert set(gpu.BOXES) == set(parts.PARTS)
    assert sum(gpu.BOXES.values()) <= gpu.TOTAL < 8 * 60


@pytest.mark.slow
def test_parity_finds_a_wrong_program(parts, monkeypatch):
    found = records(parts, "parity")
    assert all(record["passed"] for record in found)
    names = {name.partition("(")[2].strip(")") for name in found[0]["outputs"]}
    assert {"messages", "update_angles", "angles_backward", "sum_segments"} <= names
    from dpa3sim.kernels.triton import TritonKernel

    update = TritonKernel.update_node
    monkeypatch.setattr(TritonKernel, "update_node", lambda *args: 1.01 * update(*args))
    wrong = records(parts, "parity")[0]
    assert not wrong["passed"]
    good = {x for x in wrong["outputs"] if x.startswith("layer 0 v3")}
    assert all(wrong["outputs"][x] < 1e-6 for x in good)


def test_products_are_those_of_an_evaluation(parts):
    """Made once forwards, and in the backward pass once again and once transposed."""
    from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
    from dpa3sim.kernels.layer import LayerPlan
    from dpa3sim.kernels.probes import probe

    p = parts.plan(dry_run=True)
    model = parts.load(p.models["small"])
    network = parts.network(p, model, "float32", "cpu")
    edges, slots, angles = 4, 2, 4
    counts = np.array([3, 1]), np.array([2, 0])
    graph = probe(network.config, 2, *counts, False, torch.device("cpu"))
    with parts.Launches(p) as launches:
        Evaluator(network, False, None, "full").evaluate(graph, MemoryPolicy())
    found = sum(flop for _, _, flop, _ in launches.sums().values())
    d, expected = network.config.descriptor, 0
    e, a = d.e_dim, d.a_dim
    for number in range(d.nlayers):
        plan = LayerPlan.of(d, number)
        width = d.n_multi_edge_message * d.n_dim + e * plan.edges
        expected += 3 * edges * e * width
        if plan.angles:
            expected += 3 * angles * a * (e + a * plan.angle_self)
            # The map of R: forwards for every edge, backwards for those that have angles.
            expected += (edges + 2 * (slots if d.smooth_edge_update else edges)) * e * e
    assert found == 2 * expected


def test_a_part_that_hangs_or_dies_keeps_what_it_found(gpu):
    start = time.monotonic()
    code = "import time; print('{\"case\": \"a\"}', flush=True); print('{\"ca', end='', flush=True)"
    hung = gpu.run_part("x", [sys.executable, "-c", f"{code}; time.sleep(100)"], 2.0)
    assert time.monotonic() - start < 60
    assert hung.ended == "stopped after 2 s"
    assert hung.records == [{"case": "a"}]
    died = gpu.run_part("y", [sys.executable, "-c", f"{code}; 1 / 0"], 60.0)
    assert died.ended == "failed with exit status 1"
    assert died.records == [{"case": "a"}]
    assert "ZeroDivisionError" in died.errors
    lines = gpu.table([hung, died]).splitlines()
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "division by zero" in lines[-1]


@pytest.mark.slow
def test_the_whole_in_processes(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    file = tmp_path / "gpu.json"
    arguments = ["--dry-run", "--parts", "limits", "batches", "--json", str(file)]
    assert gpu.main(arguments) == 0
    found = json.loads(file.read_text())
    assert [part["ended"] for part in found["parts"]] == ["done", "done"]
    out = capsys.readouterr().out
    assert "| batches |" in out
    assert gpu.main([*arguments[:2], "limits", "batches", "--total", "0.5"]) == 1
    assert "left out: no time was left" in capsys.readouterr().out
