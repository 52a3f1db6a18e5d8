"""Memory of trainings with many frames."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import re
from pathlib import Path
import numpy as np
import dpa3sim.train.trainer
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame, Frames
from training_support import recipe

def peak():  # unlike that of getrusage, it begins with this program
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20

before, rng = peak(), np.random.default_rng(0)
grid = 2.2 * np.array(np.meshgrid(*[np.arange(4)] * 3)).reshape(3, -1).T[:50]
numbers, cell, pbc = np.where(np.arange(50) % 3, 1, 8), 8.8 * np.eye(3), np.ones(3, dtype=bool)
frames = Frames.from_frames(
    Frame(
        System(numbers, grid + rng.normal(scale=0.1, size=(50, 3)), cell, pbc),
        float(rng.normal()), rng.normal(size=(50, 3)), np.eye(3), None, 1.0, f"made, frame {k}",
    )
    for k in range(10_000)
)
dpa3sim.train.trainer.Trainer(recipe(frames, None, steps=5, batch_size="auto:128")).run()
print(peak() - before)
"""


@pytest.mark.slow
def test_ten_thousand_frames_of_fifty_atoms_take_less_than_two_gib():
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests / 'train'}"}
    output = subprocess.check_output(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], env=environment, text=True
    )
    assert 0.0 < float(output) < 2.0
