"""Tables of properties that i-PI writes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpa3sim.common.errors import InputError

# More than the length of a row, so that the end of a file contains the last one.
TAIL_BYTES = 2**14


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table by their names in the input, such as ``potential{ase}``.

    Scalar quantities have the shape ``(n_rows,)``, others ``(n_rows, n_columns)``.

    Raises:
        InputError: there is no such table.
    """
    names: dict[str, tuple[int, int | None]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.startswith("#"):
                    break
                match = re.match(r"# (?:column|cols\.) +(\d+)(?:-(\d+))? +--> (\S+)", line)
                if match:
                    last = int(match[2]) if match[2] else None
                    names[match[3]] = int(match[1]) - 1, last
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None
    if not names:
        raise InputError(f"{path}: not a table of i-PI's properties")
    width = max(last or first + 1 for first, last in names.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for a table without rows
        try:
            data = np.loadtxt(path, ndmin=2).reshape(-1, width)
        except ValueError as error:
            raise InputError(f"{path}: damaged ({error})") from None
    return {
        name: data[:, first] if last is None else data[:, first:last]
        for name, (first, last) in names.items()
    }


def last_row(path: Path) -> Sequence[float] | None:
    """The last complete row of a table that is being written; None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    # The first line may be the rest of a row.
    for line in reversed(lines[1:]):
        if line.strip() and not line.startswith(b"#"):
            return [float(word) for word in line.split()]
    return None
