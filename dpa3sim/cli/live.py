"""A terminal, or a file that stands in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from dpa3sim.cli.signals import stopped_by_signals
from dpa3sim.run.reporter import Reporter

if TYPE_CHECKING:
    from rich.live import Live

    from dpa3sim.potential.potential import Potential
    from dpa3sim.potential.settings import ModelSettings


class Terminal(Reporter):
    """Prints lines; on a real terminal, a status line below them is replaced again and again.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self.terminal = self._console.is_terminal

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line)

    def show(self, status: str) -> None:
        """Replace the status line."""
        if self._live is not None:
            self._live.update(status, refresh=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep a status line on the screen within."""
        if not self.terminal or self._console.quiet:
            yield
            return
        from rich.live import Live

        with Live(console=self._console, transient=True, auto_refresh=False) as self._live:
            yield
        self._live = None

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Call ``stop`` within at the first SIGINT or SIGTERM; the second one interrupts."""
        with stopped_by_signals(stop):
            yield

    def load(self, settings: ModelSettings) -> Potential:
        """Load a model, and say which one computes, and where."""
        from dpa3sim.potential.potential import Potential

        potential = Potential.load(settings)
        self.introduce(potential)
        return potential

    def introduce(self, potential: Potential) -> None:
        """Say which model computes, and where."""
        from dpa3sim.checkpoints.registry import embedded_path

        which = "embedded model" if potential.model.path == embedded_path() else "model"
        self._console.print(f"{which} {potential}", style="dim")
        deviation = potential.matmul_deviation
        if deviation is not None:
            changes = f"{potential.matmul} products change results by {deviation}"
            self._console.print(changes, style="dim")
