"""32 structures of 2 to 12 atoms as one batch against one by one, in turn; and operations counted.

python benchmarks/batching.py [MODEL ...]
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch.utils._python_dispatch import TorchDispatchMode

from dpa3sim import Potential
from dpa3sim.common.errors import Dpa3simWarning
from dpa3sim.run.benchmark import DISPLACEMENT

ROUNDS, THREADS = 5, 2


class Counting(TorchDispatchMode):
    """Counts dispatched operations: what an accelerator pays as launches."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def structures() -> list[Atoms]:
    """Metals, semiconductors, oxides, salts and molecules, each twice, rattled."""
    pool = [
        bulk("Si"),
        bulk("Si", cubic=True),
        bulk("MgO", "rocksalt", a=4.2),
        bulk("NaCl", "rocksalt", a=5.6, cubic=True),
        bulk("Cu", cubic=True),
        bulk("Al") * (2, 2, 1),
        bulk("Fe", cubic=True),
        molecule("H2O"),
        molecule("C6H6"),
        molecule("CH3CH2OH"),
        bulk("GaAs", "zincblende", a=5.65),
        bulk("TiO", "rocksalt", a=4.2, cubic=True),
        bulk("Mg"),
        bulk("ZnO", "wurtzite", a=3.25, c=5.2),
        bulk("W") * (3, 1, 1),
        bulk("CsCl", "cesiumchloride", a=4.1),
    ]
    found = [atoms.copy() for atoms in pool * 2]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


def move(batch: list[Atoms], rng: np.random.Generator) -> None:
    """As in a femtosecond of molecular dynamics."""
    for atoms in batch:
        atoms.positions += rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)


def main() -> None:
    """Measure every model named, the embedded one without arguments."""
    warnings.simplefilter("ignore", Dpa3simWarning)
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    for model in sys.argv[1:] or [None]:
        potential = Potential(model)
        batch, ratios = structures(), []
        for _ in range(1 + ROUNDS):
            move(batch, rng)
            start = time.perf_counter()
            for atoms in batch:
                potential.evaluate([atoms])
            middle = time.perf_counter()
            move(batch, rng)
            again = time.perf_counter()
            potential.evaluate(batch)
            end = time.perf_counter()
            ratios.append((middle - start) / (end - again))
        ratios = ratios[1:]  # the first is warm-up
        print(
            f"{potential}: {len(batch)} structures, {sum(map(len, batch))} atoms: batch faster "
            f"{np.median(ratios):.2f} times (lowest {min(ratios):.2f}, highest {max(ratios):.2f})"
        )
        for n in (1, 2, 4, 8, 16, 32):
            same = [bulk("Si") for _ in range(n)]
            counts = []
            for chosen in (same, batch[:n]):
                potential.evaluate(chosen)
                with Counting() as operations:
                    potential.evaluate(chosen)
                session = next(reversed(potential.batcher.sessions.values()))
                counts.append((operations.count, len(session.layout.blocks)))
            print(
                f"  {n:2d} structures: {counts[0][0]} operations if alike ({counts[0][1]} block), "
                f"{counts[1][0]} if different ({counts[1][1]} blocks)"
            )


if __name__ == "__main__":
    main()
