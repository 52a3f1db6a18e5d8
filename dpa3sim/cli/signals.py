"""SIGINT and SIGTERM end the command, whatever they interrupt.

Python raises the exception of a signal handler between two instructions of the running code. That
code may swallow it: an import with a bare ``except:``, a destructor, a callback from C. The signal
would be lost, and the command would continue with an incomplete module. Therefore a timer checks
soon after :class:`Interrupt` was raised, and then from time to time, whether the main thread is
still handling it, as it does in every ``except``, ``finally`` and ``with`` on the way to
:func:`dpa3sim.cli.main.main`. If not, the interrupt is raised again. No other code has to
cooperate: clean-up is not disturbed, and an exception caused by the interrupt counts as the
interrupt.

This module has no slow imports, because :mod:`dpa3sim.__main__` imports it first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dpa3sim.common.errors import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Times of the first and the later checks for a lost interrupt, s. The first is soon, because the
# running code may use an incomplete import; the later ones are rare, because clean-up is running.
FIRST_LOOK, NEXT_LOOKS = 0.05, 0.25
_HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows, where a lost interrupt stays lost


class Interrupt(KeyboardInterrupt):
    """A signal requests the end of the command; only a :class:`Watch` raises it."""


class Watch:
    """The handling of SIGINT and SIGTERM in the main thread, from :meth:`install` on.

    Attributes:
        came: whether a signal has arrived.
        raised: whether an interrupt was raised; then the command must end in any case.
        over: whether the command has ended, so that nothing is left to interrupt.
        stop: called by the first signal instead of raising.
    """

    def __init__(self) -> None:
        self.came = self.raised = self.over = False
        self.stop: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}
        self._timer = (0.0, 0.0)
        self._hooks = sys.unraisablehook, sys.excepthook

    def install(self) -> None:
        """Become the only watch."""
        global _watch
        _watch = self
        sys.unraisablehook, sys.excepthook = self._unraisable, self._uncaught
        for number in SIGNALS:
            # A background process of a shell without job control must ignore Ctrl-C.
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._catch(number, self._arrived)

    def close(self) -> None:
        """Stop watching: nothing is left to interrupt, and signals have no effect from here on."""
        self.over = True
        if self.raised and _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)

    def end(self) -> None:
        """Record that the command has ended by itself, unless a signal came before.

        Raises:
            Interrupt: a signal came and was lost.
        """
        was_over = self.over
        self.close()
        if self.raised and not was_over:
            raise Interrupt

    def remove(self) -> None:
        """Restore the previous handlers, timer and hooks."""
        global _watch
        self.close()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook, sys.excepthook = self._hooks
        _watch = None

    def check(self, put_off: bool = True) -> None:
        """Raise a lost interrupt; if ``put_off``, also one that was passed to :attr:`stop`."""
        if self.raised or (put_off and self.came):
            self._interrupt()

    def leave_to_parent(self) -> None:
        """Let signals end a forked child at once, without a message; the parent has the state."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)

    def _catch(self, number: int, handler: Callable[[int, object], None]) -> None:
        # Recorded first, because the next signal may come in between.
        self._before.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)

    def _arrived(self, signum: int, frame: object) -> None:
        if self.over:
            return
        first, self.came = not self.came, True
        if first and self.stop is not None:
            self.stop()
        else:
            self._interrupt()

    def _interrupt(self) -> None:
        if _HAS_TIMER:
            if not self.raised:
                self._timer = signal.getitimer(signal.ITIMER_REAL)
                self._catch(signal.SIGALRM, self._look)
            signal.setitimer(signal.ITIMER_REAL, FIRST_LOOK, NEXT_LOOKS)
        self.raised = True
        raise Interrupt

    def _look(self, signum: int, frame: object) -> None:
        if not self.over and not _comes_of_interrupt(sys.exception()):
            self._interrupt()

    def _unraisable(self, found: Any) -> None:
        """Suppress the message about an interrupt that Python drops; it will be raised again."""
        if not _comes_of_interrupt(found.exc_value):
            self._hooks[0](found)

    def _uncaught(self, kind: Any, error: BaseException, trace: Any) -> None:
        """The same for a C library that prints the exceptions that it drops."""
        if not _comes_of_interrupt(error):
            self._hooks[1](kind, error, trace)


_watch: Watch | None = None


def _in_child() -> None:
    if _watch is not None:
        _watch.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Whether an exception is an interrupt, or was raised because of one or while handling one."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if isinstance(error, Interrupt):
            return True
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            waiting += error.__context__, error.__cause__
    return False


@contextmanager
def interruptible() -> Iterator[Watch]:
    """In this block, SIGINT and SIGTERM raise :class:`Interrupt` until it has left the block.

    If a watch is installed already, this has no effect. It also has none outside the main thread,
    which is the only one that receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Watch()
        return
    if _watch is not None:
        yield _watch
        return
    watch = Watch()
    try:
        watch.install()
        yield watch
    finally:
        watch.remove()


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first SIGINT or SIGTERM; the second one interrupts at once.

    Raises:
        Interrupt: a signal came before.
    """
    with interruptible() as watch:
        watch.check()
        watch.stop = stop
        try:
            yield
        finally:
            watch.stop = None


def check(put_off: bool = True) -> None:
    """Raise a pending interrupt before something new begins; see :meth:`Watch.check`.

    Raises:
        Interrupt: one is pending.
    """
    if _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.check(put_off)


def interrupted() -> int:
    """Print that the command was interrupted; returns its exit code."""
    with suppress(OSError):  # the same Ctrl-C also ends the reader of our output
        print("dpa3sim: interrupted", file=sys.stderr)
    return INTERRUPTED
