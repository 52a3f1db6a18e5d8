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
