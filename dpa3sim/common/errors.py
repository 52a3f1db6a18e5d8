"""The errors a user can meet, each with the exit code that the command line gives it."""

from __future__ import annotations

import errno

DONE, BAD_INPUT, NOT_CONVERGED, UNPHYSICAL, SOME_FAILED, CONNECTION_LOST = 0, 2, 3, 4, 5, 6
INTERRUPTED = 130
EXIT_CODES = {
    DONE: "done",
    BAD_INPUT: "bad usage or input, nothing was computed",
    NOT_CONVERGED: "not converged, or a part of it",
    UNPHYSICAL: "not finite, or unphysical",
    SOME_FAILED: "some of many failed, the others are there",
    CONNECTION_LOST: "connection lost (i-PI)",
    INTERRUPTED: "interrupted, the state is saved",
}
"""What the exit code of a command means, whichever it is."""
# The list of the heads of a model has its place in a message, the content of a file has not.
_LONGEST = 1400


class Dpa3simError(Exception):
    """Base of every error that dpa3sim raises on purpose; its text is meant for the user."""

    exit_code = BAD_INPUT

    def __str__(self) -> str:
        """One line that a terminal shows as it is, whatever it quotes from a file."""
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else _escaped(c) for c in text)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error, of Python, of torch on any device or of its allocator, means that."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class InputError(Dpa3simError, ValueError):
    """Bad usage or a structure that cannot be computed; nothing was computed."""


class CheckpointError(Dpa3simError):
    """A model file that is damaged, malformed, malicious or of an unsupported kind."""


class DownloadError(Dpa3simError):
    """A model could not be fetched, or what was fetched is not what was asked for."""


class NotConvergedError(Dpa3simError):
    """A part of a calculation did not converge, and what builds on it was not done."""

    exit_code = NOT_CONVERGED


class NonFiniteError(Dpa3simError):
    """The model returned NaN or infinity for a structure that passed the input checks."""

    exit_code = UNPHYSICAL


class UnphysicalError(Dpa3simError):
    """A part of a calculation has a result that what builds on it cannot use."""

    exit_code = UNPHYSICAL


class OutOfMemoryError(Dpa3simError):
    """A single structure needs more memory than there is, even in the most frugal way."""


class StorageError(Dpa3simError):
    """A file could not be written: the disk is full, or closed to us. What was saved is whole."""

    @classmethod
    def of(cls, error: OSError, place: object = "") -> StorageError:
        """What the user is told of an error of the system, at a file or, if unknown, ``place``."""
        name = error.filename or place
        reason = error.strerror or str(error) or type(error).__name__
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            hint = "; what was saved before is whole: make room, then the same command continues"
        return cls(f"{name}: {reason}{hint}" if name else reason + hint)


class EngineError(Dpa3simError):
    """A client of the engine got no answer."""


class RefusedError(Dpa3simError):
    """What i-PI asked for was not done: other atoms than those of the structure."""


class ProtocolError(RefusedError):
    """What came over a connection is not the i-PI protocol."""


class ConnectionLostError(Dpa3simError):
    """The other side of a connection is gone, in the middle of something or before it began."""

    exit_code = CONNECTION_LOST


class Dpa3simWarning(UserWarning):
    """A result that is valid but that the user must know something about."""
