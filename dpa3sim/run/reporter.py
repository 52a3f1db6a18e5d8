"""What a calculation says while it goes on, and how it hears that it should end."""

from __future__ import annotations

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
