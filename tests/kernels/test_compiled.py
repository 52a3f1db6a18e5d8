"""The compiled kernels against the tensor operations, in every option and on every build."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import (
    DATA,
    MODELS,
    assert_equal_results,
    head_of,
    hydrogen_oxygen_structures,
    load_small,
)

import dpa3sim.kernels.libraries
from dpa3sim import Potential
from dpa3sim.checkpoints import read_model
from dpa3sim.kernels import structs
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.probes import probe
from dpa3sim.model.network import Network

CAPABILITY = torch.backends.cpu.get_cpu_capability()
BUILDS = [
    name
    for name, capabilities in dpa3sim.kernels.libraries.BUILDS.items()
    if dpa3sim.kernels.libraries._find(name) and (not capabilities or CAPABILITY in capabilities)
]
NONE = pytest.param("", marks=pytest.mark.skip(reason="no kernels were built for this processor"))


@pytest.fixture(params=BUILDS or [NONE])
def library(request):
    return dpa3sim.kernels.libraries._load(dpa3sim.kernels.libraries._find(request.param))


def random_graph(potential, atoms, edges, angle_edges):
    return probe(potential.model.config, atoms, edges, angle_edges, True, torch.device("cpu"))


def assert_alike(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def with_and_without_smoothing():
    for path in MODELS:
        yield pytest.param(path, None, id=path.parent.name)
        if read_model(path, head_of(path)).config.descriptor.has_step:
            yield pytest.param(path, 0.7, id=f"{path.parent.name} smoothed")


@pytest.mark.parametrize(("path", "width"), with_and_without_smoothing())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_compiled_layers_equal_tensor_operations(path, width, dtype, library):
    potential = load_small(path, width)
    model = potential.model
    network = Network(model.config, model.weights, torch.device("cpu"), dtype)
    tensors, native = Evaluator(network, True), Evaluator(network, True, library)
    # Random graphs: few and many edges, odd numbers, no angles at all.
    for shape in ((5, 7, 3), (3, 41, 17), (2, 6, 0), (4, 1, 1), (2, 150, 40)):
        graph = random_graph(potential, *shape)
        expected = tensors.evaluate(graph, MemoryPolicy())
        for policy in (MemoryPolicy(), MemoryPolicy("preactivations"), MemoryPolicy(every=2)):
            found = native.evaluate(graph, policy)
            assert_alike(found, expected, 1e-12 if dtype == torch.float64 else 1e-5)


def test_real_models_and_their_float32_rounding(embedded, library):
    """Forces of compiled float32 kernels are as near to float64 as those of torch."""
    model = embedded.model
    results = {}
    for dtype in (torch.float32, torch.float64):
        network = Network(model.config, model.weights, torch.device("cpu"), dtype)
        for name, kernels in (("torch", None), ("native", library)):
            graph = random_graph(embedded, 6, 40, 14)
            evaluator = Evaluator(network, True, kernels)
            results[name, dtype] = evaluator.evaluate(graph, MemoryPolicy())[1]
    exact = results["torch", torch.float64]
    scale = exact.abs().max()
    assert (results["native", torch.float64] - exact).abs().max() < 1e-12 * scale
    errors = {
        name: float((results[name, torch.float32] - exact).abs().max() / scale)
        for name in ("torch", "native")
    }
    assert errors["native"] < 2 * errors["torch"]


def test_threads_do_not_change_a_bit(library):
    potential = Potential(DATA / "models/static_linear/model.pt")
    network = potential.network
    graph = random_graph(potential, 40, 20, 8)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(Evaluator(network, True, library).evaluate(graph, MemoryPolicy()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_whole_structures(library):
    potential = Potential(DATA / "models/dynamic/model.pt")
    tensors = Potential(DATA / "models/dynamic/model.pt")
    tensors.batcher.use(Evaluator(tensors.network, sparse=True))
    potential.batcher.use(Evaluator(potential.network, True, library))
    structures = hydrogen_oxygen_structures()
    pairs = zip(potential.evaluate(structures), tensors.evaluate(structures), strict=True)
    for result, expected in pairs:
        assert_equal_results(result, expected, 1e-12)


def chosen(folder, **environment):
    """What a new process says; not from the checkout, where nothing may have been built."""
    code = "import dpa3sim.kernels.libraries as n; s = n.status(); print(s.build, '|', s.reason)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_which_kernels_run_can_be_chosen(tmp_path):
    assert chosen(tmp_path, DPA3SIM_KERNELS="torch") == "torch | DPA3SIM_KERNELS=torch"
    assert "DPA3SIM_KERNELS=fast is not one of avx512, avx2, base" in chosen(
        tmp_path, DPA3SIM_KERNELS="fast"
    )
    for build in BUILDS:
        assert chosen(tmp_path, DPA3SIM_KERNELS=build).startswith(f"{build} | compiled for {build}")
    if BUILDS:
        assert chosen(tmp_path, DPA3SIM_KERNELS="").startswith(BUILDS[0])


def test_a_library_with_other_arguments_is_refused(library, monkeypatch):
    """C and Python describe the same structs; a difference in size is found when it is loaded."""

    class LongerCall(ctypes.Structure):
        _fields_ = [*structs.NodesCall._fields_, ("more", ctypes.c_int64)]

    changed = (*structs.STRUCTS[:2], LongerCall, structs.STRUCTS[3])
    monkeypatch.setattr(dpa3sim.kernels.libraries, "STRUCTS", changed)
    with pytest.raises(OSError, match="LongerCall have another layout"):
        dpa3sim.kernels.libraries._load(Path(library._name))


def test_a_library_that_cannot_be_loaded_is_no_failure(tmp_path, monkeypatch):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(dpa3sim.kernels.libraries, "_find", lambda build: broken)
    dpa3sim.kernels.libraries.status.cache_clear()
    try:
        status = dpa3sim.kernels.libraries.status()
        assert (status.library, status.build) == (None, "torch")
        assert "cannot be loaded" in status.reason
        energy = (
            Potential(DATA / "models/dynamic/model.pt")
            .evaluate(hydrogen_oxygen_structures()[:1])[0]
            .energy
        )
        assert np.isfinite(energy)
    finally:
        dpa3sim.kernels.libraries.status.cache_clear()


def test_what_computes_is_said(monkeypatch):
    for path in ("models/dynamic/model.pt", "variants/sequential/model.pt"):
        assert Potential(DATA / path).kernels == dpa3sim.kernels.libraries.status().build
    none = dpa3sim.kernels.libraries.Status(None, "torch", "for a test")
    monkeypatch.setattr(dpa3sim.kernels.libraries, "status", lambda: none)
    assert Potential(DATA / "models/dynamic/model.pt").kernels == "torch"
