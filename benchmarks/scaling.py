"""Time and peak memory of silicon supercells, a process for each size: does it scale?

python benchmarks/scaling.py [MODEL ...]
python benchmarks/scaling.py --ranks 1 2 4      # on several processes, beside the prediction
python benchmarks/scaling.py --memory 1 2 4     # memory of 8000 atoms, and what fits into 24 GiB
python benchmarks/scaling.py --divide           # ghosts, bytes and imbalance up to 512 ranks
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.io import write

SIZES = {512: (4, 4, 4), 1000: (5, 5, 5), 2000: (10, 5, 5), 4000: (10, 10, 5)}
LARGE = (10, 10, 10)
CARD = 24.0  # GiB
DIVIDED = (2, 8, 16, 64, 512)


def silicon(repeat: tuple[int, int, int]):
    atoms = bulk("Si", cubic=True) * repeat
    atoms.rattle(0.05, seed=1)
    return atoms


def bench(model: str, repeat: tuple[int, int, int], ranks: int, threads: int, steps: int = 3):
    """What ``dpa3sim bench --json`` says, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "Si.extxyz"
        write(file, silicon(repeat))
        command = [sys.executable, "-m", "dpa3sim", "bench", str(file), "--json"]
        command += ["--model", model, "--steps", str(steps), "--warm-up", "1"]
        command += ["--threads", str(threads), "--ranks", str(ranks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def sizes(models: list[str]) -> None:
    """Time and memory of each atom, with the number of atoms."""
    for model in models:
        reference = None
        for n, repeat in SIZES.items():
            result = bench(model, repeat, 1, 2)
            reference = reference or result["per_atom_ms"]
            print(
                f"{Path(model).stem} Si{n}: {result['per_atom_ms']:.2f} ms/atom "
                f"({result['per_atom_ms'] / reference:.2f} of the first), "
                f"peak {result['peak_memory_MiB'] / 1024:.2f} GiB",
                flush=True,
            )


def processes(models: list[str], counts: list[int]) -> None:
    """Several ranks of one thread against one rank of as many threads."""
    for model in models:
        for n, repeat in SIZES.items():
            for count in counts:
                one = bench(model, repeat, 1, count)["step_ms"]
                if count == 1:
                    print(f"{Path(model).stem} Si{n}, 1 rank of 1 thread: {one:.0f} ms", flush=True)
                    continue
                # The threads are those of all ranks together.
                result = bench(model, repeat, count, count)
                print(
                    f"{Path(model).stem} Si{n}, {count} ranks of 1 thread: "
                    f"{result['step_ms']:.0f} ms, {result['step_ms'] / one:.2f} of 1 rank of "
                    f"{count} threads; predicted {result['predicted_step_ms']:.0f} ms; exchanges "
                    f"with waiting {max(result['exchange_ms_of_ranks']):.0f} ms; imbalance "
                    f"{result['imbalance']:.3f}; peak "
                    f"{max(result['peak_memory_of_ranks_MiB']) / 1024:.2f} GiB",
                    flush=True,
                )


def memory(models: list[str], counts: list[int]) -> None:
    """Peak memory of each rank at 8000 atoms, and the largest system that 24 GiB hold."""
    for model in models:
        for count in counts:
            small, large = (bench(model, x, count, count, steps=1) for x in ((5, 5, 5), LARGE))
            peaks = [_peak(result) for result in (small, large)]
            atoms = [small["n_atoms"], large["n_atoms"]]
            slope = (peaks[1] - peaks[0]) / (atoms[1] - atoms[0])
            # Of ranks with 24 GiB each, as on GPUs.
            most = atoms[1] + (CARD - peaks[1]) / slope
            print(
                f"{Path(model).stem} Si{atoms[1]}, {count} ranks: peak {peaks[1]:.2f} GiB of a "
                f"rank ({1e3 * slope * 1024:.0f} MiB for 1000 atoms); {CARD:g} GiB for each rank "
                f"hold {most:.0f} atoms",
                flush=True,
            )


def _peak(result: dict) -> float:
    """GiB of the fullest rank."""
    return max(result.get("peak_memory_of_ranks_MiB", [result["peak_memory_MiB"]])) / 1024


def divide() -> None:
    """What divisions of random points are like, without a model."""
    from dpa3sim.parallel.halo import find_halo
    from dpa3sim.parallel.partition import owners, work_of
    from dpa3sim.parallel.scaling import LINKS, Scaling

    n, density, radius = 24_000, 0.1, 7.0
    length = (n / density) ** (1 / 3)
    positions = np.random.default_rng(0).uniform(0, length, (n, 3))
    cell, pbc = np.eye(3) * length, np.ones(3, dtype=bool)
    rng = np.random.default_rng(1)
    work = work_of(rng.integers(80, 110, n), rng.integers(20, 40, n))
    scaling = Scaling(9, 1024, radius, LINKS["cuda"])
    for ranks in DIVIDED:
        owner = owners(positions, cell, pbc, work, ranks)
        loads = np.bincount(owner, weights=work, minlength=ranks)
        some = range(0, ranks, max(1, ranks // 8))
        halos = [find_halo(positions, cell, pbc, owner, r, ranks, 6.0, 1.0) for r in some]
        found = np.mean([len(halo.ghosts) / halo.n_own for halo in halos])
        peers = max(int((halo.ghosts_of > 0).sum()) for halo in halos)
        expected = min(scaling.ghosts(n / ranks, density) * ranks / n, ranks - 1)
        print(
            f"{n} atoms, {ranks} ranks: work {loads.max() / loads.mean():.3f} of the mean, "
            f"{found:.2f} ghosts for each own atom (predicted {expected:.2f}), at most {peers} "
            f"peers, {scaling.sent(found * n / ranks) / 2**20:.1f} MiB a step and rank",
            flush=True,
        )


def main() -> None:
    """Measure every model named, the embedded one without arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["dpa3-openlam"], metavar="MODEL")
    parser.add_argument("--ranks", nargs="+", type=int, help="numbers of processes to compare")
    parser.add_argument("--memory", nargs="+", type=int, help="numbers of processes")
    parser.add_argument("--divide", action="store_true", help="divide points, without a model")
    args = parser.parse_args()
    if args.divide:
        divide()
    elif args.memory:
        memory(args.models, args.memory)
    elif args.ranks:
        processes(args.models, args.ranks)
    else:
        sizes(args.models)


if __name__ == "__main__":
    main()
