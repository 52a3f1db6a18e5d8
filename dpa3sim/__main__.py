"""``python -m dpa3sim`` is the command ``dpa3sim``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from dpa3sim.cli.signals import SIGNALS, Watch, interrupted
from dpa3sim.common.errors import INTERRUPTED


def run() -> NoReturn:
    """Run the command and end the process with its exit code."""
    watch = Watch()
    try:
        watch.install()
        # Threads of linear algebra that spin for 20 ms after their work take the cores from those
        # of the model; the variable is read when numpy and scipy are loaded.
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
        from dpa3sim.cli.main import main

        code = main()
        watch.end()
    except BaseException:
        watch.close()
        if not watch.raised:
            raise
        code = interrupted()
    # After an interrupt inside `exec`, which imports use, Python would end by that signal, not
    # with our exit code, even if it was handled; this call resets it.
    exec("")
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process; everything is on the disk except output that nobody reads."""
    caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in caught:
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    with suppress(AttributeError, ValueError):  # standard output is missing or closed
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again, and end with its own exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Only the shutdown of the interpreter could still be interrupted.
    for number in caught:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
