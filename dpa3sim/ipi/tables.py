"""Tables of properties that i-PI writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpa3sim.errors import InputError

# More than a row has, so that a look at the end of a file finds the last one.
TAIL_BYTES = 2**14


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Columns of a table by the names that the input asked for, as ``potential{ase}``.

    Properties of several columns are left out.

    Raises:
        InputError: no such table.
    """
    names: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.startswith("#"):
                    break
                if match := re.match(r"# column +(\d+) +--> (\S+)", line):
                    names[int(match[1]) - 1] = match[2]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not names:
        raise InputError(f"{path}: no table of i-PI's properties")
    data = np.loadtxt(path, ndmin=2)
    if not len(data):
        return {name: np.zeros(0) for name in names.values()}
    return {name: data[:, column] for column, name in names.items()}


def last_row(path: Path) -> Sequence[float] | None:
    """The last complete row of a table that is being written; None where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    # The first may be the rest of a row.
    for line in reversed(lines[1:]):
        if line.strip() and not line.startswith(b"#"):
            return [float(word) for word in line.split()]
    return None
