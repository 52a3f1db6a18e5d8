"""Dynamics on several ranks: killed and continued, on as many ranks and on another number."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from tests_support import ENVIRONMENT

pytestmark = pytest.mark.slow
STEPS = 12


def command(folder, ranks, steps=STEPS):
    words = ["md", str(folder.parent / "Si.extxyz"), "--out", str(folder), "--ranks", str(ranks)]
    words += ["--dtype", "float64", "--temperature", "600", "--ensemble", "nve"]
    words += ["--steps", str(steps), "--checkpoint", "4", "--interval", "1", "--no-plot"]
    return [sys.executable, "-m", "dpa3sim", *words]


def run(folder, ranks, until=None):
    """Run the command, or kill it when a file exists and has that many lines."""
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(folder, ranks), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < end:
            if until is not None and until():
                process.kill()
            time.sleep(0.02)
        process.kill()
        return process.returncode, process.stderr.read().decode()


def test_killed_and_continued(tmp_path):
    atoms = bulk("Si", cubic=True) * (3, 3, 3)
    atoms.rattle(0.02, seed=1)
    write(tmp_path / "Si.extxyz", atoms)
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    assert run(whole, 2)[0] == 0

    def half_way(folder):
        path = folder / "checkpoint.npz"
        return lambda: path.exists() and os.path.getsize(folder / "trajectory.extxyz") > 60_000

    for folder, ranks in ((parts, 2), (other, 1)):
        assert run(folder, 2, half_way(folder))[0] == -signal.SIGKILL
        assert run(folder, ranks)[0] == 0
    expected = read(whole / "trajectory.extxyz", ":")
    same, near = (read(folder / "trajectory.extxyz", ":") for folder in (parts, other))
    assert len(expected) == len(same) == len(near)
    for a, b, c in zip(expected, same, near, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert np.abs(a.positions - c.positions).max() < 1e-8
