"""``python -m dpa3sim`` is the command ``dpa3sim``."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command that the process was started for, and end with its exit code."""
    # Threads of linear algebra that wait for more work, busily and for 20 ms, take the cores from
    # those of the model; read when numpy and scipy are loaded.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    try:
        from dpa3sim.cli.main import main

        code = main()
    except KeyboardInterrupt:  # before, or after, the command
        print("dpa3sim: interrupted", file=sys.stderr)
        code = 130
    # If an interrupt came inside of `exec`, as imports use it, Python would end by that signal
    # instead of with our code, handled or not; this makes it forget.
    exec("")
    # All is on the disk: nothing is left to be interrupted but the end of the interpreter.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
