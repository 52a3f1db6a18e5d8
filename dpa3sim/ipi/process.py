"""i-PI as a child process: started, followed, stopped, and its errors told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import dpa3sim
from dpa3sim.errors import (
    ConnectionLostError,
    Dpa3simError,
    InputError,
    NonFiniteError,
)
from dpa3sim.ipi.simulate import ERROR, INTERRUPTED, saved_step
from dpa3sim.ipi.tables import last_row

POLL_SECONDS = 0.2
LOG_TAIL = 2000


@dataclass(frozen=True)
class Status:
    """How far a simulation is.

    Attributes:
        step, steps: done, and to do in all.
        row: the last row of the table.
        seconds: since the first row of this process, without loading; done: steps since then.
    """

    step: int
    steps: int
    row: tuple[float, ...]
    seconds: float
    done: int


def log_file(prefix: str) -> str:
    """Name of the file that has what i-PI prints."""
    return f"{prefix}.log"


def simulate(folder: Path, prefix: str, steps: int, progress: Callable[[Status], None]) -> None:
    """Run ``PREFIX.xml`` in ``folder`` up to ``steps`` steps, from where it was.

    The child has this Python and this package. It ends after its step, with the state saved, when
    this process is interrupted or gone.

    Raises:
        KeyboardInterrupt: here, or the simulation was stopped from outside.
        InputError: i-PI or the model refuses the input. NonFiniteError: the model's answer is
            not finite, or the atoms are where it has none.
        ConnectionLostError: i-PI was killed, or failed for another reason.
    """
    start = saved_step(folder, prefix)
    if start >= steps:
        return
    root = str(Path(dpa3sim.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "dpa3sim.ipi.simulate", prefix, str(steps)]
    with (folder / log_file(prefix)).open("ab") as log:
        offset = log.tell()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # The terminal's Ctrl-C is for us, who pass it on once.
            start_new_session=True,
        )
    try:
        shown, first, began = start, start, 0.0
        while child.poll() is None:
            row = last_row(folder / f"{prefix}.out")
            if row is not None and row[0] > shown:
                shown, now = int(row[0]), time.monotonic()
                if began:
                    progress(Status(shown, steps, tuple(row), now - began, shown - first))
                else:
                    first, began = shown, now
            time.sleep(POLL_SECONDS)
    except BaseException:
        child.terminate()
        child.wait()
        raise
    # A kill after the last save has cost nothing.
    if child.returncode and saved_step(folder, prefix) < steps:
        _tell(child.returncode, folder / log_file(prefix), offset)


def _tell(code: int, log: Path, offset: int) -> NoReturn:
    """Raise what the end of the child's log says."""
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        raise ConnectionLostError(
            f"i-PI was killed by signal {-code}; the same command continues ({log})"
        )
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    ours = next((line for line in reversed(lines) if line.startswith(ERROR)), None)
    if ours is None:
        last = next((line for line in reversed(lines) if line.strip()), "no message")
        raise ConnectionLostError(f"i-PI failed: {last.strip()[:300]} ({log})")
    error: Dpa3simError = InputError(ours.removeprefix(ERROR))
    if code == NonFiniteError.exit_code:
        error = NonFiniteError(ours.removeprefix(ERROR))
    raise error
