"""Kills ``dpa3sim md`` at random moments until it is done, again and again, and compares.

    python tests/cli/md_kills.py FOLDER KILLS SEED ARGUMENTS_OF_THE_COMMAND...

Everything is imported once; each run is a forked process that SIGKILL ends at a random moment of
its whole life, from reading the arguments to writing the last picture. Prints how many kills there
were, after how many steps, and fails if anything differs from the run that nobody disturbed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import ase.io
import ase.md.nose_hoover_chain  # noqa: F401
import numpy as np
import scipy.fft  # noqa: F401
import torch  # noqa: F401

import dpa3sim.cli.commands.md
import dpa3sim.potential.potential
import dpa3sim.protocols.dynamics.replicas
import dpa3sim.protocols.dynamics.summary
import dpa3sim.run.provenance
import dpa3sim.run.recorder  # noqa: F401
from dpa3sim.cli.main import main


def run(folder: Path, arguments: list[str], life: float | None) -> int | None:
    """Exit code of a run of the command; None if it was killed after ``life`` seconds."""
    process = os.fork()
    if process == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(main(["md", *arguments, "--out", str(folder), "--no-plot"]))
    end = None if life is None else time.monotonic() + life
    while True:
        done, status = os.waitpid(process, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.001)


def content(folder: Path) -> dict[str, object]:
    """All that two equal runs have in common."""
    found: dict[str, object] = {
        p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".csv", ".extxyz", ".traj")
    }
    result = json.loads((folder / "result.json").read_text())
    found["result.json"] = {k: v for k, v in result.items() if k != "directory"}
    with np.load(folder / "checkpoint.npz") as data:
        found |= {f"state.{name}": data[name].tobytes() for name in data.files}
    return found


def main_of_kills() -> int:
    """See the top."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    arguments, rng = sys.argv[4:], random.Random(seed)
    began = time.monotonic()
    if run(folder / "whole", arguments, None) != 0:
        raise SystemExit("the undisturbed run failed")
    duration = time.monotonic() - began
    expected, killed, rounds = content(folder / "whole"), 0, 0
    while killed < kills:
        parts = folder / f"parts{rounds}"
        while (code := run(parts, arguments, rng.uniform(0, duration))) != 0:
            if code is not None:
                raise SystemExit(f"a continued run ended with {code}")
            killed += 1
        rounds += 1
        found = content(parts)
        differing = [name for name in expected if found.get(name) != expected[name]]
        if differing or found.keys() != expected.keys():
            raise SystemExit(f"after {killed} kills, run {rounds}: other {', '.join(differing)}")
    print(f"{killed} kills, {rounds} runs completed, each equal to the undisturbed one")
    return 0


if __name__ == "__main__":
    sys.exit(main_of_kills())
