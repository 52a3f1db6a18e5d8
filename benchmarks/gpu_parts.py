"""The parts of gpu.py, each of which runs in a process of its own and prints a line of JSON a case.

    python benchmarks/gpu_parts.py PART [--dry-run]

A record has the ``case`` and numbers whose names end in their unit. A part that is stopped or dies
has printed what it had found until then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How large the cases are: by default as on a GPU.

    Attributes:
        device: where. models: by name; None is the embedded one.
        sizes: repetitions of the unit cell by number of atoms. tensor_atoms: the most of them
            that tensor operations alone compute. profiled: those of the profile.
        layers: of the comparison of each kernel; None for all.
        seconds: of timing a case. crystals: of a batch. steps: of a training.
        dtypes: of the layers. roundings: of products.
        kernels: what computes the layers where times and memory are measured; in a dry run not the
            programs, which Triton's interpreter runs slowly.
        product, copied: size of a matrix product and bytes of a copy that show the card's limits.
        tests: arguments of pytest.
    """

    device: str = "cuda"
    models: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int, int]] = field(
        default_factory=lambda: {
            8: (1, 1, 1),
            64: (2, 2, 2),
            512: (4, 4, 4),
            4000: (10, 10, 5),
            16000: (20, 10, 10),
            50000: (25, 25, 10),
        }
    )
    tensor_atoms: int = 4000
    profiled: int = 4000
    layers: int | None = 3
    seconds: float = 1.0
    crystals: int = 1000
    steps: int = 30
    dtypes: tuple[str, ...] = ("float64", "float32")
    roundings: tuple[str, ...] = ("full", "tf32", "bf16")
    kernels: str = "triton"
    product: int = 8192
    copied: int = 2**30
    tests: tuple[str, ...] = (
        "tests/kernels/test_triton.py",
        "tests/potential/test_batches.py",
        "tests/model/test_network.py",
    )


def plan(dry_run: bool) -> Plan:
    """The plan of this machine; a dry run takes seconds on a CPU, with a small random model."""
    if dry_run:
        small = ROOT / "tests/data/models/dynamic/model.pt"
        return Plan(
            device="cpu",
            models={"small": str(small)},
            sizes={2: (1, 1, 1), 4: (2, 1, 1)},
            tensor_atoms=4,
            profiled=2,
            layers=3,
            seconds=0.0,
            crystals=3,
            steps=2,
            dtypes=("float32",),
            roundings=("full",),
            kernels="torch",
            product=64,
            copied=2**12,
            tests=("tests/kernels/test_triton.py", "-k", "rounded_products_are_refused"),
        )
    folder = Path(os.environ.get("DPA3SIM_TEST_MODELS") or ROOT.parent / "shared" / "models")
    file = folder / "2025-03-14-dpa3-mptrj.pth"
    return Plan(models={"L9": None} | ({"L24": str(file)} if file.is_file() else {}))


# -- what several parts use -----------------------------------------------------------------------


def crystal(model: Any, repeat: tuple[int, int, int]) -> Any:
    """Rattled silicon, or where a model does not know it, pairs of O and H with few neighbours."""
    from ase import Atoms
    from ase.build import bulk

    if "Si" in model.config.type_map:
        atoms = bulk("Si", cubic=True) * repeat
    else:
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]], cell=[9, 9, 9], pbc=True) * repeat
    atoms.rattle(0.05, seed=1)
    return atoms


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """These environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def potential(p: Plan, model: Any, kernels: str | None = None, **options: Any) -> Any:
    """A potential whose layers these kernels compute; there is no other way out.

    Raises:
        RuntimeError: the programs did not pass their test, which a dry run leaves out: in the
            interpreter it takes long.
    """
    from dpa3sim import Potential
    from dpa3sim.kernels import choice, libraries

    kernels = kernels or p.kernels
    if p.device == "cpu":
        choice._compare = lambda *arguments: None
    libraries.status.cache_clear()  # which reads the variable once
    with environment(DPA3SIM_KERNELS=kernels):
        made = Potential(model, device=p.device, **{"dtype": "float32", **options})
    libraries.status.cache_clear()
    if made.kernels != kernels:
        raise RuntimeError(f"{kernels} was asked for; {made.kernels_reason}")
    return made


def load(path: str | None) -> Any:
    """A model."""
    from dpa3sim.checkpoints.registry import load_model

    return load_model(path)


def synchronize(p: Plan) -> None:
    """Wait for the device."""
    import torch

    if p.device != "cpu":
        torch.cuda.synchronize()


def timed(p: Plan, call: Callable[[], Any], warm_up: int, most: int = 100) -> list[float]:
    """Seconds of calls, after some that are not counted."""
    for _ in range(warm_up):
        call()
    synchronize(p)
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < p.seconds and len(seconds) < most):
        start = time.perf_counter()
        call()
        synchronize(p)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1 and p.seconds == 0:
            break
    return seconds


def mover(atoms: Any, made: Any) -> Callable[[], Any]:
    """A step: the atoms move as in a femtosecond, and are evaluated."""
    from dpa3sim.run.benchmark import DISPLACEMENT

    rng = np.random.default_rng(0)

    def step() -> Any:
        atoms.positions += rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
        return made.evaluate([atoms])[0]

    return step


# -- the parts ------------------------------------------------------------------------------------


def limits(p: Plan) -> Iterator[Record]:
    """What the card can do: products and copies by torch."""
    import torch

    for name in ("float32", "tf32", "bf16"):
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(p.product, p.product, device=p.device, dtype=dtype) for _ in range(2))
        seconds = min(timed(p, lambda a=a, b=b: a @ b, 1, 10))
        yield {"case": f"product {name}", "TFLOP_per_s": 2e-12 * p.product**3 / seconds}
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(p.copied, dtype=torch.uint8, device=p.device)
    target = torch.empty_like(source)
    seconds = min(timed(p, lambda: target.copy_(source), 1, 10))
    yield {"case": "copy, read and written", "GB_per_s": 2e-9 * p.copied / seconds}


def programs(p: Plan) -> Iterator[Record]:
    """Compile all programs, every configuration in a process of its own, side by side."""
    cases = [
        (name, dtype, matmul)
        for name in p.models
        for dtype in p.dtypes
        for matmul in p.roundings
        if dtype == "float32" or matmul == "full"
    ]
    if p.device == "cpu":  # nothing is compiled
        for case in cases:
            yield warm_up(p, *case)
        return
    command = [sys.executable, __file__, "programs", "--case"]
    running = {
        case: subprocess.Popen([*command, *case], stdout=subprocess.PIPE, text=True)
        for case in cases
    }
    for case, process in running.items():
        out, _ = process.communicate()
        failed = {"case": " ".join(case), "failed": f"exit status {process.returncode}"}
        yield json.loads(out.splitlines()[-1]) if process.returncode == 0 else failed


def warm_up(p: Plan, name: str, dtype: str, matmul: str) -> Record:
    """Run all programs of a configuration once, for both sizes of tiles of angles."""
    import torch

    from dpa3sim.kernels.evaluator import MemoryPolicy
    from dpa3sim.kernels.probes import probe

    start = time.perf_counter()
    made = potential(p, load(p.models[name]), "triton", dtype=dtype, matmul=matmul)
    evaluator = made.batcher.evaluator
    for angle_edges in (2, 4) if p.device == "cpu" else (10, 30):
        graph = probe(made.model.config, 2, 5 + angle_edges, angle_edges, True, made.device)
        evaluator.evaluate(graph, MemoryPolicy())
        if matmul == "full":
            seed = torch.ones(graph.n_atoms, dtype=torch.float64, device=made.device)
            sums = evaluator.weight_sums(graph)
            evaluator.add_weight_gradients(graph, seed, MemoryPolicy(), sums)
    synchronize(p)
    seconds = time.perf_counter() - start
    return {"case": f"{name} {dtype} {matmul}", "first_use_s": seconds, "why": made.kernels_reason}


def parity(p: Plan) -> Iterator[Record]:
    """What every call of a kernel makes, against tensor operations in float64 on the CPU.

    The largest difference of each output, relative to its largest number; in float32 beside that
    of tensor operations in float32 on the CPU, and whether a step asks nothing of the device.
    """
    import torch

    from dpa3sim.kernels.evaluator import Evaluator

    for name, path in p.models.items():
        model = load(path)
        for case, make in reference_graphs(p, model):
            exact = recorded(Evaluator(network(p, model, "float64", "cpu"), False), make("cpu"))
            for dtype in p.dtypes:
                ours = Evaluator(network(p, model, dtype, p.device), False, None, "full")
                found = differences(recorded(ours, make(p.device)), exact)
                plain = Evaluator(network(p, model, dtype, "cpu"), False)
                usual = differences(recorded(plain, make("cpu")), exact)
                worst = max(found, key=lambda k: found[k])
                good = all(x <= max(1e-11, 3 * usual[k] + 2e-6) for k, x in found.items())
                if dtype == "float64":
                    good = max(found.values()) <= 1e-11
                yield {
                    "case": f"{name} {case} {dtype}",
                    "passed": good,
                    "largest_relative": found[worst],
                    "of": worst,
                    "tensor_operations_relative": max(usual.values()),
                    "outputs": found,
                }
        made = potential(p, model)
        atoms = crystal(model, next(iter(p.sizes.values())))
        made.evaluate([atoms])
        yield {"case": f"{name} host synchronisation in a step", "passed": not waits(made)}
        del made
        if p.device != "cpu":
            torch.cuda.empty_cache()


def waits(made: Any) -> bool:
    """Whether the program of a step makes the host wait for the device."""
    import torch

    from dpa3sim.kernels.evaluator import MemoryPolicy

    session = next(reversed(made.batcher.sessions.values()))
    if made.device.type != "cuda":
        session.program(MemoryPolicy())
        return False
    torch.cuda.set_sync_debug_mode("error")
    try:
        session.program(MemoryPolicy())
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def network(p: Plan, model: Any, dtype: str, device: str) -> Any:
    """The first layers of a model."""
    import torch

    from dpa3sim.model.network import DTYPES, Network
    from dpa3sim.model.weights import weight_shapes

    descriptor = model.config.descriptor
    layers = min(p.layers or descriptor.nlayers, descriptor.nlayers)
    config = replace(model.config, descriptor=replace(descriptor, nlayers=layers))
    weights = {name: model.weights[name] for name in weight_shapes(config)}
    return Network(config, weights, torch.device(device), DTYPES[dtype])


def reference_graphs(p: Plan, model: Any) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Graphs of the built-in reference structures that a model knows, and one of random vectors."""
    import torch

    from dpa3sim import Potential
    from dpa3sim.checkpoints.reference import references
    from dpa3sim.graph.blocks import UNLIMITED, BlockLimits
    from dpa3sim.graph.static import block_graph
    from dpa3sim.kernels.probes import probe

    counts = ((3, 1), (2, 0)) if p.device == "cpu" else ((40, 5, 34, 1), (33, 5, 0, 1))
    edges, angle_edges = map(np.array, counts)

    def random(device: str) -> Any:
        where = torch.device(device)
        return probe(model.config, len(edges), edges, angle_edges, False, where)

    yield "random vectors", random
    if p.device == "cpu":
        return
    known = Potential(model, device="cpu")
    for reference in references():
        if not set(reference.atoms.symbols) <= set(model.config.type_map):
            continue
        system = known.system(reference.atoms)
        found = known.edges(reference.atoms)

        def make(device: str, system: Any = system, found: Any = found) -> Any:
            return block_graph(
                [system],
                [found],
                BlockLimits(UNLIMITED, UNLIMITED, 0.0),
                model.config.descriptor.update_angle,
                torch.device(device),
            )

        yield str(reference.atoms.symbols), make


def recorded(evaluator: Any, graph: Any) -> dict[str, Any]:
    """Copies on the CPU, in float64, of what each call of a kernel makes in an evaluation."""
    import torch

    from dpa3sim.kernels.evaluator import MemoryPolicy

    found: dict[str, Any] = {}

    def keep(name: str, x: Any) -> None:
        if x is not None:
            found[name] = x.detach().to("cpu", torch.float64).clone()

    for number, layer in enumerate(evaluator._layers):
        watch(layer, f"layer {number}", keep)
    energies, gradient = evaluator.evaluate(graph, MemoryPolicy())
    keep("energies", energies)
    keep("gradient", gradient)
    seed = torch.linspace(-1, 2, graph.n_atoms, dtype=torch.float64, device=graph.vectors.device)
    sums = evaluator.weight_sums(graph)
    evaluator.add_weight_gradients(graph, seed, MemoryPolicy(), sums)
    for name, x in evaluator.named_gradients(graph, sums).items():
        keep(f"gradient of {name}", x)
    return found


def watch(layer: Any, place: str, keep: Callable[[str, Any], None]) -> None:
    """Have the outputs of a layer's kernel kept, those of the last call."""
    kernel = layer.kernel
    forward, backward, update = kernel.forward, kernel.backward, kernel.update_node

    def forward_and_keep(x: Any, new: Any, sums: Any, tape: Any) -> None:
        forward(x, new, sums, tape)
        keep(f"{place} v3 (messages)", sums.v3)
        keep(f"{place} psi (symmetrise_sums)", sums.psi)
        if layer.plan.edges:
            keep(f"{place} edges (angle_messages, update_edges)", new.edge)
        if layer.plan.angle_self:
            keep(f"{place} angles (update_angles)", new.angle)

    def backward_and_keep(x: Any, grad: Any, tape: Any) -> None:
        backward(x, grad, tape)
        keep(f"{place} d edges (edge_angle_backward, edges_backward)", grad.features.edge)
        keep(f"{place} d own (sum_segments)", grad.own.edge)
        if layer.plan.angles:
            keep(f"{place} d angles (angles_backward)", grad.features.angle)
        if grad.incoming is not None:
            keep(f"{place} d nodes (symmetrise_sums_backward)", grad.incoming.node)

    def update_and_keep(node: Any, sums: Any, tape: Any) -> Any:
        new = update(node, sums, tape)
        keep(f"{place} nodes (symmetrise, update_nodes)", new)
        return new

    kernel.forward, kernel.backward = forward_and_keep, backward_and_keep
    kernel.update_node = update_and_keep


def differences(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """The largest difference of each output, relative to the largest number in it."""
    if set(found) != set(exact):
        raise RuntimeError(f"only one side made {sorted(set(found) ^ set(exact))}")
    return {
        name: float((found[name] - x).abs().max() / x.abs().max().clamp(min=1e-12))
        for name, x in exact.items()
        if x.numel()
    }


def speed(p: Plan) -> Iterator[Record]:
    """Time of a step and atom: energy, forces and virial, lists and transfers included."""
    ways = [(p.kernels, True, rounding) for rounding in p.roundings]
    ways += [(p.kernels, False, "full"), ("torch", True, "full"), ("torch", False, "full")]
    for name, path in p.models.items():
        model = load(path)
        for kernels, graphs, matmul in ways:
            made = potential(p, model, kernels, matmul=matmul)
            exact = deviation_from(p, model, made)
            for atoms, repeat in p.sizes.items():
                if kernels == "torch" and atoms > p.tensor_atoms:
                    continue
                yield {
                    "case": f"{name} {atoms} atoms, {kernels} {matmul}, "
                    f"{'CUDA graph' if graphs else 'launched one by one'}",
                    **step_time(p, made, crystal(model, repeat), graphs),
                    **exact,
                }
            made.forget()


def step_time(p: Plan, made: Any, atoms: Any, graphs: bool) -> Record:
    """The time of a step, captured or not."""
    from dpa3sim.potential import session

    usual = session.WARM_UPS
    if not graphs:
        session.WARM_UPS = sys.maxsize
    try:
        seconds = timed(p, mover(atoms, made), 1 if p.device == "cpu" else usual + 2)
    finally:
        session.WARM_UPS = usual
    median = float(np.median(seconds))
    return {
        "step_ms": 1e3 * median,
        "fastest_step_ms": 1e3 * min(seconds),
        "us_per_atom": 1e6 * median / len(atoms),
        "atom_steps_per_s": len(atoms) / median,
    }


def deviation_from(p: Plan, model: Any, made: Any) -> Record:
    """What rounding changes, against tensor operations in float64 on the same device."""
    repeat = list(p.sizes.values())[min(2, len(p.sizes) - 1)]
    atoms = crystal(model, repeat)
    (exact,) = potential(p, model, "torch", dtype="float64").evaluate([atoms])
    (found,) = made.evaluate([atoms])
    return {
        "max_force_error_eV_per_A": float(np.abs(found.forces - exact.forces).max()),
        "energy_error_eV_per_atom": abs(found.energy - exact.energy) / len(atoms),
    }


def memory(p: Plan) -> Iterator[Record]:
    """Peak memory of an evaluation by size, and the largest structure until there is too little."""
    import torch

    from dpa3sim.common.errors import OutOfMemoryError
    from dpa3sim.potential.memory import free_bytes, peak_bytes

    for name, path in p.models.items():
        model, found = load(path), []
        for atoms, repeat in (p.sizes | larger(p)).items():
            made, structure = potential(p, model), crystal(model, repeat)
            try:
                peak = peak_bytes(made.device, lambda m=made, s=structure: m.evaluate([s]))
            except (OutOfMemoryError, torch.OutOfMemoryError) as error:
                yield {"case": f"{name} {atoms} atoms", "failed": str(error).splitlines()[0]}
                break
            found.append((atoms, peak))
            yield {"case": f"{name} {atoms} atoms", "peak_GiB": peak / 2**30}
            del made
            if p.device != "cpu":
                torch.cuda.empty_cache()
        (n0, b0), (n1, b1) = found[-2:]
        each, free = (b1 - b0) / (n1 - n0), free_bytes(torch.device(p.device))
        yield {
            "case": f"{name} largest",
            "computed_atoms": n1,
            "MB_per_atom": 1e-6 * each,
            "predicted_atoms": n1 + max(0, int((free - b1) / each)),
        }


def larger(p: Plan) -> dict[int, tuple[int, int, int]]:
    """Structures beyond those that are timed; none in a dry run."""
    if p.device == "cpu":
        return {}
    return {8 * a * b * c: (a, b, c) for a, b, c in ((25, 25, 20), (25, 25, 40), (50, 25, 40))}


def profile(p: Plan) -> Iterator[Record]:
    """Time, arithmetic and least traffic of each program in an evaluation of one structure.

    Traffic counts every array of a launch once, whole; the products are those that are made.
    """
    for name, path in p.models.items():
        model = load(path)
        for matmul in p.roundings:
            made = potential(p, model, "triton", matmul=matmul)
            atoms = crystal(model, p.sizes[p.profiled])
            with Launches(p) as launches:
                session_of(made, atoms)
                launches.clear()
                start = time.perf_counter()
                session_of(made, atoms)
                synchronize(p)
                total = time.perf_counter() - start
            known = 0.0
            for program, (count, seconds, flop, nbytes) in launches.sums().items():
                known += seconds
                yield {
                    "case": f"{name} {len(atoms)} atoms {matmul}: {program}",
                    "launches": count,
                    "ms": 1e3 * seconds,
                    "share": seconds / total,
                    "TFLOP_per_s": 1e-12 * flop / seconds,
                    "GB_per_s": 1e-9 * nbytes / seconds,
                }
            rest = {"ms": 1e3 * (total - known), "share": 1 - known / total}
            yield {"case": f"{name} {len(atoms)} atoms {matmul}: torch and the host", **rest}


def session_of(made: Any, atoms: Any) -> None:
    """A step without a captured graph, whose launches can be seen."""
    from dpa3sim.kernels.evaluator import MemoryPolicy

    if not made.batcher.sessions:
        made.evaluate([atoms])
    next(reversed(made.batcher.sessions.values())).program(MemoryPolicy())


class Launches:
    """Times every launch of a program, one after the other, with what it computes and moves."""

    def __init__(self, p: Plan) -> None:
        self._p = p
        self._found: list[tuple[str, Any, Any, float, int]] = []

    def __enter__(self) -> Launches:
        from dpa3sim.kernels import triton

        self._module, self._launch = triton, triton.launch
        triton.launch = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        self._module.launch = self._launch

    def clear(self) -> None:
        """Forget what was launched."""
        synchronize(self._p)
        self._found.clear()

    def _timed(self, program: Any, grid: Any, device: Any, **arguments: Any) -> None:
        import torch

        start = self._now()
        self._launch(program, grid, device, **arguments)
        arrays = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
        nbytes = sum(x.numel() * x.element_size() for x in arrays)
        name = getattr(program, "__name__", None) or program.fn.__name__
        self._found.append((name, start, self._now(), products(name, arguments), nbytes))

    def _now(self) -> Any:
        import torch

        if self._p.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def sums(self) -> dict[str, tuple[int, float, float, int]]:
        """Launches, seconds, floating-point operations and bytes of each program."""
        synchronize(self._p)
        found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        for name, start, end, flop, nbytes in self._found:
            on_host = self._p.device == "cpu"
            seconds = end - start if on_host else 1e-3 * start.elapsed_time(end)
            found[name].append((seconds, flop, nbytes))
        return {
            name: (len(x), *(sum(y) for y in zip(*x, strict=True)))  # type: ignore[misc]
            for name, x in sorted(found.items(), key=lambda x: -sum(y[0] for y in x[1]))
        }


def products(program: str, a: dict[str, Any]) -> float:
    """Floating-point operations of the products of a launch."""
    edges = len(a["edge"]) if a.get("edge") is not None else 0
    angles = len(a["angle"]) if a.get("angle") is not None else 0
    e, width = a.get("E", 0), a.get("WIDTH", 0)
    if program == "messages":
        return 2.0 * edges * e * a["MESSAGE"]
    if program == "update_edges":
        reduced = edges if a["ANGLES"] else 0
        return 2.0 * e * e * (edges + reduced)
    if program == "edge_angle_backward":
        return 4.0 * a["n_rows"] * e * e
    if program == "edges_backward":
        return 4.0 * edges * e * (a["MESSAGE"] + (e if a["EDGES"] else 0))
    if program == "angle_messages":
        return 2.0 * angles * a["A"] * e
    if program == "update_angles":
        return 2.0 * angles * a["A"] * a["A"]
    if program == "angles_backward":
        return 4.0 * angles * a["A"] * width
    return 0.0


def tiles(p: Plan) -> Iterator[Record]:
    """Try other tiles, one size at a time, and keep what is faster: an entry for tiles.json."""
    import torch

    from dpa3sim.kernels import tiles as module

    name, path = next(iter(p.models.items()))
    model, usual = load(path), module.Tiles.of
    atoms = crystal(model, p.sizes[p.profiled])
    card = torch.cuda.get_device_name() if p.device != "cpu" else "CPU"
    for matmul in p.roundings:
        best = module.Tiles.default(torch.float32)
        least = time_of(p, model, atoms, matmul, best)
        yield {"case": f"{name} {matmul}: usual tiles", "evaluation_ms": 1e3 * least}
        for changed in changes(p):
            tried = replace(best, **changed)
            if tried == best:
                continue
            try:
                seconds = time_of(p, model, atoms, matmul, tried)
            except RuntimeError as error:  # too many registers, or too much shared memory
                text = str(error).splitlines()[0]
                yield {"case": f"{name} {matmul}: {changed}", "failed": text}
                continue
            yield {"case": f"{name} {matmul}: {changed}", "evaluation_ms": 1e3 * seconds}
            if seconds < 0.98 * least:
                best, least = tried, seconds
        entry = {module.key(card, torch.float32, matmul): asdict(best)}
        yield {"case": f"{name} {matmul}: best", "evaluation_ms": 1e3 * least, "tiles": entry}
    module.Tiles.of = usual


def changes(p: Plan) -> list[dict[str, int]]:
    """Other sizes that are worth a try."""
    if p.device == "cpu":
        return [{"edge_rows": 16}]
    return [
        *({"warps": x} for x in (2, 8)),
        *({"wide_warps": x} for x in (4, 16)),
        *({"edge_rows": x} for x in (16, 64)),
        *({"columns": x} for x in (32, 128)),
        *({"depth": x} for x in (16, 64)),
        *({"chained_columns": x} for x in (16, 64)),
        *({"angle_rows": x} for x in (16, 64)),
        *({"receivers": x} for x in (4, 16)),
        *({"stages": x} for x in (1, 2, 4)),
    ]


def time_of(p: Plan, model: Any, atoms: Any, matmul: str, tried: Any) -> float:
    """The fastest evaluation of a structure with these tiles."""
    from dpa3sim.kernels import tiles as module

    module.Tiles.of = lambda device, dtype, rounding: tried  # type: ignore[method-assign]
    made = potential(p, model, "triton", matmul=matmul)
    return min(timed(p, lambda: session_of(made, atoms), 2, 5))


def training(p: Plan) -> Iterator[Record]:
    """Steps of a training of the usual recipe on frames that a model has labelled."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from dpa3sim import Potential
    from dpa3sim.train.options import Options
    from dpa3sim.train.prepare import from_options
    from dpa3sim.train.trainer import Trainer

    model = load(next(iter(p.models.values())))
    teacher = Potential(model, device="cpu")
    frames = []
    for seed in range(4):
        atoms = crystal(model, list(p.sizes.values())[min(1, len(p.sizes) - 1)])
        atoms.rattle(0.05, seed=seed)
        (found,) = teacher.evaluate([atoms])
        atoms.calc = SinglePointCalculator(atoms, energy=found.energy, forces=found.forces)
        frames.append(atoms)
    options = Options()
    architecture = options.architecture
    if p.device == "cpu":
        architecture = replace(architecture, nlayers=1, n_dim=8, e_dim=8, a_dim=4, neuron="8")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frames.extxyz"
        write(file, frames)
        train = replace(options.train, steps=p.steps, device=p.device, validation_share=0.0)
        sources = replace(options.sources, data=str(file))
        given = replace(options, train=train, sources=sources, architecture=architecture)
        recipe = from_options(given).recipe
    ends: list[float] = []

    def follow(event: Any) -> None:
        if event.stage == "train":
            ends.append(time.perf_counter())

    outcome = Trainer(recipe, progress=follow).run()
    seconds = float(np.median(np.diff(ends))) if len(ends) > 1 else float("nan")
    yield {
        "case": f"{architecture.nlayers} layers, {len(frames[0])} atoms",
        "step_ms": 1e3 * seconds,
        "gradient_error": outcome.gradient_error,
    }


def batches(p: Plan) -> Iterator[Record]:
    """Many small crystals in one call, against some of them one by one."""
    from ase.build import bulk

    pool = [bulk("Si"), bulk("Si", cubic=True), bulk("MgO", "rocksalt", a=4.2)]
    pool += [bulk("Cu", cubic=True), bulk("GaAs", "zincblende", a=5.65, cubic=True)]
    pool += [bulk("NaCl", "rocksalt", a=5.6, cubic=True), bulk("ZnO", "wurtzite", a=3.25, c=5.2)]
    for name, path in p.models.items():
        model = load(path)
        some = [x for x in pool if set(x.symbols) <= set(model.config.type_map)]
        some = some or [crystal(model, x) for x in p.sizes.values()]
        structures = [some[i % len(some)].copy() for i in range(p.crystals)]
        for seed, atoms in enumerate(structures):
            atoms.rattle(0.05, seed=seed)
        made, few = potential(p, model), structures[: max(1, p.crystals // 20)]
        together = min(timed(p, lambda m=made, s=structures: m.evaluate(s), 1, 5))
        one_by_one = min(timed(p, lambda m=made, s=few: [m.evaluate([atoms]) for atoms in s], 1, 3))
        yield {
            "case": f"{name} {len(structures)} crystals of {min(map(len, some))} to "
            f"{max(map(len, some))} atoms",
            "structures_per_s": len(structures) / together,
            "one_by_one_per_s": len(few) / one_by_one,
        }


def tests(p: Plan) -> Iterator[Record]:
    """The tests that use a GPU if there is one; those that failed by name."""
    # Without options of pyproject.toml that need plugins.
    options = ["-o", "addopts=", "--import-mode", "importlib", "-v", "-m", "not slow"]
    command = [sys.executable, "-m", "pytest", *options, *p.tests]
    counts: dict[str, int] = defaultdict(int)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        for word in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
            if f" {word}" in line:
                counts[word.lower()] += 1
                if word in ("FAILED", "ERROR"):
                    yield {"case": line.partition(f" {word}")[0].strip(), "passed": False}
    yield {"case": "all", "passed": process.wait() == 0, **counts}


PARTS = {
    x.__name__: x
    for x in (
        *(limits, programs, parity, speed, memory, profile),
        *(training, batches, tiles, tests),
    )
}


def main() -> None:
    """Run one part and print its records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dry-run", action="store_true", help="small cases on a CPU")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the programs are defined
    from dpa3sim.common.errors import Dpa3simWarning

    warnings.simplefilter("ignore", Dpa3simWarning)
    chosen = plan(args.dry_run)
    records = [warm_up(chosen, *args.case)] if args.case else PARTS[args.part](chosen)
    for record in records:
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
