"""Durations in readable form."""

from __future__ import annotations


def elapsed(seconds: float) -> str:
    """A measured time: ``12 s``, ``3 min 5 s``, ``2 h 3 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def estimated(seconds: float) -> str:
    """An estimated time with two digits: ``0.3 s``, ``12 s``, ``5.0 min``, ``2.5 h``, ``3.0 d``."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds / 86400)} d"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
