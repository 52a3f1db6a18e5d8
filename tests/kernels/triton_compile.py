"""Compile the Triton programs for GPUs that need not be there, and print what they use.

``python triton_compile.py MODEL DTYPE MATMUL CAPABILITY [first]``: not a test, but what
test_triton.py runs in a process of its own, as Triton either interprets or compiles. Prints a JSON
list. With ``first``, every program only as a layer that updates everything needs it, and few of
those that make gradients of weights.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dpa3sim.checkpoints.registry import load_model
from dpa3sim.kernels import triton as triton_kernels
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.probes import probe
from dpa3sim.model.network import Network
from dpa3sim.model.weights import weight_shapes

# Channels of nodes and edges of the two public models; what else is compiled is the same.
MODELS = {"openlam": (256, 128), "mptrj": (128, 64)}
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}


def launches(model: str, dtype: torch.dtype, matmul: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Programs and arguments of all different launches of an evaluation.

    Those of weight gradients, for which products do not round, are included.
    """
    config = load_model(None).config
    n_dim, e_dim = MODELS[model]
    sizes = {"nlayers": 3, "n_dim": n_dim, "e_dim": e_dim}
    config = replace(config, descriptor=replace(config.descriptor, **sizes))
    device = torch.device("meta")
    weights = {name: torch.zeros(shape).numpy() for name, shape in weight_shapes(config).items()}
    found = {}

    def record(program: Any, grid: Any, device: Any, **arguments: Any) -> None:
        found[program.fn.__name__ + str(constants(program, arguments))] = program, arguments

    triton_kernels.launch = record
    for used in (config, config.smoothed(0.3)):
        network = Network(used, weights, device, dtype)
        for angle_edges in (10, 30):  # both sizes of tiles
            graph = probe(used, 4, 60, angle_edges, True, device)
            evaluator = Evaluator(network, False, None, matmul)
            evaluator.evaluate(graph, MemoryPolicy())
            if matmul == "full":
                seed = torch.ones(graph.n_atoms, dtype=torch.float64, device=device)
                sums = evaluator.weight_sums(graph)
                evaluator.add_weight_gradients(graph, seed, MemoryPolicy(), sums)
    return found


def constants(program: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    names = {p.name: p.is_constexpr for p in program.params}
    return {n: arguments.get(n) for n, fixed in names.items() if fixed or arguments.get(n) is None}


def compile_for(program: Any, arguments: dict[str, Any], capability: int) -> dict[str, Any]:
    fixed = constants(program, arguments)
    signature, attributes = {}, {}
    for index, name in enumerate(program.arg_names):
        value = arguments.get(name)
        if name in fixed:
            signature[name] = "constexpr"
            continue
        tensor = isinstance(value, torch.Tensor)
        signature[name] = TYPES[value.dtype] if tensor else "i32"
        if tensor or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {k: v for k, v in arguments.items() if k not in program.arg_names}
    compiled = triton.compile(
        ASTSource(program, signature, fixed, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={**options, "enable_fp_fusion": True},
    )
    return {
        "program": program.fn.__name__,
        "weights": bool(arguments.get("WEIGHTS")),
        "shared": compiled.metadata.shared,
        "products": len(re.findall(r"mma\.sync|wgmma\.mma", compiled.asm["ptx"])),
        **resources(compiled.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and spilled bytes of a thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return {"registers": int(found[1]), "stack": int(found[2])}


def richest(found: list[tuple[Any, dict[str, Any]]]) -> list[tuple[Any, dict[str, Any]]]:
    """Of each program the launch with most arguments; with weight gradients the largest only."""
    chosen: dict[tuple[str, bool], tuple[Any, dict[str, Any]]] = {}
    for program, arguments in sorted(
        found, key=lambda x: sum(v is not None for v in x[1].values())
    ):
        name, weights = program.fn.__name__, bool(arguments.get("WEIGHTS"))
        if not weights or name == "angles_backward":
            chosen[name, weights] = program, arguments
    return list(chosen.values())


if __name__ == "__main__":
    model, dtype, matmul, capability, *only = sys.argv[1:]
    torch.set_num_threads(1)
    found = list(launches(model, getattr(torch, dtype), matmul).values())
    if only:
        found = richest(found)
    print(json.dumps([compile_for(*launch, int(capability)) for launch in found]))
