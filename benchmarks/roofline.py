"""An evaluation against the matrix products in it alone, made by torch (MKL, oneDNN): how near?

    python benchmarks/roofline.py [MODEL ...]

Two sums are printed: of the products that a forward and a backward pass need at least, and of those
that are made, as the backward pass computes pre-activations again.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from dpa3sim import DPA3Calculator
from dpa3sim.common.errors import Dpa3simWarning
from dpa3sim.kernels.layer import LayerPlan
from dpa3sim.model.config import DescriptorConfig
from dpa3sim.run.benchmark import time_calls

THREADS, CALLS = 2, 7
Shape = tuple[int, int, int]


def systems() -> dict[str, Atoms]:
    """Three of the structures of compare.py."""
    found = {
        "Si64": bulk("Si", cubic=True) * 2,
        "Cu32": bulk("Cu", cubic=True) * 2,
        "MgO64": bulk("MgO", "rocksalt", a=4.25, cubic=True) * 2,
    }
    for atoms in found.values():
        atoms.rattle(0.05, seed=1)
    return found


def products(
    d: DescriptorConfig, atoms: int, edges: int, angle_edges: int, angles: int
) -> tuple[Counter[Shape], Counter[Shape]]:
    """Shapes (rows, depth, columns) of all products: necessary ones, and those made again."""
    needed: Counter[Shape] = Counter()
    again: Counter[Shape] = Counter()
    for layer in range(d.nlayers):
        plan = LayerPlan.of(d, layer)
        edge_width = d.n_multi_edge_message * d.n_dim + (d.e_dim if plan.edges else 0)
        angle_width = (d.e_dim + (d.a_dim if plan.angle_self else 0)) if plan.angles else 0
        node_width = d.n_dim + edge_width + angle_width
        nodes = [
            (atoms, d.n_dim, node_width),
            (atoms, d.n_dim, edge_width),
            (atoms, d.axis_neuron * (d.e_dim + d.n_dim), d.n_dim),
        ]
        inner = [(edges, d.e_dim, edge_width)]
        if plan.angles:
            inner += [
                (angle_edges, d.edge_angle_dim, 2 * angle_width),
                (angles, d.a_dim, angle_width),
                (angle_edges if d.smooth_edge_update else edges, d.e_dim, d.e_dim),
            ]
        for rows, depth, columns in nodes + inner:
            needed[rows, depth, columns] += 1
            needed[rows, columns, depth] += 1
        again.update(inner)
    return needed, again


def seconds(shapes: Counter[Shape]) -> float:
    """Time of products of random matrices, the best of a few runs of each shape."""
    total = 0.0
    for (rows, depth, columns), times in shapes.items():
        a, b = torch.randn(rows, depth), torch.randn(depth, columns)
        out = torch.empty(rows, columns)
        best = np.inf
        for _ in range(CALLS):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - start)
        total += times * best
    return total


def main() -> None:
    """Measure every model named, the embedded one without arguments."""
    warnings.simplefilter("ignore", Dpa3simWarning)
    torch.set_num_threads(THREADS)
    for model in sys.argv[1:] or [None]:
        calculator = DPA3Calculator(model)
        potential = calculator.potential
        for name, atoms in systems().items():
            atoms.calc = calculator
            time_calls(atoms, 2, seed=0)
            ours = min(time_calls(atoms, CALLS, seed=1))
            edges = potential.edges(atoms)
            m = edges.n_angle_edges
            needed, again = products(
                potential.model.config.descriptor, len(atoms), len(edges.i), m.sum(), (m**2).sum()
            )
            least = seconds(needed)
            made = least + seconds(again)
            print(
                f"{potential.model.name} {name}, {potential.kernels} kernels: {1e3 * ours:.1f} ms; "
                f"products needed {1e3 * least:.1f} ms (ratio {ours / least:.2f}), "
                f"made {1e3 * made:.1f} ms (ratio {ours / made:.2f})"
            )


if __name__ == "__main__":
    main()
