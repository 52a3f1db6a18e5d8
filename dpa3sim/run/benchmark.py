"""Timing of an ASE calculator, the same for ours and for any other.

Imports nothing of dpa3sim, so that ``benchmarks/compare.py`` can use it in the environment of
another package.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# rms displacement between two evaluations, Å: about a femtosecond of molecular dynamics.
DISPLACEMENT = 0.003


def time_calls(atoms: Any, calls: int, seed: int) -> list[float]:
    """Seconds of each evaluation of energy, forces and stress while the atoms move.

    Args:
        atoms: ``ase.Atoms`` with a calculator; they are moved, the same way for the same seed.
        calls: number of evaluations.
        seed: of the displacements.
    """
    rng = np.random.default_rng(seed)
    seconds = []
    for _ in range(calls):
        atoms.positions += rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
        start = time.perf_counter()
        atoms.get_potential_energy()
        atoms.get_forces()
        if atoms.pbc.any():
            atoms.get_stress()
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def time_in_turn(slow: Any, fast: Any, turns: int, calls: int) -> tuple[list[float], list[float]]:
    """Seconds of evaluations of two calculators in turn, so that both see the same other load.

    Args:
        slow, fast: ``ase.Atoms`` with calculators; they are moved.
        turns: how often each has its turn. calls: evaluations of the fast one in each of its own.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for atoms in (slow, fast):
        time_calls(atoms, 2, seed=0)  # allocations and neighbour lists are not timed
    for turn in range(1, turns + 1):
        seconds[0].extend(time_calls(slow, 1, seed=turn))
        seconds[1].extend(time_calls(fast, calls, seed=turn))
    return seconds
