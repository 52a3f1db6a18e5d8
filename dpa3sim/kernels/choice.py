"""Which implementation computes the layers of a model, and why.

On a CPU the compiled kernels, on a GPU the Triton programs if they pass a test on that GPU, and
tensor operations otherwise.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dpa3sim.kernels import libraries as native
from dpa3sim.kernels.api import Matmul
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.probes import probe
from dpa3sim.kernels.triton import interpreted
from dpa3sim.model.network import Network
from dpa3sim.model.weights import weight_shapes

# A test needs no more layers than these: the first, the middle and the last differ.
TEST_LAYERS = 3
# Edges and angle-edges of the centres of its graphs: full and partial tiles, none at all.
TEST_GRAPHS = (((40, 5, 34, 1), (33, 5, 0, 1)), ((7, 3, 16), (5, 0, 16)))
# Error of the gradient, relative to its largest component, that a test accepts: in float64; and
# where products round their inputs, ten times what the embedded model has with such rounding.
EXACT, ROUNDED = 1e-11, {"tf32": 0.01, "bf16": 0.1}
# float32 may err this many times as much as tensor operations do, and a little more.
ALLOWANCE, SLACK = 3.0, 2e-6


@dataclass(frozen=True)
class Selection:
    """What computes the layers.

    Attributes:
        kernels: ``"triton"``, ``"torch"``, or a build of the compiled kernels.
        reason: a phrase for the user.
        library: the compiled kernels, if they do.
        matmul: how the products of the Triton programs round, if they do.
    """

    kernels: str
    reason: str
    library: ctypes.CDLL | None = None
    matmul: Matmul | None = None

    def evaluator(self, network: Network, sparse: bool) -> Evaluator:
        """The evaluator of a network."""
        return Evaluator(network, sparse, self.library, self.matmul)


def select(network: Network, matmul: Matmul) -> Selection:
    """Choose for the device of ``network``; :data:`native.VARIABLE` can forbid what is fast."""
    device = network.device
    wanted = os.environ.get(native.VARIABLE, "").lower()
    if device.type == "cpu" and not (wanted == native.TRITON and interpreted()):
        status = native.status()
        return Selection(status.build, status.reason, status.library)
    if network.config.descriptor.sequential_update:
        return Selection("torch", "there are no Triton programs for sequential_update")
    if wanted == "torch":
        return Selection("torch", f"{native.VARIABLE}=torch")
    if device.type not in ("cuda", "cpu"):
        return Selection("torch", f"Triton programs are for CUDA, not for {device.type}")
    fault = _fault(network, device, matmul)
    if fault is not None:
        return Selection("torch", fault)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the interpreter"
    return Selection("triton", f"passed the test on {where}", matmul=matmul)


_faults: dict[tuple[str, ...], str | None] = {}


def _fault(network: Network, device: torch.device, matmul: Matmul) -> str | None:
    """What is wrong with the Triton programs here; tested once for each configuration."""
    key = (str(device), str(network.dtype), matmul, repr(network.config.descriptor))
    if key not in _faults:
        try:
            _faults[key] = _compare(network, device, matmul)
        except ImportError as error:
            _faults[key] = f"Triton cannot be imported: {error}"
        except torch.OutOfMemoryError:
            raise
        # Whatever a compiler, its driver or a wrong program may raise must not stop anybody.
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            _faults[key] = f"the Triton programs failed: {type(error).__name__}: {text[0]}"
    return _faults[key]


def _compare(network: Network, device: torch.device, matmul: Matmul) -> str | None:
    """Compare Triton with tensor operations on small random graphs."""
    descriptor = network.config.descriptor
    layers = min(TEST_LAYERS, descriptor.nlayers)
    config = replace(network.config, descriptor=replace(descriptor, nlayers=layers))
    weights = {name: network.weights[name].cpu().numpy() for name in weight_shapes(config)}
    low, high = (Network(config, weights, device, t) for t in (network.dtype, torch.float64))
    for n_edges, n_angle_edges in TEST_GRAPHS:
        graph = probe(
            config, len(n_edges), np.array(n_edges), np.array(n_angle_edges), False, device
        )
        exact = Evaluator(high, False).evaluate(graph, MemoryPolicy())
        plain = _error(Evaluator(low, False).evaluate(graph, MemoryPolicy()), exact)
        triton = _error(Evaluator(low, False, None, matmul).evaluate(graph, MemoryPolicy()), exact)
        if network.dtype == torch.float64:
            allowed = EXACT
        else:
            allowed = ROUNDED.get(matmul, ALLOWANCE * plain + SLACK)
        if not triton <= allowed:  # NaN counts as a failure
            return f"the Triton programs deviate by {triton:.1e}, tensor operations by {plain:.1e}"
    return None


def _error(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """Largest error of energies and gradient, relative to the largest value."""
    pairs = zip(found, exact, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-8)) for a, b in pairs)
