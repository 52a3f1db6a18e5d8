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
    """Run the command that the process was started for, and end with its exit code."""
    watch = Watch()
    try:
        watch.install()
        # Threads of linear algebra that wait for more work, busily and for 20 ms, take the cores
        # from those of the model; read when numpy and scipy are loaded.
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
        from dpa3sim.cli.main import main

        code = main()
        watch.end()
    except BaseException:
        watch.close()
        if not watch.raised:
            raise
        code = interrupted()
    # If an interrupt came inside of `exec`, as imports use it, Python would end by that signal
    # instead of with our code, handled or not; this makes it forget.
    exec("")
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process; all is on the disk but what nobody reads."""
    caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in caught:
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    with suppress(AttributeError, ValueError):  # there is no output, or it is closed
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again, and end with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Nothing is left to be interrupted but the end of the interpreter.
    for number in caught:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
