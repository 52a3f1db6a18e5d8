"""What several processes do in the tests: in a module that a child can import by its name."""

import os
import signal
import time

import torch

from dpa3sim.train.recording import MemoryRecorder
from dpa3sim.train.trainer import Trainer


def sums(team):
    """Sums over the ranks as each of them has them, what the ranks say to flags, and threads."""
    rows, exact = [], []
    for size in (1, 3, 1000, 100_003):
        random = torch.Generator().manual_seed(100 * team.rank + size)
        own = torch.randn(size, dtype=torch.float64, generator=random).exp()
        rows.append(team.sum(own))
        exact.append(sum(team.sum(own if team.rank == r else 0 * own) for r in range(team.size)))
    here = torch.zeros(team.size, sum(map(len, rows)), dtype=torch.float64)
    here[team.rank] = torch.cat(rows)
    flags = [team.any(team.rank == r) for r in range(team.size)]
    threads = team.sum(torch.tensor(torch.get_num_threads()))
    return team.sum(here), torch.cat(exact), (*flags, team.any(False)), int(threads)


class FileRecorder(MemoryRecorder):
    """States in a file that all ranks read."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def load(self):
        return torch.load(self.path, weights_only=False) if self.path.exists() else None

    def save(self, state):
        super().save(state)
        torch.save(self.state, self.path)


class At:
    """Says to stop at a step."""

    def __init__(self, step):
        self.left = step

    def __call__(self):
        self.left -= 1
        return self.left == 0


def train(recipes, team):
    """Train several models; the state of each."""
    found = []
    for given in recipes:
        recorder = MemoryRecorder()
        Trainer(given, recorder, team).run()
        found.append(recorder.state)
    return found


def train_in_parts(recipes, folder, team):
    """Train several models without and with a stop; the states of each."""
    found = []
    for number, given in enumerate(recipes):
        whole, parts = (FileRecorder(folder / f"{name}{number}") for name in ("whole", "parts"))
        Trainer(given, whole, team).run()
        stop = At(7 if team.rank == team.size - 1 else 0)
        assert Trainer(given, parts, team, stop=stop).run().steps == 7
        team.any(False)  # rank 0 has written the state
        assert Trainer(given, parts, team).run().finished
        found.append((whole.state, parts.state))
    return found


def end_alone(how, meanwhile, team):
    """The last rank ends; the others compute, or wait for it in a sum."""
    team.any(False)
    if team.rank == team.size - 1:
        how()
    while meanwhile == "computing":
        time.sleep(0.01)
    team.any(False)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error):
    raise error


def raise_in_first(error, team):
    """Rank 0 raises while the others wait for it."""
    if team.rank == 0:
        raise error
    team.any(False)


class Deadly:
    """Kills the process that receives it."""

    def __reduce__(self):
        return kill, ()

    def __call__(self, team):
        return team.any(False)
