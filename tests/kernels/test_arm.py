"""The compiled kernels built for ARM, in an emulator, against the tensor operations here.

A cross-compiler is ``aarch64-linux-gnu-g++``, or that of the Python package ``ziglang``.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tests_support import DATA, TESTS

from dpa3sim.checkpoints.registry import load_model
from dpa3sim.kernels import libraries, structs
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.probes import probe
from dpa3sim.model.network import Network

SOURCE = TESTS.parent / "dpa3sim/kernels/src/kernels.cpp"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-DVECTOR_BYTES=16"]
KINDS = [(kind, real) for kind in ("Silut", "General") for real in ("float", "double")]
PARTS = [[f"-DACTIVATION={kind}", f"-DREAL={real}"] for kind, real in KINDS] + [[]]
# Where the emulated process maps the shared memory, and how much of it.
ADDRESS, SIZE = 2**37, 2**28

pytestmark = pytest.mark.slow


def cross_compiler():
    if found := shutil.which("aarch64-linux-gnu-g++"):
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    pytest.skip("needs aarch64-linux-gnu-g++ or the Python package ziglang")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program that computes, and the emulator before it."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-aarch64 (of qemu-user)")
    folder, compiler = tmp_path_factory.mktemp("arm"), cross_compiler()
    host = TESTS / "kernels/remote_host.cpp"

    def compiled(part):
        number, (source, flags) = part
        out = folder / f"{number}.o"
        subprocess.run([*compiler, *FLAGS, *flags, "-c", source, "-o", out], check=True)
        return out

    with ThreadPoolExecutor(2) as pool:
        parts = enumerate([*((SOURCE, part) for part in PARTS), (host, [])])
        objects = list(pool.map(compiled, parts))
    subprocess.run([*compiler, "-static", *objects, "-o", folder / "host"], check=True)
    return [emulator, folder / "host"]


class Remote:
    """Has the functions of the library; arrays go to another process and back.

    Every array is known by the storage of a tensor whose address was asked for, or is a part of
    the layout.
    """

    def __init__(self, program, file):
        self.storages = {}
        file.write_bytes(b"")
        with file.open("r+b") as opened:
            opened.truncate(SIZE)
        self._memory = np.memmap(file, dtype=np.uint8, mode="r+", shape=(SIZE,))
        command = [*map(str, program), str(file), str(SIZE), str(ADDRESS)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        abi, *sizes = map(int, self.process.stdout.readline().split())
        assert abi == libraries.ABI
        assert sizes == [ctypes.sizeof(x) for x in structs.STRUCTS]

    def __getattr__(self, name):
        if not name.startswith("dpa3_"):
            raise AttributeError(name)
        return lambda argument: self._call(name, argument._obj)

    def _call(self, name, given):
        sent = type(given).from_buffer_copy(given)
        regions, used = {}, ctypes.sizeof(sent) + 64
        for field, kind in given._fields_:
            pointer = getattr(given, field)
            if kind is not ctypes.c_void_p or pointer is None:
                continue
            start, size = self._region(given, field, pointer)
            if start not in regions:
                used = -(-used // 64) * 64
                regions[start] = used, size
                self._memory[used : used + size] = as_bytes(start, size)
                used += size
            setattr(sent, field, ADDRESS + regions[start][0] + pointer - start)
        assert used < SIZE
        self._memory[: ctypes.sizeof(sent)] = np.frombuffer(bytes(sent), dtype=np.uint8)
        self.process.stdin.write(f"{name} {ADDRESS}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"
        for start, (offset, size) in regions.items():
            as_bytes(start, size)[:] = self._memory[offset : offset + size]

    def _region(self, given, field, pointer):
        if field in structs.LAYOUT:
            return pointer, 8 * given.n_rows
        for start, storage in self.storages.items():
            if start <= pointer < start + storage.nbytes():
                return start, storage.nbytes()
        raise AssertionError(f"{field} points to no tensor")


def as_bytes(start, size):
    return np.frombuffer((ctypes.c_uint8 * size).from_address(start), dtype=np.uint8)


@pytest.fixture
def library(program, tmp_path, monkeypatch):
    remote = Remote(program, tmp_path / "memory")
    data_ptr = torch.Tensor.data_ptr

    def known(tensor):
        storage = tensor.untyped_storage()
        remote.storages[storage.data_ptr()] = storage
        return data_ptr(tensor)

    monkeypatch.setattr(torch.Tensor, "data_ptr", known)
    yield remote
    remote.process.stdin.close()
    assert remote.process.wait() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        *("models/dynamic", "models/static_linear"),
        *(f"variants/{x}" for x in ("res_incr", "noangle", "sequential", "act_gelu")),
    ],
)
def test_a_build_for_arm_equals_tensor_operations(name, dtype, library):
    model = load_model(DATA / name / "model.pt")
    network = Network(model.config, model.weights, torch.device("cpu"), dtype)
    counts = np.array([21, 5, 1, 7]), np.array([18, 4, 1, 0])
    graph = probe(model.config, 4, *counts, False, torch.device("cpu"))
    ours, plain = (Evaluator(network, False, x) for x in (library, None))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    pairs = list(zip(*(x.evaluate(graph, MemoryPolicy()) for x in (ours, plain)), strict=True))
    found, expected = (weight_gradients(x, graph) for x in (ours, plain))
    assert set(found) == set(expected)
    pairs += [(found[k], expected[k]) for k in expected]
    for a, b in pairs:
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def weight_gradients(evaluator, graph):
    sums = evaluator.weight_sums(graph)
    seed = torch.linspace(-1, 2, graph.n_atoms, dtype=torch.float64)
    evaluator.add_weight_gradients(graph, seed, MemoryPolicy(), sums)
    return evaluator.named_gradients(graph, sums)
