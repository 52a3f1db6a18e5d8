"""Relaxing 1000 small crystals: one command, against one after the other through ASE.

    python benchmarks/screening.py --peer ENVIRONMENT/bin/python --output docs/benchmarks.md

The crystals are prototypes of 2 to 12 atoms with 20 elements, rattled; atoms and cells are relaxed
to 0.01 eV/Å and 0.05 GPa. `dpa3sim relax --screen` does all of them, start of the program
included; a sample is done by the same steps through ASE with dpa3sim's calculator, and, in the
environment of ``--peer``, with deepmd-kit's, models loaded and warm. ``--kills N`` ends the command
N times on the way by SIGKILL, and starts it again.
"""

from __future__ import annotations

import argparse
import itertools
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import MODELS, ROOT, Worker, answer_requests, machine, with_threads, write_report

CHECKPOINT = MODELS / "2025-03-14-dpa3-openlam.pth"
ELEMENTS = "Li Na K Mg Ca Al Ga Si Ti V Cr Mn Fe Co Ni Cu Zn Ag Pd Pt".split()
FMAX, SMAX, STEPS = 0.01, 0.05, 300
GPA = 1 / 160.21766208  # eV/Å^3


# -- crystals ------------------------------------------------------------------------------------


def prototypes() -> dict[str, Any]:
    """Crystals with elements X, Y and Z, the nearest neighbours 1 Å apart."""
    from ase import Atoms
    from ase.build import bulk

    def cell(symbols: str, a: float, sites: list[tuple[float, ...]]) -> Atoms:
        return Atoms(symbols, cell=[a] * 3, scaled_positions=sites, pbc=True)

    faces = [(0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    fluorite = bulk("CaF2", "fluorite", a=4 / 3**0.5, cubic=True)
    rutile = Atoms(
        "TiO2TiO2", cell=[2.35, 2.35, 1.51], pbc=True,
        scaled_positions=[(0, 0, 0), (0.305, 0.305, 0), (0.695, 0.695, 0), (0.5, 0.5, 0.5),
                          (0.195, 0.805, 0.5), (0.805, 0.195, 0.5)],
    )  # fmt: skip
    found = {
        "CsCl": bulk("CsCl", "cesiumchloride", a=2 / 3**0.5),
        "NaCl": bulk("NaCl", "rocksalt", a=2.0),
        "NaCl cubic": bulk("NaCl", "rocksalt", a=2.0, cubic=True),
        "ZnS": bulk("ZnS", "zincblende", a=4 / 3**0.5),
        "wurtzite": bulk("ZnS", "wurtzite", a=1.633, c=2.667),
        "Cu3Au": cell("AuCu3", 2**0.5, [(0, 0, 0), *faces]),
        "perovskite": cell("CaTiO3", 2.0, [(0, 0, 0), (0.5, 0.5, 0.5), *faces]),
        "fluorite": fluorite,
        "rutile": rutile,
    }
    roles = {"Cs": "X", "Cl": "Y", "Na": "X", "Zn": "X", "S": "Y", "Au": "X", "Cu": "Y"}
    roles |= {"Ca": "X", "Ti": "Z", "O": "Y", "F": "Y"}
    for atoms in found.values():
        atoms.info["roles"] = [roles[symbol] for symbol in atoms.get_chemical_symbols()]
    return found


def crystals(count: int) -> Iterator[Any]:
    """So many different ones, always the same."""
    from ase.data import atomic_numbers, covalent_radii

    rng = np.random.default_rng(7)
    triples = list(itertools.permutations(ELEMENTS, 3))
    rng.shuffle(triples)
    for triple, (_, prototype) in zip(triples, itertools.cycle(prototypes().items()), strict=False):
        if count == 0:
            return
        count -= 1
        chosen = dict(zip("XYZ", triple, strict=True))
        atoms = prototype.copy()
        atoms.set_chemical_symbols([chosen[role] for role in atoms.info.pop("roles")])
        radii = np.mean([covalent_radii[atomic_numbers[s]] for s in atoms.get_chemical_symbols()])
        atoms.set_cell(2.05 * radii * atoms.cell, scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        yield atoms


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

    def answer(number: int, count: int) -> dict[str, Any]:
        atoms = next(itertools.islice(crystals(count), number, None))
        atoms.calc = calculator
        start = time.perf_counter()
        steps = relax_with_ase(atoms)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "steps": steps, "energy": atoms.get_potential_energy()}

    answer_requests(answer)


def screened(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time, memory and rows of the command, killed on the way as often as asked for."""
    from ase.io import write

    file, run = folder / "crystals.extxyz", folder / "run"
    write(file, list(crystals(args.count)), format="extxyz")
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


def sampled(args: argparse.Namespace, side: str, python: str, size: int) -> dict[str, Any]:
    """Relaxations of every so manyth crystal by one of the sides of ASE."""
    worker = Worker(__file__, side, python, [str(args.model)], args.threads)
    numbers = np.linspace(0, args.count - 1, size).astype(int).tolist()
    worker.ask(number=numbers[0], count=args.count)  # warm
    answers = [worker.ask(number=number, count=args.count) for number in numbers]
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
    with tempfile.TemporaryDirectory() as folder:
        whole = screened(args, Path(folder))
    sides = {"one by one, ASE, dpa3sim": sampled(args, "dpa3sim", sys.executable, args.sample)}
    if args.peer:
        name = "one by one, ASE, deepmd-kit"
        sides[name] = sampled(args, "deepmd-kit", args.peer, args.peer_sample)
    text = report(args, whole, sides)
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"whole": whole, **sides}))
    if args.output:
        write_report(args.output, "screening", text)


if __name__ == "__main__":
    main()
