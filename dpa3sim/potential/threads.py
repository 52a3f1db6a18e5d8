"""Fewer threads while other processes compute on the same cores.

The threads of an evaluation wait for each other some hundred times. Where another process runs on
the core of one of them, all wait until the scheduler gives it back, so that an evaluation takes
several times as long instead of a fair share. As many threads as there are free cores do not wait.
The number of threads changes no bit of a result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

VARIABLE = "DPA3SIM_THREADS"
"""Environment variable; with ``fixed``, evaluations always use all threads."""
INTERVAL = 0.25
"""How often one looks, s: the kernel counts in steps of 0.01 s."""
# A core counts as free if others use no more than this share of it.
SHARE = 0.35
_STATISTICS = Path("/proc/stat")


@dataclass(frozen=True)
class Usage:
    """What the cores of this process have done since some time ago.

    Attributes:
        at: time of reading, s. busy: core seconds of all processes. own: of this one.
        cores: how many there are.
    """

    at: float
    busy: float
    own: float
    cores: int


def read_usage() -> Usage | None:
    """The counters of the system; None where there are none (other systems than Linux).

    Processes that yield to this one, with a positive nice value, are left out if it has none.
    """
    try:
        allowed = os.sched_getaffinity(0)
        lines = _STATISTICS.read_text().splitlines()
    except (AttributeError, OSError):
        return None
    niced = os.getpriority(os.PRIO_PROCESS, 0) > 0
    ticks = 0
    for line in lines:
        name, *numbers = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in allowed:
            user, nice, system, _, _, interrupts, soft = map(int, numbers[:7])
            ticks += user + system + interrupts + soft + (nice if niced else 0)
    busy = ticks / os.sysconf("SC_CLK_TCK")
    return Usage(time.monotonic(), busy, time.process_time(), len(allowed))


class FreeCores:
    """Follows how many cores other processes leave.

    Args:
        read: where the counters come from.
    """

    def __init__(self, read: Callable[[], Usage | None] = read_usage) -> None:
        self._read, self._last, self._free = read, read(), float("inf")

    def threads(self, most: int) -> int:
        """How many threads of at most so many find a free core; at least one."""
        if most > 1 and self._last and time.monotonic() - self._last.at >= INTERVAL:
            self._look(self._last)
        return max(1, int(min(most, self._free + SHARE)))

    def _look(self, before: Usage) -> None:
        self._last = now = self._read()
        if now is None or now.at <= before.at:
            return
        others = (now.busy - before.busy - (now.own - before.own)) / (now.at - before.at)
        self._free = now.cores - max(0.0, others)


_free_cores: FreeCores | None = None


@contextmanager
def free_threads() -> Iterator[None]:
    """Within this context, torch and the kernels use as many threads as find a free core."""
    global _free_cores
    if os.environ.get(VARIABLE) == "fixed":
        yield
        return
    _free_cores = _free_cores or FreeCores()
    most = torch.get_num_threads()
    chosen = _free_cores.threads(most)
    if chosen == most:
        yield
        return
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(most)
