"""dpa3sim against deepmd-kit, and SevenNet-0, through their ASE calculators, in turn, in one run.

    python benchmarks/compare.py --peer ~/deepmd-env/bin/python --sevenn ~/sevenn-env/bin/python \
        --output docs/benchmarks.md

SevenNet-0 is another model, of about the accuracy of the one that ships with dpa3sim, and is
compared with that. Each side works in a process of its own for each model and structure, so that
its peak memory is that of this structure. After warm-up they are timed in turn, round by round, on
the same positions, which move a little before every evaluation of energy, forces and stress.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peers import MODELS as MODELS_FOLDER
from peers import Worker, WorkerDiedError, answer_requests, machine, write_report

from dpa3sim.run.benchmark import peak_memory, time_calls

SYSTEMS = ("Si8", "Si64", "Si216", "Cu32", "MgO64", "water81")
TARGETS = ("Si64", "Cu32", "MgO64")
MODELS = ("mptrj", "openlam")
SHIPPED = "openlam"
NAMES = {"deepmd": "deepmd-kit", "sevennet": "SevenNet-0"}


def system(name: str) -> Any:
    """A structure by name, rattled by 0.05 Å."""
    from ase import Atoms
    from ase.build import bulk, molecule

    if name == "water81":
        rng = np.random.default_rng(0)
        atoms = Atoms(cell=[9.31] * 3, pbc=True)
        for corner in np.ndindex(3, 3, 3):
            water = molecule("H2O")
            water.euler_rotate(*rng.uniform(0, 360, 3), center="com")
            water.translate((np.array(corner) + 0.5) * 9.31 / 3 - water.get_center_of_mass())
            atoms += water
    else:
        crystal, repeat = {
            "Si8": (bulk("Si", cubic=True), 1),
            "Si64": (bulk("Si", cubic=True), 2),
            "Si216": (bulk("Si", cubic=True), 3),
            "Cu32": (bulk("Cu", cubic=True), 2),
            "MgO64": (bulk("MgO", "rocksalt", a=4.25, cubic=True), 2),
        }[name]
        atoms = crystal * repeat
    atoms.rattle(0.05, seed=1)
    return atoms


# -- the sides -----------------------------------------------------------------------------------


def work(side: str, model: str, name: str) -> None:
    """Answer requests for timings until the input ends."""
    if side == "dpa3sim":
        import torch

        from dpa3sim import DPA3Calculator
        from dpa3sim.kernels import libraries as native

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        calculator: Any = DPA3Calculator(model)
        versions = {"torch": torch.__version__, "kernels": native.status().build}
    elif side == "sevennet":
        import sevenn
        import torch
        from sevenn.calculator import SevenNetCalculator

        calculator = SevenNetCalculator("7net-0", device="cpu")
        versions = {"sevenn": sevenn.__version__, "torch": torch.__version__}
    else:
        import deepmd
        import torch
        from deepmd.calculator import DP

        calculator = DP(model)
        versions = {"deepmd-kit": deepmd.__version__, "torch": torch.__version__}
    atoms = system(name)
    start = atoms.positions.copy()
    atoms.calc = calculator

    def answer(calls: int, seed: int) -> dict[str, Any]:
        atoms.positions = start  # so that the same request is the same work for both
        seconds = time_calls(atoms, calls, seed)
        return {
            "seconds": seconds,
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces().tolist(),
            "peak_memory": peak_memory(),
            "versions": versions,
        }

    answer_requests(answer)


def compare(args: argparse.Namespace, model: Path, name: str) -> dict[str, Any]:
    """Time all sides on one structure, dpa3sim first in every round.

    Where a peer dies, as deepmd-kit does when the machine has not enough memory for it, the
    others are timed without it.
    """
    pythons = {"dpa3sim": sys.executable, "deepmd": args.peer}
    if args.sevenn and SHIPPED in model.stem:
        pythons["sevennet"] = args.sevenn
    result: dict[str, Any] = {"system": name, "n_atoms": len(system(name))}
    while True:
        sides = {
            key: Worker(__file__, key, python, [str(model), name], args.threads)
            for key, python in pythons.items()
        }
        try:
            return result | take_turns(args, sides, result["n_atoms"])
        except WorkerDiedError as error:
            if error.side == "dpa3sim":
                raise
            del pythons[error.side]
            result[error.side] = str(error)
        finally:
            for side in sides.values():
                side.end()


def take_turns(args: argparse.Namespace, sides: dict[str, Worker], n: int) -> dict[str, Any]:
    """Times, memory, and ratios to each peer."""
    warm = {key: side.ask(calls=args.warm_up, seed=0)["seconds"] for key, side in sides.items()}
    calls = {key: int(np.clip(args.seconds / min(t), 1, 20)) for key, t in warm.items()}
    times: dict[str, list[float]] = {key: [] for key in sides}
    for round_ in range(args.rounds):
        for key, side in sides.items():
            seconds = side.ask(calls=calls[key], seed=1 + round_)["seconds"]
            times[key].append(float(np.median(seconds)))
    last = {key: side.ask(calls=1, seed=0) for key, side in sides.items()}
    result: dict[str, Any] = {}
    for key in sides:
        result[key] = {
            "ms_per_atom": 1e3 * float(np.median(times[key])) / n,
            "first_call_s": warm[key][0],
            "peak_MiB": last[key]["peak_memory"] / 2**20,
            "versions": last[key]["versions"],
        }
        if key == "dpa3sim":
            continue
        ratios = np.divide(times[key], times["dpa3sim"])
        result[key] |= {
            "ratio": float(np.median(ratios)),
            "ratio_min": float(ratios.min()),
            "ratio_max": float(ratios.max()),
        }
    if "deepmd" in sides:  # the same model
        ours, theirs = last["dpa3sim"], last["deepmd"]
        result["deepmd"] |= {
            "max_dF": float(np.abs(np.subtract(ours["forces"], theirs["forces"])).max()),
            "dE_per_atom": abs(ours["energy"] - theirs["energy"]) / n,
        }
    return result


# -- the report ----------------------------------------------------------------------------------


def table(model: str, results: list[dict[str, Any]]) -> str:
    """Markdown tables of one model, one for each peer."""
    parts = [f"**{model}**"]
    for peer, name in NAMES.items():
        if any(peer in r for r in results):
            parts += ["\n".join(comparison(peer, name, results)), *means(peer, results)]
    return "\n\n".join(parts)


def comparison(peer: str, name: str, results: list[dict[str, Any]]) -> list[str]:
    """Lines of one table."""
    lines = [
        f"| system | {name} ms/atom | dpa3sim ms/atom | ratio (lowest to highest pair) "
        f"| {name} peak MiB | dpa3sim peak MiB | max abs dF eV/Å | first call s, each |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        theirs, ours = r[peer], r["dpa3sim"]
        if isinstance(theirs, str):
            lines.append(
                f"| {r['system']} | died ({theirs}) | {ours['ms_per_atom']:.2f} | | "
                f"| {ours['peak_MiB']:.0f} | | -, {ours['first_call_s']:.1f} |"
            )
            continue
        deviation = f"{theirs['max_dF']:.1e}" if "max_dF" in theirs else "another model"
        lines.append(
            f"| {r['system']} | {theirs['ms_per_atom']:.1f} | {ours['ms_per_atom']:.2f} "
            f"| **{theirs['ratio']:.2f}** ({theirs['ratio_min']:.2f} to {theirs['ratio_max']:.2f}) "
            f"| {theirs['peak_MiB']:.0f} | {ours['peak_MiB']:.0f} | {deviation} "
            f"| {theirs['first_call_s']:.1f}, {ours['first_call_s']:.1f} |"
        )
    return lines


def means(peer: str, results: list[dict[str, Any]]) -> list[str]:
    """Geometric means of the ratios."""
    found = {r["system"]: r[peer]["ratio"] for r in results if not isinstance(r[peer], str)}
    lines = []
    for names in dict.fromkeys([TARGETS, tuple(found)]):
        if names and set(names) <= set(found):
            mean = float(np.exp(np.mean(np.log([found[name] for name in names]))))
            lines.append(f"Geometric mean over {', '.join(names)}: {mean:.2f}")
    return lines


def main() -> None:
    """Compare and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help="Python of an environment with deepmd-kit 3.1.3 and ASE")
    parser.add_argument("--sevenn", help="Python of an environment with sevenn")
    models = [str(MODELS_FOLDER / f"2025-03-14-dpa3-{name}.pth") for name in MODELS]
    parser.add_argument("--models", nargs="+", default=models, help="frozen models (.pth)")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=6, help="evaluations before")
    parser.add_argument("--rounds", type=int, default=5, help="how often they take turns")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each side and round")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--output", type=Path, help="file whose marked part the tables replace")
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    if not args.peer:
        parser.error("--peer is needed: the Python of an environment with deepmd-kit")
    numbers, parts = {}, []
    for model in map(Path, args.models):
        results = []
        for name in args.systems:
            results.append(compare(args, model.resolve(), name))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        numbers[model.stem] = results
        parts.append(table(model.stem, results))
    versions = {
        key: ", ".join(f"{k} {v}" for k, v in r[key]["versions"].items())
        for key in ("dpa3sim", *NAMES)
        for r in (r for found in numbers.values() for r in found)
        if isinstance(r.get(key), dict)
    }
    against = " and ".join(
        f"{name} ({versions[key]})" for key, name in NAMES.items() if key in versions
    )
    parts.insert(
        0,
        f"{machine()}, {args.threads} threads; dpa3sim with {versions['dpa3sim']}, against "
        f"{against}; medians of {args.rounds} rounds in turn.",
    )
    report = "\n\n".join(parts)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    if args.output:
        write_report(args.output, "compare", report)


if __name__ == "__main__":
    main()
