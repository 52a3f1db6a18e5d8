"""The errors that a user can meet, each with its exit code on the command line."""

from __future__ import annotations

import errno

DONE, BAD_INPUT, NOT_CONVERGED, UNPHYSICAL, SOME_FAILED, CONNECTION_LOST = 0, 2, 3, 4, 5, 6
INTERRUPTED = 130
EXIT_CODES = {
    DONE: "done",
    BAD_INPUT: "bad usage or input; nothing was computed",
    NOT_CONVERGED: "the calculation, or a part of it, did not converge",
    UNPHYSICAL: "a result is not finite, or is unphysical; a training diverged",
    SOME_FAILED: "some of several structures failed; the results of the others are there",
    CONNECTION_LOST: "the connection to i-PI was lost, or to one of several processes",
    INTERRUPTED: "interrupted; the state is saved",
}
"""What the exit codes mean; they are the same for all commands."""
# Long enough for the list of the heads of a model, too short for the content of a file.
_LONGEST = 1400


class Dpa3simError(Exception):
    """Base class of every error that dpa3sim raises on purpose; its text is for the user."""

    exit_code = BAD_INPUT

    def __str__(self) -> str:
        """One line without control characters, whatever it quotes from a file."""
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else _escaped(c) for c in text)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error of Python, of torch or of its allocator means that memory ran out."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class InputError(Dpa3simError, ValueError):
    """Bad usage, or a structure that cannot be computed; nothing was computed."""


class CheckpointError(Dpa3simError):
    """A model file that is damaged, malformed, malicious or of an unsupported kind."""


class DownloadError(Dpa3simError):
    """A model could not be downloaded, or the download is not the requested file."""


class NotConvergedError(Dpa3simError):
    """A part of a calculation did not converge, and the parts that depend on it were not done."""

    exit_code = NOT_CONVERGED


class NonFiniteError(Dpa3simError):
    """The model returned NaN or infinity for a structure that passed the input checks."""

    exit_code = UNPHYSICAL


class UnphysicalError(Dpa3simError):
    """A part of a calculation has a result that the following parts cannot use."""

    exit_code = UNPHYSICAL


class OutOfMemoryError(Dpa3simError):
    """A single structure needs more memory than is available, even with the smallest blocks."""


class StorageError(Dpa3simError):
    """A file could not be written: the disk is full, or not writable. Saved files are intact."""

    @classmethod
    def of(cls, error: OSError, place: object = "") -> StorageError:
        """The message for an error of the system about a file or, if unknown, about ``place``."""
        name = error.filename or place
        reason = error.strerror or str(error) or type(error).__name__
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            hint = "; everything saved before is intact: make room, then the same command continues"
        return cls(f"{name}: {reason}{hint}" if name else reason + hint)


class EngineError(Dpa3simError):
    """A client of the engine received no answer."""


class RefusedError(Dpa3simError):
    """A request of i-PI was refused, because its atoms are not those of the structure."""


class ProtocolError(RefusedError):
    """A message on a connection does not follow the i-PI protocol."""


class ConnectionLostError(Dpa3simError):
    """The other side of a connection is gone, during an exchange or before it began."""

    exit_code = CONNECTION_LOST


class RankLostError(ConnectionLostError):
    """A process of several that work together is gone, and the others cannot go on without it."""


class NoAnswerError(RankLostError):
    """A process of several exists, but does not answer."""


class Dpa3simWarning(UserWarning):
    """A valid result about which the user must know something."""


def class_for_others(error: BaseException) -> type[Dpa3simError]:
    """The class here by which other processes learn of an error; one that is a bug loses a rank."""
    for known in type(error).__mro__:
        if issubclass(known, Dpa3simError) and known.__module__ == __name__:
            return known
    return OutOfMemoryError if memory_ran_out(error) else RankLostError
