"""The line below the printed ones that tells how far a long command is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

# Lines of progress in the log, and on a terminal that is none, are so far apart, s.
LINE_SECONDS = 30.0


class LiveLine:
    """A line that is replaced, on a terminal; elsewhere nothing.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, there is the line."""
        if not self._console.is_terminal or self._console.quiet:
            yield
            return
        from rich.live import Live

        with Live(console=self._console, transient=True, auto_refresh=False) as self._live:
            yield
        self._live = None

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._live is not None:
            self._live.update(text, refresh=True)
