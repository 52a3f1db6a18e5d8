"""i-PI as a child process: start it, follow it, stop it, and report its errors."""

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
from dpa3sim.clients.ipi.simulate import ERROR, saved_step
from dpa3sim.clients.ipi.tables import last_row
from dpa3sim.common.errors import (
    INTERRUPTED,
    ConnectionLostError,
    Dpa3simError,
    InputError,
    NonFiniteError,
)

POLL_SECONDS = 0.2
LOG_TAIL = 2000


@dataclass(frozen=True)
class Status:
    """The progress of a simulation.

    Attributes:
        step, steps: steps done, and total number of steps.
        row: the last row of the table.
        seconds: time since the first row of this process; done: steps since then.
    """

    step: int
    steps: int
    row: tuple[float, ...]
    seconds: float
    done: int


def log_file(prefix: str) -> str:
    """Name of the file with i-PI's output."""
    return f"{prefix}.log"


class Server:
    """i-PI in a child process that runs ``PREFIX.xml`` from its last state to step ``steps``.

    The child uses this Python and this package. If this process ends or leaves the block first, the
    child ends after its step and saves its state.
    """

    def __init__(self, folder: Path, prefix: str, steps: int) -> None:
        self._folder, self._prefix, self._steps = folder, prefix, steps
        root = str(Path(dpa3sim.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        arguments = prefix, str(steps), str(os.getpid())
        self._log = folder / log_file(prefix)
        with self._log.open("ab") as log:
            self._offset = log.tell()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "dpa3sim.clients.ipi.simulate", *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C of the terminal goes to this process, which passes it on once.
                start_new_session=True,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self._child.terminate()
            self._child.wait()

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self._child.poll() is None

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            KeyboardInterrupt: the simulation was stopped from outside.
            InputError: i-PI or the model refuses the input. NonFiniteError: the model's result is
                not finite, or the model cannot evaluate the configuration.
            ConnectionLostError: i-PI was killed, or failed for another reason.
        """
        code = self._child.wait()
        # After a kill following the last save, everything is there.
        if code and saved_step(self._folder, self._prefix) < self._steps:
            _tell(code, self._log, self._offset)


def simulate(folder: Path, prefix: str, steps: int, progress: Callable[[Status], None]) -> None:
    """Run ``PREFIX.xml`` in ``folder`` from its last state to step ``steps``, and follow it.

    Raises:
        KeyboardInterrupt: this process was interrupted; others as :meth:`Server.finish`.
    """
    start = saved_step(folder, prefix)
    if start >= steps:
        return
    with Server(folder, prefix, steps) as server:
        shown, first, began = start, start, 0.0
        while server.running:
            row = last_row(folder / f"{prefix}.out")
            if row is not None and row[0] > shown:
                shown, now = int(row[0]), time.monotonic()
                if began:
                    progress(Status(shown, steps, tuple(row), now - began, shown - first))
                else:
                    first, began = shown, now
            time.sleep(POLL_SECONDS)
        server.finish()


def _tell(code: int, log: Path, offset: int) -> NoReturn:
    """Raise the error that the end of the child's log reports."""
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
