"""Path integrals with the real i-PI: all beads as one batch, one by one, and ASE's client.

    python benchmarks/ipi.py --peer ~/deepmd-env/bin/python --checkpoint openlam.pth

24 atoms of water, 8 and 32 beads, the embedded model. Every run is a server and a client of their
own, in turn, round by round; the rate is that of the steps after the first ones, as they appear
in i-PI's output. The peer is ASE's ``SocketClient`` around deepmd-kit's calculator with the same
weights. Exit code 1 if a target is missed: a batch is never slower than one by one, the socket and
what we do besides computing take less than 5 % of the time, the peer is 5 times slower.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from peers import MODELS, ROOT, machine, with_threads, write_report

STRUCTURE = ROOT / "tests" / "data" / "ipi" / "water8.extxyz"
CHECKPOINT = "2025-03-14-dpa3-openlam.pth"
OVERHEAD, FASTER = 0.05, 5.0
LIMIT = 3600.0
SIDES = {
    "batched": "dpa3sim, one batch",
    "single": "dpa3sim, one by one",
    "peer": "ASE SocketClient, deepmd-kit",
}
INPUT = """\
<simulation mode='md' verbosity='low'>
  <output prefix='sim'>
    <properties stride='1' filename='out' flush='1'> [ step, potential ] </properties>
  </output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 31415 </seed></prng>
  <ffsocket name='dpa3' mode='unix' pbc='false'>
    <address> {name} </address>
    <latency> 1e-4 </latency>
    {batch}
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase' units='angstrom'> {structure} </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces><force forcefield='dpa3'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <thermostat mode='pile_l'><tau units='femtosecond'> 100 </tau></thermostat>
        <timestep units='femtosecond'> 0.25 </timestep>
      </dynamics>
    </motion>
    <ensemble><temperature units='kelvin'> 300 </temperature></ensemble>
  </system>
</simulation>
"""


# -- clients, each in a process of its own -------------------------------------------------------


def work(side: str, name: str, model: str, beads: int) -> None:
    """Serve one i-PI; the last line of the output tells what was done, as JSON."""
    from ase.io import read

    atoms = read(STRUCTURE)
    if side == "peer":
        import deepmd
        from ase.calculators.socketio import SocketClient
        from deepmd.calculator import DP

        atoms.calc = DP(model)
        atoms.get_potential_energy()
        SocketClient(unixsocket=name, timeout=LIMIT).run(atoms, use_stress=True)
        print(json.dumps({"versions": f"deepmd-kit {deepmd.__version__}"}))
        return
    import torch

    from dpa3sim import Potential
    from dpa3sim.clients.ipi import serve
    from dpa3sim.clients.ipi.serving import Settings
    from dpa3sim.kernels import libraries as native

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    batch = beads if side == "batched" else 1
    potential = Potential(model or None)
    statistics = serve(potential, atoms, name, Settings(batch=batch))
    versions = f"torch {torch.__version__}, kernels {native.status().build}"
    print(json.dumps({"versions": versions, **asdict(statistics)}))


# -- runs ----------------------------------------------------------------------------------------


def simulate(args: argparse.Namespace, side: str, beads: int, steps: int) -> dict[str, Any]:
    """One server with one client: beads per second, energies, what the client did."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    environment = with_threads(args.threads)
    python = args.peer if side == "peer" else sys.executable
    model = str(args.checkpoint.resolve()) if side == "peer" else args.model
    batch = f"<batch_size> {beads} </batch_size>" if side == "batched" else ""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        (Path(folder) / "input.xml").write_text(
            INPUT.format(steps=steps, name=name, batch=batch, beads=beads, structure=STRUCTURE)
        )
        ipi = Path(sys.executable).with_name("i-pi")
        server = subprocess.Popen(
            [str(ipi), "input.xml"], cwd=folder, stdout=log, stderr=log, env=environment
        )
        client = None
        try:
            wait_for(Path(f"/tmp/ipi_{name}").exists, [server], "i-PI's socket")
            client = subprocess.Popen(
                [python, __file__, "--worker", side, name, model, str(beads)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if side == "peer" else None,
                text=True,
                env=environment,
                cwd=folder,
            )
            rate = watch(Path(folder) / "sim.out", [server, client], args.warm_up, steps)
            output, _ = client.communicate(timeout=60)
            server.wait(60)
            potential = np.loadtxt(Path(folder) / "sim.out")[:, 1]
        finally:
            for process in (client, server):
                if process is not None:
                    process.kill()
                    process.wait()
    told: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return {"rate": beads * rate, "first_energy": float(potential[0]), **told}


def wait_for(condition: Any, processes: list[Any], what: str) -> None:
    """Poll until ``condition()``; RuntimeError if a process ends before."""
    end = time.monotonic() + LIMIT
    while not condition():
        ended = any(process.poll() is not None for process in processes)
        if (ended and not condition()) or time.monotonic() > end:
            raise RuntimeError(f"{what} did not come")
        time.sleep(0.005)


def watch(file: Path, processes: list[Any], first: int, last: int) -> float:
    """Steps per second between two steps, by their lines in i-PI's output."""

    def written() -> int:
        if not file.exists():
            return -1
        return sum(not line.startswith("#") for line in file.read_text().splitlines()) - 1

    wait_for(lambda: written() >= first, processes, f"step {first}")
    began, start = time.perf_counter(), written()
    wait_for(lambda: written() >= last, processes, f"step {last}")
    return (last - start) / (time.perf_counter() - began)


def measure(args: argparse.Namespace, beads: int) -> dict[str, Any]:
    """All sides in turn, round by round."""
    sides = [side for side in SIDES if side != "peer" or args.peer]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            steps = args.warm_up + (args.peer_steps if side == "peer" else args.steps)
            runs[side].append(simulate(args, side, beads, steps))
            print(json.dumps({"beads": beads, "side": side, **runs[side][-1]}), file=sys.stderr)
    result: dict[str, Any] = {"beads": beads}
    for side in sides:
        rates = [run["rate"] for run in runs[side]]
        energy = runs[side][0]["first_energy"] - runs["batched"][0]["first_energy"]
        result[side] = {"rate": float(np.median(rates)), "versions": runs[side][0]["versions"]}
        result[side]["energy_difference_hartree"] = energy
        if side != "batched":
            ratios = [
                a["rate"] / b["rate"] for a, b in zip(runs["batched"], runs[side], strict=True)
            ]
            result[side]["ratio"] = float(np.median(ratios))
            result[side]["ratios"] = min(ratios), max(ratios)
    batched = runs["batched"]
    result["calls_per_step"] = batched[0]["calls"] / (args.warm_up + args.steps + 1)
    shares = [
        [run[key] / (run["waiting"] + run["computing"] + run["exchanging"]) for run in batched]
        for key in ("exchanging", "waiting")
    ]
    result["messages"], result["waiting"] = (float(np.median(share)) for share in shares)
    return result


# -- the report ----------------------------------------------------------------------------------


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """Markdown, and what was measured with."""
    sides = [side for side in SIDES if side in results[0]]
    versions = "; ".join(f"{SIDES[side]}: {results[0][side]['versions']}" for side in sides)
    rates = " | ".join(f"{SIDES[side]}: beads/s" for side in sides)
    lines = [
        f"{machine()}, {args.threads} threads; {versions}; medians of {args.rounds} rounds.",
        "",
        f"| beads | {rates} | batch against one by one | against the peer | calls per step "
        "| messages, share of the time | waiting for i-PI |",
        "|" + "---|" * (len(sides) + 6),
    ]
    for r in results:
        rates = " | ".join(f"{r[side]['rate']:.1f}" for side in sides)
        ratios = [
            f"**{r[side]['ratio']:.2f}** ({r[side]['ratios'][0]:.2f} to {r[side]['ratios'][1]:.2f})"
            if side in r
            else "-"
            for side in ("single", "peer")
        ]
        lines.append(
            f"| {r['beads']} | {rates} | {ratios[0]} | {ratios[1]} | {r['calls_per_step']:.2f} "
            f"| {100 * r['messages']:.2f} % | {100 * r['waiting']:.1f} % |"
        )
    return "\n".join(lines)


def missed(results: list[dict[str, Any]]) -> list[str]:
    """The targets that were not met."""
    found = []
    for r in results:
        which = f"{r['beads']} beads"
        if r["single"]["ratio"] < 1.0:
            found.append(f"{which}: a batch is slower than one by one ({r['single']['ratio']:.2f})")
        if r["messages"] > OVERHEAD:
            found.append(f"{which}: messages take {100 * r['messages']:.1f} %")
        if abs(r["calls_per_step"] - 1.0) > 0.01:
            found.append(f"{which}: {r['calls_per_step']:.2f} calls per step")
        if "peer" in r and r["peer"]["ratio"] < FASTER:
            found.append(f"{which}: only {r['peer']['ratio']:.2f} times faster than the peer")
    return found


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help="Python of an environment with deepmd-kit 3.1.3 and ASE")
    parser.add_argument(
        "--checkpoint", type=Path, default=MODELS / CHECKPOINT, help="for the peer (.pth)"
    )
    parser.add_argument("--model", default="", help="for dpa3sim [embedded, the same weights]")
    parser.add_argument("--beads", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=40, help="that are timed")
    parser.add_argument("--peer-steps", type=int, default=5, help="that are timed of the peer")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before")
    parser.add_argument("--rounds", type=int, default=3, help="how often they take turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--output", type=Path, help="file whose marked part the table replaces")
    args = parser.parse_args()
    if args.worker:
        side, name, model, beads = args.worker
        work(side, name, model, int(beads))
        return 0
    results = [measure(args, beads) for beads in args.beads]
    text = report(args, results)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.output:
        write_report(args.output, "ipi", text)
    for line in missed(results):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
