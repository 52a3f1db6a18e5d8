"""Files that are never half written, and folders that one process has for itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Levels of calls: Python's own limit.
RECURSION_LIMIT = 1000


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the complete new one."""
    # File names need not be valid text, and stand in what is written.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def usual_recursion() -> Iterator[None]:
    """Keep what parses a file from others from going so deep that Python crashes.

    Some libraries (symfc) raise the limit for the whole process when they are imported.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(min(before, RECURSION_LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def is_part(path: Path) -> bool:
    """Whether a file is what a kill in the midst of :func:`atomic_write` leaves behind."""
    return path.name.startswith(".") and path.name.endswith(".part")


def lock_folder(folder: Path) -> int | None:
    """Keep other processes off a folder until the handle is closed; None where not possible.

    A file may stand for it, one that is never replaced: it can be locked as well.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    # Network file systems lock only files that are open for writing.
    handle = os.open(folder, os.O_RDONLY if folder.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle
