"""Files that are never half-written, and folders that one process locks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Python's own recursion limit.
RECURSION_LIMIT = 1000


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is always either the old one or the complete new one."""
    # The content may contain file names, which need not be valid text.
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
    """Keep the recursion of parsers within limits, so that a file cannot crash Python.

    Some libraries (symfc) raise the limit of the whole process when they are imported.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(min(before, RECURSION_LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def is_part(path: Path) -> bool:
    """Whether a file is left over from a killed :func:`atomic_write`."""
    return path.name.startswith(".") and path.name.endswith(".part")


def lock_folder(folder: Path) -> int | None:
    """Lock a folder against other processes until the handle is closed; None if not possible.

    A file that is never replaced can be locked instead of the folder.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    # Network file systems can only lock files that are open for writing.
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
