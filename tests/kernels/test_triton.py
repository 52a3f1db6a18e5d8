"""The Triton programs against the tensor operations, on a GPU or in Triton's interpreter."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tests_support import (
    DATA,
    TESTS,
    NoHostAccess,
    assert_equal_results,
    hydrogen_oxygen_structures,
)

import dpa3sim.potential.potential
from dpa3sim import DPA3Calculator, Potential
from dpa3sim.checkpoints.reference import Reference
from dpa3sim.checkpoints.registry import load_model
from dpa3sim.cli.commands import doctor
from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError
from dpa3sim.kernels import choice as selection
from dpa3sim.kernels import libraries as native
from dpa3sim.kernels import triton as triton_kernels
from dpa3sim.kernels.api import Matmul
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.gradients import relative_difference
from dpa3sim.kernels.probes import probe
from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.config import ACTIVATIONS, Activation
from dpa3sim.model.network import Network
from dpa3sim.model.weights import weight_shapes
from dpa3sim.run import provenance

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
META = torch.device("meta")
INTERPRET = {} if DEVICE.type == "cuda" else {"TRITON_INTERPRET": "1"}
with pytest.MonkeyPatch.context() as patch:
    # Triton decides when the programs are defined.
    for name, value in INTERPRET.items():
        patch.setenv(name, value)
    pytest.importorskip("triton")
    import triton
    import triton.language as tl

    from dpa3sim.kernels import triton_programs
    from dpa3sim.kernels.triton_programs import _product

    @triton.jit
    def multiply(a, b, out, PRECISION: tl.constexpr):
        i = tl.arange(0, 16)
        at = i[:, None] * 16 + i[None, :]
        x = _product(tl.load(a + at), tl.load(b + at), tl.zeros([16, 16], tl.float32), PRECISION)
        tl.store(out + at, x)


NAMES = ["models/dynamic", "models/static_linear"]
NAMES += [f"variants/{name}" for name in ("res_incr", "noangle", "e_a", "linear", "ema")]
SMOOTHED = [f"smoothed {NAMES[i]}" for i in (1, 2, 4)]
# Edges and angle-edges of centres: full and partial tiles, one edge, no angles.
RAGGED = (21, 5, 1, 7), (18, 4, 1, 0)
NO_ANGLES = (6, 1), (0, 0)
# The same with a centre without edges; and more other edges than a tile of angles holds.
SPARSE, DENSE = ((19, 3, 2, 0), (9, 3, 0, 0)), ((34, 2), (33, 0))
EPSILON = {"tf32": 2.0**-11, "bf16": 2.0**-8}


@pytest.fixture(autouse=True)
def interpret(monkeypatch):
    for name, value in INTERPRET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def wanted(monkeypatch):
    """Potentials use the Triton programs."""
    monkeypatch.setenv("DPA3SIM_KERNELS", "triton")
    monkeypatch.setattr(selection, "_faults", {})


@pytest.fixture
def trusted(wanted, monkeypatch):
    """They do so without a test."""
    monkeypatch.setattr(selection, "_compare", lambda *arguments: None)


def load(name):
    smoothed = name.startswith("smoothed ")
    model = load_model(DATA / name.removeprefix("smoothed ") / "model.pt")
    return model.smoothed(0.7) if smoothed else model


def network_of(model, dtype, layers=None, device=DEVICE):
    """The first layers of a model."""
    descriptor = model.config.descriptor
    descriptor = replace(descriptor, nlayers=layers or descriptor.nlayers)
    config = replace(model.config, descriptor=descriptor)
    weights = {name: model.weights[name] for name in weight_shapes(config)}
    return Network(config, weights, device, dtype)


def random_graph(network, counts, together=False, device=DEVICE):
    edges, angle_edges = (np.array(x) for x in counts)
    return probe(network.config, len(edges), edges, angle_edges, together, device)


def record_launches(monkeypatch):
    """A list to which launches are added instead of being made, on the meta device."""
    launched = []

    def record(program, grid, device, **arguments):
        assert all(isinstance(size, int) for size in grid)
        assert device == META
        tensors = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
        assert {x.device for x in tensors} == {META}
        fixed = {k: x for k, x in arguments.items() if not isinstance(x, torch.Tensor)}
        launched.append((program, grid, fixed))

    monkeypatch.setattr(triton_kernels, "launch", record)
    return launched


def gradients(network, graph, matmul=None, policy=None):
    return Evaluator(network, False, None, matmul).evaluate(graph, policy or MemoryPolicy())


def error(found, expected):
    return float((found[1] - expected[1]).abs().max() / expected[1].abs().max())


def weight_sums(network, graph, matmul=None):
    """With different factors of the energies of the centres."""
    evaluator = Evaluator(network, False, None, matmul)
    sums = evaluator.weight_sums(graph)
    seed = torch.linspace(-1, 2, graph.n_atoms, dtype=torch.float64, device=network.device)
    evaluator.add_weight_gradients(graph, seed, MemoryPolicy(), sums)
    return evaluator, sums


def weight_gradients(network, graph, matmul=None):
    evaluator, sums = weight_sums(network, graph, matmul)
    return evaluator.named_gradients(graph, sums)


@pytest.mark.parametrize("name", NAMES + SMOOTHED)
@pytest.mark.parametrize("counts", [RAGGED, NO_ANGLES], ids=["ragged", "no angles"])
def test_layers_equal_tensor_operations(name, counts):
    network = network_of(load(name), torch.float64)
    graph = random_graph(network, counts)
    assert len(graph.layout.blocks) == len(counts[0])
    expected, found = gradients(network, graph), gradients(network, graph, "full")
    assert expected[1].abs().max() > 1e-7
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("models/dynamic", SPARSE),
        ("models/dynamic", NO_ANGLES),
        ("variants/ema", SPARSE),
        ("variants/ema", NO_ANGLES),
        ("variants/noangle", SPARSE),
        ("variants/e_a", SPARSE),
        ("smoothed variants/res_incr", DENSE),
    ],
)
def test_weight_gradients_equal_tensor_operations(name, counts, monkeypatch):
    monkeypatch.setattr(triton_kernels, "WEIGHT_PARTS", 2)  # each of several jobs
    network = network_of(load(name), torch.float64)
    graph = random_graph(network, counts)
    expected, found = weight_gradients(network, graph), weight_gradients(network, graph, "full")
    assert set(found) == set(expected)
    for weight, gradient in expected.items():
        atol = 1e-12 * float(gradient.abs().max())
        torch.testing.assert_close(found[weight], gradient, rtol=0, atol=atol, msg=weight)


def test_weight_gradients_in_float32():
    """They round as those of tensor operations do, and the same way each time."""
    low, high = (network_of(load("models/dynamic"), t) for t in (torch.float32, torch.float64))
    graph = random_graph(low, ((6, 2), (4, 1)))
    exact = weight_gradients(high, graph)
    found, again = (weight_gradients(low, graph, "full") for _ in range(2))
    torch_error = relative_difference(weight_gradients(low, graph), exact)
    assert 0 < relative_difference(found, exact) < 2 * torch_error
    for name, gradient in found.items():
        assert torch.equal(again[name], gradient), name


@pytest.mark.parametrize("policy", [MemoryPolicy("preactivations"), MemoryPolicy(every=2)], ids=str)
def test_what_is_kept_does_not_matter(policy):
    network = network_of(load("models/dynamic"), torch.float64)
    graph = random_graph(network, ((4, 4), (2, 2)), together=True)
    first, second = gradients(network, graph, "full"), gradients(network, graph, "full", policy)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_real_model_in_float32_rounds_as_tensor_operations_do(embedded):
    """All widths of the embedded model, in as many layers as differ."""
    low, high = (network_of(embedded.model, t, 3) for t in (torch.float32, torch.float64))
    graph = random_graph(low, ((34, 3), (17, 2)))
    exact = gradients(high, graph)
    torch_error = error(gradients(low, graph), exact)
    assert 0 < error(gradients(low, graph, "full"), exact) < 2 * torch_error


@pytest.mark.parametrize("matmul", get_args(Matmul))
def test_products_round_to_the_nearest(matmul):
    """Not towards zero, which would bias every sum (and is what tensor cores do to float32)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator) for _ in range(2))
    keep = {"full": 24, "tf32": 11, "bf16": 8}[matmul]

    def rounded(x):
        mantissa, exponent = torch.frexp(x.double())
        return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(keep))), exponent - keep)

    if matmul == "bf16":
        assert torch.equal(rounded(a), a.bfloat16().double())
    out = torch.empty(16, 16, device=DEVICE)
    precision = triton_kernels._precision(matmul, triton_programs.INTERPRETED)
    arguments = {"a": a.to(DEVICE), "b": b.to(DEVICE), "out": out}
    triton_kernels.launch(multiply, (1,), DEVICE, **arguments, PRECISION=precision)
    torch.testing.assert_close(out.cpu().double(), rounded(a) @ rounded(b), rtol=0, atol=1e-5)
    if matmul != "full":
        assert (out.cpu() - a @ b).abs().max() > EPSILON[matmul] / 4


@pytest.mark.parametrize("matmul", EPSILON)
def test_rounded_products_deviate_as_much_as_their_rounding(matmul):
    network = network_of(load("models/dynamic"), torch.float32)
    graph = random_graph(network, ((20, 3), (9, 2)))
    deviation = error(gradients(network, graph, matmul), gradients(network, graph))
    assert EPSILON[matmul] / 20 < deviation < 4 * EPSILON[matmul]


@pytest.mark.parametrize(
    "activation", [*(Activation(n) for n in ACTIVATIONS), Activation("silut", 10.0)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_activations_and_node_updates(activation, dtype):
    rng = np.random.default_rng(0)

    def tensor(*shape):
        return torch.tensor(rng.normal(scale=4, size=shape), dtype=dtype, device=DEVICE)

    n, rows = 20, 7
    node, rho, d_node = tensor(rows, n), tensor(3, n), tensor(rows, n)
    wide, sym_pre, v3 = tensor(rows, 2 * n), tensor(rows, n), tensor(rows, n)
    self_pre = wide[:, :n]
    outputs = [torch.full_like(node, torch.nan) for _ in range(4)]
    new, d_self, d_sym, d_v3 = outputs
    given = {"self_pre": self_pre, "self_stride": 2 * n, "sym_pre": sym_pre, "rho": rho}
    constants = {"N": n, "CHUNKS": 1, "B_COLUMNS": 32}
    constants |= triton_kernels._activation_constants(activation)
    triton_kernels.launch(
        triton_programs.update_nodes, (rows,), DEVICE,
        **given, **constants, node=node, v3=v3, new_node=new, KEEP=0.3,
    )  # fmt: skip
    triton_kernels.launch(
        triton_programs.update_nodes_backward, (rows,), DEVICE,
        **given, **constants, d_node=d_node, d_self=d_self, d_self_stride=n, d_sym=d_sym, d_v3=d_v3,
    )  # fmt: skip
    kernel = ActivationKernel(activation, sparse=False)
    v1, v2 = (kernel.forward(x, torch.empty_like(sym_pre)) for x in (self_pre.clone(), sym_pre))
    expected = [
        0.3 * node + rho[0] * v1 + rho[1] * v2 + rho[2] * v3,
        kernel.backward_(rho[0] * d_node, self_pre),
        kernel.backward_(rho[1] * d_node, sym_pre),
        rho[2] * d_node,
    ]
    for a, b in zip(outputs, expected, strict=True):
        tolerance = 1e-14 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(a, b, rtol=tolerance, atol=100 * tolerance)


def test_the_same_graph_gives_the_same_bits():
    network = network_of(load("models/static_linear"), torch.float32)
    graph = random_graph(network, ((9, 4), (5, 3)))
    for a, b in zip(*(gradients(network, graph, "full") for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_asked_of_the_device(monkeypatch):
    """On the meta device, where there is nothing to ask: launches follow from the layout."""
    network = network_of(load("models/dynamic"), torch.float32, device=META)
    graph = random_graph(network, RAGGED, device=META)
    launched = record_launches(monkeypatch)
    with NoHostAccess():
        energies, gradient = gradients(network, graph, "full")
    once = list(launched)
    gradients(network, graph, "full")
    assert launched == once + once
    assert energies.shape == (4,)
    assert gradient.shape == (34, 3)
    # As many for one block as for four.
    launched.clear()
    gradients(network, random_graph(network, ((9, 9), (4, 4)), True, META), "full")
    assert len(launched) == len(once)


@pytest.mark.parametrize("name", ["models/dynamic", "models/static_linear"])
def test_weight_gradients_ask_nothing_of_the_device(name, monkeypatch):
    network = network_of(load(name), torch.float32, device=META)
    graph = random_graph(network, RAGGED, device=META)
    launched = record_launches(monkeypatch)
    with NoHostAccess():
        weight_sums(network, graph, "full")
    once = list(launched)
    weight_sums(network, graph, "full")
    assert launched == once + once


def test_weight_gradients_need_no_numbers_per_angle_but_the_angles(monkeypatch):
    network = network_of(load("models/dynamic"), torch.float32, device=META)
    graph = random_graph(network, ([120] * 50, [120] * 50), True, META)
    largest = 0

    def measure(program, grid, device, **arguments):
        nonlocal largest
        sizes = [x.numel() for x in arguments.values() if isinstance(x, torch.Tensor)]
        largest = max(largest, *sizes)

    monkeypatch.setattr(triton_kernels, "launch", measure)
    weight_sums(network, graph, "full")
    assert largest == graph.layout.n_angles * network.config.descriptor.a_dim


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAMES[0], SMOOTHED[0]])
def test_whole_structures_with_room_to_spare(name, trusted):
    """As on an accelerator: fixed shapes, whose empty slots must not matter."""
    potential = Potential(load(name), device=DEVICE)
    assert potential.kernels == "triton"
    potential.batcher.memory.on_host = False
    tensors = Potential(load(name), device="cpu")
    tensors.batcher.use(Evaluator(tensors.network, sparse=True))
    structures = [hydrogen_oxygen_structures()[i] for i in (0, 2, 7)]
    for _ in range(2):
        results = potential.evaluate(structures)
        for result, expected in zip(results, tensors.evaluate(structures), strict=True):
            assert_equal_results(result, expected, 1e-11)
        structures[0].rattle(0.03, seed=1)
    (session,) = potential.batcher.sessions.values()
    assert session.layout.n_edges > sum(result.n_edges for result in results)


# -- selection ------------------------------------------------------------------------------------


def select(network=None, matmul="full"):
    return selection.select(network or network_of(load("models/dynamic"), torch.float32), matmul)


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(SMOOTHED[0], marks=pytest.mark.slow)])
def test_programs_that_pass_their_test_are_used(name, wanted):
    chosen = select(network_of(load(name), torch.float32))
    assert (chosen.kernels, chosen.matmul) == ("triton", "full")
    assert chosen.reason.startswith("passed the test on")


def test_programs_that_fail_are_not_used(wanted, monkeypatch):
    calls = []

    def fail(*arguments, **more):
        calls.append(1)
        raise RuntimeError("PTX JIT failed\nlong listing")

    monkeypatch.setattr(triton_kernels, "launch", fail)
    chosen = select()
    assert (chosen.kernels, chosen.matmul) == ("torch", None)
    assert chosen.reason == "the Triton programs failed: RuntimeError: PTX JIT failed"
    assert select() == chosen
    assert len(calls) == 1  # tested once
    assert Potential(DATA / "models/dynamic/model.pt", device=DEVICE).kernels == "torch"


def test_programs_with_wrong_results_are_not_used(wanted, monkeypatch):
    monkeypatch.setattr(selection, "TEST_GRAPHS", [RAGGED])
    right = triton_kernels.TritonKernel._symmetrise
    monkeypatch.setattr(
        triton_kernels.TritonKernel,
        "_symmetrise",
        lambda self, psi: right(self, psi) * (1 + 1e-3),
    )
    chosen = select()
    assert chosen.kernels == "torch"
    assert "deviate by" in chosen.reason


def test_without_triton(wanted, monkeypatch):
    monkeypatch.setitem(sys.modules, "dpa3sim.kernels.triton_programs", None)
    monkeypatch.delattr("dpa3sim.kernels.triton_programs")
    assert not triton_kernels.interpreted()
    monkeypatch.setattr(selection, "interpreted", lambda: True)
    assert select().reason.startswith("Triton cannot be imported")


def test_models_and_environments_that_rule_it_out(trusted, monkeypatch):
    assert select().kernels == "triton"
    sequential = network_of(load("variants/sequential"), torch.float64)
    assert "sequential_update" in select(sequential).reason
    monkeypatch.setenv("DPA3SIM_KERNELS", "torch")
    native.status.cache_clear()
    assert (select().kernels, select().reason) == ("torch", "DPA3SIM_KERNELS=torch")
    monkeypatch.delenv("DPA3SIM_KERNELS")
    native.status.cache_clear()
    on_cpu = network_of(load("models/dynamic"), torch.float32, device=torch.device("cpu"))
    assert select(on_cpu).kernels != "triton"
    other = network_of(load("models/dynamic"), torch.float32, device=torch.device("meta"))
    assert "not for meta" in select(other).reason


def test_importing_the_package_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import dpa3sim; dpa3sim.Potential()"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- rounded products -----------------------------------------------------------------------------


def test_rounded_products_are_refused_where_they_cannot_be():
    path = DATA / "models/dynamic/model.pt"
    with pytest.raises(InputError, match="'fp16' is not one of full, tf32, bf16"):
        Potential(path, matmul="fp16")
    with pytest.raises(InputError, match="is for float32, not for float64"):
        Potential(path, matmul="tf32")
    with pytest.raises(InputError, match="do not run on cpu"):
        Potential(path, matmul="bf16", dtype="float32", device="cpu")
    with pytest.raises(InputError, match="in the Potential"):
        DPA3Calculator(Potential(path, device="cpu"), matmul="tf32")


@pytest.mark.slow
def test_the_deviation_is_reported(trusted, monkeypatch):
    water = hydrogen_oxygen_structures()[0]
    monkeypatch.setattr(
        dpa3sim.potential.potential, "references", lambda: [Reference(water, 0.0, np.zeros((3, 3)))]
    )
    path = DATA / "models/dynamic/model.pt"
    full = Potential(path, dtype="float32", device=DEVICE)
    assert full.matmul_deviation is None
    rounded = DPA3Calculator(path, dtype="float32", device=str(DEVICE), matmul="bf16").potential
    assert "bf16 products" in str(rounded)
    deviation = rounded.matmul_deviation
    a, b = (potential.evaluate([water])[0] for potential in (rounded, full))
    assert deviation.structures == 1
    assert deviation.energy == pytest.approx(abs(a.energy - b.energy) / 3)
    assert deviation.force == pytest.approx(np.abs(a.forces - b.forces).max())
    assert 0 < deviation.force < 0.1 * np.abs(b.forces).max()
    facts = provenance.session(rounded, ["relax"])
    assert facts["matmul"] == "bf16"
    assert facts["matmul_deviation"]["force"] == deviation.force
    assert provenance.session(full, ["relax"])["matmul_deviation"] is None


def test_a_model_that_knows_no_reference_structure(trusted, monkeypatch):
    silicon = Reference(hydrogen_oxygen_structures()[0], 0.0, np.zeros((3, 3)))
    silicon.atoms.symbols = "SiSiSi"
    monkeypatch.setattr(dpa3sim.potential.potential, "references", lambda: [silicon])
    potential = Potential(
        DATA / "models/dynamic/model.pt", dtype="float32", device=DEVICE, matmul="tf32"
    )
    assert str(potential.matmul_deviation).startswith("unknown")


def test_commands_refuse_and_report(capsys, monkeypatch, trusted):
    assert main(["doctor", "--device", "cpu", "--matmul", "half"]) == 2
    monkeypatch.setattr(doctor, "parity", lambda potential: iter(()))
    monkeypatch.setattr(doctor, "lists", lambda potential: {"what": "", "passed": True})
    speed = {"per_atom_ms": 1.0, "simulated_ns_per_day": 1.0, "timestep_fs": 1.0}
    monkeypatch.setattr(doctor, "pace", lambda potential: speed)
    monkeypatch.setattr(Potential, "matmul_deviation", "0.1 meV/atom")
    assert main(["doctor", "--device", str(DEVICE), "--matmul", "tf32"]) == 0
    out = capsys.readouterr().out
    assert "triton (passed the test on" in out
    assert "tf32 products: 0.1 meV/atom" in out
    monkeypatch.delenv("DPA3SIM_KERNELS")
    assert main(["bench", str(DATA / "none.cif"), "--matmul", "half"]) == 2


# -- compilation ----------------------------------------------------------------------------------

# float64 has tensor cores too; "full" products in float32 must not use them.
CASES = list(
    product(("openlam", "mptrj"), ("float32 full", "float32 tf32", "float32 bf16"), (80, 90))
)
CASES += [("openlam", "float64 full", 80), ("openlam", "float64 full", 90)]
QUICK = ("openlam", "float32 full", 80)
# Bytes: of a thread that do not fit its registers, of a program so that several run side by side.
SPILLED, SHARED = 64, 48 * 2**10


@pytest.mark.parametrize(
    ("model", "arithmetic", "capability"),
    [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.slow) for case in CASES],
)
def test_programs_compile_for_gpus_that_are_not_here(model, arithmetic, capability, tmp_path):
    dtype, matmul = arithmetic.split()
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(dpa3sim.__file__).parents[1])
    case = model, dtype, matmul, str(capability)
    only = ["first"] if (model, arithmetic, capability) == QUICK else []
    done = subprocess.run(
        [sys.executable, TESTS / "kernels/triton_compile.py", *case, *only],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    names = {x["program"] for x in found}
    assert len(names) == 14
    of_weights = {x["program"] for x in found if x["weights"]}
    assert ("angles_backward" in of_weights) == (matmul == "full")
    wasteful = [x for x in found if x["stack"] > SPILLED or x["shared"] > SHARED]
    assert not wasteful
    multiplied = {x["program"] for x in found if x["products"]}
    expected = {"messages", "update_edges", "edge_angle_backward", "edges_backward"}
    expected |= {"angle_messages", "update_angles", "angles_backward"}
    assert multiplied == (set() if arithmetic == "float32 full" else expected)
