"""What other busy processes cost: an evaluation beside 0, 1, 2 and 4 of them.

    python benchmarks/neighbours.py [--structure Si64] [--competitors 0 1 2 4]

A fair share of C cores for t threads beside n processes is C t / (t + n) cores, which would make an
evaluation (t + n) / C times as long (if that is more than one). The table compares this with all
threads always (DPA3SIM_THREADS=fixed) and with as many as find a free core, in turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
from ase.build import bulk

SPIN = "while True: pass"
BESIDE = """
import torch
from ase.build import bulk
from dpa3sim import Potential
potential, atoms = Potential(), bulk("Si", cubic=True) * 2
while True:
    atoms.rattle(0.001, rng=__import__("numpy").random)
    potential.evaluate([atoms])
"""
REPEATS = {"Si2": None, "Si8": (1, 1, 1), "Si64": (2, 2, 2), "Si216": (3, 3, 3)}
ROUNDS, SECONDS = 3, 4.0


@contextmanager
def running(program: str, count: int):
    """So many processes with this program, which have had time to start."""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    time.sleep(0.5 if program == SPIN else 20)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def median_seconds(potential, atoms) -> float:
    """Of evaluations of a few seconds, after one second for the choice of threads."""
    times, rng, start = [], np.random.default_rng(0), time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS + 1:
        atoms.positions += rng.normal(scale=0.001, size=atoms.positions.shape)
        before = time.perf_counter()
        potential.evaluate([atoms])
        if passed > 1:
            times.append(time.perf_counter() - before)
    return float(np.mean(times))


def measure(structure: str, competitors: list[int], program: str = SPIN) -> None:
    """A row for each number of competitors."""
    import torch

    from dpa3sim import Potential
    from dpa3sim.potential.threads import VARIABLE

    atoms = bulk("Si") if structure == "Si2" else bulk("Si", cubic=True) * REPEATS[structure]
    potential = Potential()
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    alone = None
    for count in competitors:
        times: dict[str, list[float]] = {"fixed": [], "free": []}
        with running(program, count):
            for _ in range(ROUNDS):
                for kind, found in times.items():
                    os.environ[VARIABLE] = kind
                    found.append(median_seconds(potential, atoms.copy()))
        fixed, free = (float(np.median(times[kind])) for kind in ("fixed", "free"))
        alone = alone or fixed
        fair = max(1.0, (threads + count * (1 if program == SPIN else threads)) / cores)
        print(
            f"{structure}, {threads} threads on {cores} cores, {count} others: all threads "
            f"{1e3 * fixed:.1f} ms, {fixed / alone / fair:.2f} of a fair share; free cores "
            f"{1e3 * free:.1f} ms, {free / alone / fair:.2f} of a fair share",
            flush=True,
        )


def main() -> None:
    """Measure beside loops, and beside another process like this one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structure", default="Si64", choices=REPEATS)
    parser.add_argument("--competitors", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--own", action="store_true", help="beside evaluations like this one")
    args = parser.parse_args()
    if args.own:
        measure(args.structure, [0, 1], BESIDE)
    else:
        measure(args.structure, args.competitors)


if __name__ == "__main__":
    main()
