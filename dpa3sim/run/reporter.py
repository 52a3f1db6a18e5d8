"""What a calculation says while it goes on, and how it hears that it should end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 30.0
"""Time between lines of progress in the log, and in output that is not a terminal, s."""


class Reporter:
    """The link between a calculation and its user; this one keeps silent.

    Attributes:
        terminal: whether :meth:`show` is seen.
    """

    terminal = False

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def show(self, status: str) -> None:
        """Replace the status line, which only a terminal has."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep a status line on the screen within."""
        yield

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Call ``stop`` within when the user asks for a clean end."""
        yield


class Narrator:
    """Tells of a run, on the terminal and in the log of its directory.

    Args:
        reporter: what the user sees. log: adds a line to the log.
        said: when the last line of progress was told, by :func:`time.monotonic`; 0 for never.
    """

    def __init__(self, reporter: Reporter, log: Callable[[str], object], said: float = 0.0) -> None:
        self._reporter, self._log, self._said = reporter, log, said

    def say(self, line: str) -> None:
        """Report and log a line."""
        self._log(line)
        self._reporter.say(line)

    def follow(self, line: str, at_once: bool = False) -> None:
        """Show progress in the status line; report or log it now and then, or ``at_once``."""
        self._reporter.show(line)
        now = time.monotonic()
        if now - self._said < LINE_SECONDS and not at_once:
            return
        self._said = now
        if self._reporter.terminal:
            self._log(line)
        else:
            self.say(line)
