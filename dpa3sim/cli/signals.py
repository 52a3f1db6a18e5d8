"""SIGINT and SIGTERM end the command, whatever they interrupt.

Python raises what the handler of a signal raises between two instructions of whatever runs then.
That may be code that swallows it: an import that tries something ``except:``, a destructor, a
callback from C. The signal would be lost, and the command would go on with half a module. So a
timer looks soon after :class:`Interrupt` was raised, and then now and again, whether the main
thread is still handling it, as it does in every ``except``, ``finally`` and ``with`` on the way to
:func:`dpa3sim.cli.main.main`. If not, it is raised once more. Nobody has to take part: clean-up is
left alone, and what somebody made of the interrupt counts as the interrupt.

This module imports nothing that takes time, since :mod:`dpa3sim.__main__` begins with it.
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
# When to look whether an interrupt has been lost, and how often after that, s. Soon, because what
# goes on computes with half an import; then rarely, because it is clean-up that goes on.
FIRST_LOOK, NEXT_LOOKS = 0.05, 0.25
_HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows, where a lost interrupt stays lost


class Interrupt(KeyboardInterrupt):
    """A signal wants the command to end; nothing but a :class:`Watch` raises it."""


class Watch:
    """What SIGINT and SIGTERM do in the main thread, from :meth:`install` on.

    Attributes:
        came: whether there was one.
        raised: whether it was raised; then the command is to end, whatever has become of that.
        over: whether the command has ended, so that there is nothing left to interrupt.
        stop: called by the first signal instead of raising.
    """

    def __init__(self) -> None:
        self.came = self.raised = self.over = False
        self.stop: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}
        self._timer = (0.0, 0.0)
        self._hooks = sys.unraisablehook, sys.excepthook

    def install(self) -> None:
        """Begin to watch, as the only one."""
        global _watch
        _watch = self
        sys.unraisablehook, sys.excepthook = self._unraisable, self._uncaught
        for number in SIGNALS:
            # What a shell without job control starts in its background has to ignore Ctrl-C.
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._catch(number, self._arrived)

    def close(self) -> None:
        """Nothing is left to interrupt: signals do nothing from here on."""
        self.over = True
        if self.raised and _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)

    def end(self) -> None:
        """The command has ended by itself, unless a signal came before this.

        Raises:
            Interrupt: one came, and was lost.
        """
        was_over = self.over
        self.close()
        if self.raised and not was_over:
            raise Interrupt

    def remove(self) -> None:
        """Leave handlers, timer and hooks as they were."""
        global _watch
        self.close()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook, sys.excepthook = self._hooks
        _watch = None

    def check(self, put_off: bool = True) -> None:
        """Raise an interrupt that was lost; if ``put_off``, one that :attr:`stop` got as well."""
        if self.raised or (put_off and self.came):
            self._interrupt()

    def leave_to_parent(self) -> None:
        """In a forked child: signals end it at once, without a word; the parent has the state."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)

    def _catch(self, number: int, handler: Callable[[int, object], None]) -> None:
        # Noted first: the next signal may come in between.
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
        """Not a word about an interrupt that Python drops: it comes again."""
        if not _comes_of_interrupt(found.exc_value):
            self._hooks[0](found)

    def _uncaught(self, kind: Any, error: BaseException, trace: Any) -> None:
        """The same where a library in C prints what it drops."""
        if not _comes_of_interrupt(error):
            self._hooks[1](kind, error, trace)


_watch: Watch | None = None


def _in_child() -> None:
    if _watch is not None:
        _watch.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Whether an exception is an interrupt, or was raised because of one or while handling it."""
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
    """Within, SIGINT and SIGTERM raise :class:`Interrupt`, until that has left this block.

    Where somebody watches already this adds nothing; neither does it outside of the main thread,
    which is the only one that gets signals.
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
    """Raise an interrupt where something new would begin; see :meth:`Watch.check`.

    Raises:
        Interrupt: there is one.
    """
    if _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.check(put_off)


def interrupted() -> int:
    """Say what ended the command; returns its exit code."""
    with suppress(OSError):  # the same Ctrl-C ends whoever reads us
        print("dpa3sim: interrupted", file=sys.stderr)
    return INTERRUPTED
