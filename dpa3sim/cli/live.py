"""The line below the output that shows the progress of a long command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

# Time between progress lines in the log, and in output that is not a terminal, s.
LINE_SECONDS = 30.0


class LiveLine:
    """A line that is replaced on a terminal; elsewhere it does nothing.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the line inside the block."""
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
