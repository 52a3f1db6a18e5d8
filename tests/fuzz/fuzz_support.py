"""What all fuzzers share: mutations, limits for an example, and the short and the long mode.

In the short mode, that of the test suite, hypothesis tries a fixed set of examples. The long one,

    DPA3SIM_FUZZ_SECONDS=600 python -m pytest -s -m slow tests/fuzz

tries new ones for so many seconds of CPU time in each reader; ``-k structures`` is one reader,
``DPA3SIM_FUZZ_SEED=7`` where to begin. A failure prints the seed with which the same command finds
it again, and the example, made small.
"""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dpa3sim.common.errors import Dpa3simError

SECONDS = float(os.environ.get("DPA3SIM_FUZZ_SECONDS", "60"))
FIRST_SEED = int(os.environ.get("DPA3SIM_FUZZ_SEED", "1"))
# What an example may take: s of the processor and of the clock, and memory beyond what the process
# has, which it may neither use (in a library that handles MemoryError, this would be missed) nor
# ask for.
HANG_SECONDS, WAIT_SECONDS = 10.0, 60.0
MEMORY, ADDRESSES = 500 << 20, 2 << 30
# Longer lines are no clear message.
LONGEST_MESSAGE = 1500

_checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
_COMMON: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": _checks}

Check = Callable[[Any], None]


class HangError(BaseException):
    """An example took too long. No Exception: whoever handles those must not handle this."""


def short(strategy: st.SearchStrategy[Any], examples: int) -> Callable[[Check], Callable[[], None]]:
    """A test of a fixed set of examples, each within the limits."""

    def decorate(check: Check) -> Callable[[], None]:
        @settings(derandomize=True, max_examples=examples, **_COMMON)
        @given(strategy)
        def test(example: Any) -> None:
            with limits():
                check(example)

        test.__name__ = test.__qualname__ = check.__name__
        test.__module__ = check.__module__
        return test

    return decorate


def long(check: Check, strategy: st.SearchStrategy[Any]) -> None:
    """Try new examples until :data:`SECONDS` of CPU time are over."""
    number, count, end = FIRST_SEED, 0, time.process_time() + SECONDS
    while time.process_time() < end:

        def test(example: Any) -> None:
            nonlocal count
            count += 1
            with limits():
                check(example)

        phases = (Phase.generate, Phase.shrink)
        chosen = settings(max_examples=200, phases=phases, print_blob=False, **_COMMON)
        try:
            seed(number)(chosen(given(strategy)(test)))()
        except BaseException:
            print(f"\nDPA3SIM_FUZZ_SEED={number} finds this again")
            raise
        number += 1
        if number % 20 == 0 or time.process_time() >= end:
            seconds = SECONDS - (end - time.process_time())
            print(f"{check.__name__}: {count} examples, {seconds:.0f} CPU s, seeds below {number}")


@contextmanager
def limits() -> Iterator[None]:
    """Raise HangError after too long, and MemoryError inside for too much memory."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = {number: signal.signal(number, _hang) for number in (signal.SIGALRM, signal.SIGPROF)}
    # For a loop outside of Python, which no exception ends.
    faulthandler.dump_traceback_later(2 * WAIT_SECONDS, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, old[1]))
    _forget_peak()  # else an example could fail only once, and not be made small
    peak = _peak()
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, old)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)
    used = _peak() - peak
    assert used < MEMORY, f"{used >> 20} MiB of memory"


def _forget_peak() -> None:
    """Let :func:`_peak` begin anew, where the kernel can do that."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak() -> int:
    """The most memory that this process had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _hang(signum: int, frame: object) -> None:
    limit, what = (WAIT_SECONDS, "waiting") if signum == signal.SIGALRM else (HANG_SECONDS, "work")
    raise HangError(f"more than {limit:g} s of {what}")


@contextmanager
def refused_or_fine() -> Iterator[None]:
    """Swallow an error of ours that is a line that people can read; nothing else."""
    try:
        yield
    except Dpa3simError as error:
        assert_clear(error)


def assert_clear(error: Dpa3simError) -> None:
    """The message is one line, of a length that people read."""
    message = str(error)
    assert message.strip(), repr(error)
    assert not re.search(r"[\n\r]", message), message
    assert len(message) < LONGEST_MESSAGE, f"{len(message)} characters: {message[:200]}"
    assert "Traceback" not in message


# -- mutations -------------------------------------------------------------------------------------

NUMBERS = [
    *"0 -1 1 2 3 7 99 119 120 -5 0.5 1e400 -1e400 nan inf -inf NaN Infinity 1e12 1e-320".split(),
    *"1000000000000 2147483648 4294967296 9223372036854775808 -9223372036854775808".split(),
    *"0x10 1_000 1/0 1,5 ٣ 1j 1e 12345678 123456789012345678901234567890".split(),
    *("9" * 5000, "-" + "1" * 400, ""),
]
WORDS = [
    *NUMBERS,
    *"_JSON X Uuo H h2o T F true null None [] {} '' \" ' [[ ]] { } ( : = , ; # ! \\ é 𝔘 ~".split(),
    *"../../etc/passwd /dev/zero ${HOME} Direct Cartesian Selective loop_ data_".split(),
    *("\n", "\n\n", "\t", "\0", '{"a":' * 3000),
    *(letter * 4000 for letter in "A[({"),
]

_TOKEN = re.compile(rb"[A-Za-z_]+|[-+]?\d[\d.eE+-]*|[^\sA-Za-z\d]")

_place = st.floats(0, 1, exclude_max=True)
_edits = st.lists(
    st.one_of(
        st.tuples(st.just("token"), _place, st.sampled_from(WORDS)),
        st.tuples(st.just("number"), _place, st.sampled_from(NUMBERS)),
        st.tuples(st.just("flip"), _place, st.integers(0, 7)),
        st.tuples(st.just("insert"), _place, st.binary(max_size=20)),
        st.tuples(st.just("cut"), _place, st.integers(1, 200)),
        st.tuples(st.just("repeat"), _place, st.integers(1, 200)),
        st.tuples(st.just("end"), _place, st.none()),
        st.tuples(st.just("drop line"), _place, st.none()),
        st.tuples(st.just("repeat line"), _place, st.integers(1, 5)),
        st.tuples(st.just("swap lines"), _place, _place),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """A file with a few edits."""
    return _edits.map(lambda edits: _apply(content, edits))


def mutate(content: bytes, edits: list[tuple[str, float, Any]]) -> bytes:
    """Apply what :data:`edits` draws."""
    return _apply(content, edits)


edits = _edits


def _apply(data: bytes, edits: list[tuple[str, float, Any]]) -> bytes:
    for kind, place, value in edits:
        at = int(place * len(data))
        if kind in ("token", "number"):
            pattern = _TOKEN if kind == "token" else re.compile(rb"[-+]?\d[\d.eE+-]*")
            found = list(pattern.finditer(data))
            if found:
                match = found[int(place * len(found))]
                new = value.encode("utf-8", "surrogatepass")
                data = data[: match.start()] + new + data[match.end() :]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << value)]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + value :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + value] * 2 + data[at + value :]
        elif kind == "end":
            data = data[:at]
        else:
            data = _edit_lines(data, kind, place, value)
    return data


def _edit_lines(data: bytes, kind: str, place: float, value: Any) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at = int(place * len(lines))
    if kind == "drop line":
        del lines[at]
    elif kind == "repeat line":
        lines[at:at] = [lines[at]] * value
    else:
        other = int(value * len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return b"".join(lines)


slow = pytest.mark.slow
