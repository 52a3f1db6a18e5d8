"""Relaxing 1000 small crystals: one command, against one after the other through ASE.

    python benchmarks/screening.py --peer ENVIRONMENT/bin/python --output docs/benchmarks.md

The crystals are those of examples/many_crystals.py; atoms and cells are relaxed to 0.01 eV/Å and
0.05 GPa. `dpa3sim relax --screen` does all of them, start of the program
included; a sample is done by the same steps through ASE with dpa3sim's calculator, and, in the
environment of ``--peer``, with deepmd-kit's, models loaded and warm. ``--kills N`` ends the command
N times on the way by SIGKILL, and starts it again.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from peers import MODELS, ROOT, Worker, answer_requests, machine, with_threads, write_report

CHECKPOINT = MODELS / "2025-03-14-dpa3-openlam.pth"
FILE = "crystals.extxyz"
FMAX, SMAX, STEPS = 0.01, 0.05, 300
GPA = 1 / 160.21766208  # eV/Å^3


# -- the sides -----------------------------------------------------------------------------------


def relax_with_ase(atoms: Any) -> int:
    """Relax atoms and cell by ASE as ``dpa3sim relax`` does; returns the number of steps."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE, LBFGS

    target, steps = FrechetCellFilter(atoms), 0

    def largest(forces: np.ndarray) -> float:
        return float(np.linalg.norm(forces, axis=1).max())

    def done() -> bool:
        stress = np.abs(atoms.get_stress()).max() / GPA
        return largest(atoms.get_forces()) <= FMAX and bool(stress <= SMAX)

    while steps < STEPS and not done():
        rough = largest(target.get_forces()) > 1.0
        moves = (FIRE if rough else LBFGS)(target, logfile=None).irun(fmax=0.0, steps=STEPS - steps)
        next(moves)
        for _ in moves:
            steps += 1
            if done() or (rough and largest(target.get_forces()) <= 1.0):
                break
    return steps


def work(side: str, model: str) -> None:
    """Relax on request, by the number of the crystal."""
    warnings.simplefilter("ignore")
    calculator: Any
    if side == "dpa3sim":
        from dpa3sim import DPA3Calculator

        calculator = DPA3Calculator(model)
    else:
        from deepmd.calculator import DP

        calculator = DP(model)

    def answer(file: str, number: int) -> dict[str, Any]:
        from ase.io import read

        atoms: Any = read(file, index=number)
        atoms.calc = calculator
        start = time.perf_counter()
        steps = relax_with_ase(atoms)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "steps": steps, "energy": atoms.get_potential_energy()}

    answer_requests(answer)


def screened(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time, memory and rows of the command, killed on the way as often as asked for."""
    file, run = folder / FILE, folder / "run"
    command = [sys.executable, "-m", "dpa3sim", "relax", str(file), "--cell", "full"]
    command += ["--fmax", str(FMAX), "--smax", str(SMAX), "--steps", str(STEPS)]
    command += ["--model", str(args.model), "--screen", str(run)]
    kills, generator, start = 0, random.Random(1), time.perf_counter()
    while True:
        process = subprocess.Popen(command, env=with_threads(args.threads), cwd=ROOT)
        if kills < args.kills:
            known = rows_done(run)
            goal = known + generator.randint(1, max(1, args.count // (args.kills + 1)))
            while process.poll() is None and rows_done(run) < goal:
                time.sleep(0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                continue
        if process.wait() not in (0, 3, 5):
            raise SystemExit(f"the screening ended with exit code {process.returncode}")
        break
    seconds = time.perf_counter() - start
    with sqlite3.connect(run / "results.sqlite") as database:
        query = "SELECT position, state, attempts, json_extract(result, '$.n_steps'), "
        query += "json_extract(result, '$.energy_eV') FROM structures ORDER BY position"
        rows = database.execute(query).fetchall()
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seconds": seconds, "rows": rows, "kills": kills, "memory": memory}


def rows_done(run: Path) -> int:
    """How many structures have a result."""
    try:
        with sqlite3.connect(f"file:{run / 'results.sqlite'}?mode=ro", uri=True) as database:
            query = "SELECT COUNT(*) FROM structures WHERE state != 'waiting'"
            return int(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


# -- the report ----------------------------------------------------------------------------------


def sampled(
    args: argparse.Namespace, folder: Path, side: str, python: str, size: int
) -> dict[str, Any]:
    """Relaxations of every so manyth crystal by one of the sides of ASE."""
    worker = Worker(__file__, side, python, [str(args.model)], args.threads)
    numbers = np.linspace(0, args.count - 1, size).astype(int).tolist()
    file = str(folder / FILE)
    worker.ask(file=file, number=numbers[0])  # warm
    answers = [worker.ask(file=file, number=number) for number in numbers]
    worker.end()
    seconds = [answer["seconds"] for answer in answers]
    steps = float(np.mean([answer["steps"] for answer in answers]))
    energies = {n: a["energy"] for n, a in zip(numbers, answers, strict=True)}
    return {"seconds": float(np.mean(seconds)), "steps": steps, "energies": energies, "size": size}


def report(args: argparse.Namespace, whole: dict[str, Any], sides: dict[str, Any]) -> str:
    """The table."""
    rows = whole["rows"]
    states = [row[1] for row in rows]
    once = [row[0] for row in rows] == list(range(1, args.count + 1))
    once = once and {row[2] for row in rows} == {1}
    per = whole["seconds"] / len(rows)
    mean_steps = np.mean([row[3] for row in rows if row[3] is not None])
    lines = [
        f"{machine()}, {args.threads} threads. {len(rows)} crystals: {states.count('done')} done, "
        f"{states.count('not_converged')} not converged in {STEPS} steps, "
        f"{states.count('failed')} failed; peak memory {whole['memory']:.2f} GiB; killed "
        f"{whole['kills']} times; every crystal {'exactly once' if once else 'NOT ONCE'} in the "
        "result.",
        "",
        "| | crystals | steps, mean | s a crystal | crystals an hour | ratio |",
        "|---|---|---|---|---|---|",
        f"| `dpa3sim relax --screen`, whole command | {len(rows)} | {mean_steps:.0f} | {per:.3f} | "
        f"{3600 / per:.0f} | |",
    ]
    for name, side in sides.items():
        lines.append(
            f"| {name} | {side['size']} | {side['steps']:.0f} | {side['seconds']:.3f} | "
            f"{3600 / side['seconds']:.0f} | **{side['seconds'] / per:.2f}** |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help="Python of an environment with deepmd-kit")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="frozen model (.pth)")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=40)
    parser.add_argument("--peer-sample", type=int, default=20)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="file whose marked part the table replaces")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = ROOT / "examples" / "many_crystals.py"
        subprocess.run([sys.executable, generator, str(args.count)], cwd=folder, check=True)
        whole = screened(args, folder)
        sides = {
            "one by one, ASE, dpa3sim": sampled(
                args, folder, "dpa3sim", sys.executable, args.sample
            )
        }
        if args.peer:
            sides["one by one, ASE, deepmd-kit"] = sampled(
                args, folder, "deepmd-kit", args.peer, args.peer_sample
            )
    text = report(args, whole, sides)
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"whole": whole, **sides}))
    if args.output:
        write_report(args.output, "screening", text)


if __name__ == "__main__":
    main()
