"""The state of a run, from its files and its last session."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpa3sim.common.errors import INTERRUPTED
from dpa3sim.report.reading import Run, listing, mapping
from dpa3sim.run import directory as rundir

GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"
# Protocols that end after their steps, without a convergence criterion.
SIMULATIONS = ("md", "pimd")
CODES = {
    0: "done",
    2: "refused or failed",
    3: "not converged",
    4: "not finite, or unphysical",
    5: "some structures failed",
    6: "connection lost",
    INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        kind: :data:`GOOD`, :data:`DOUBTFUL` or :data:`BAD`.
        word: such as ``"converged"``. reasons: why.
        stale: whether the result is from a session before the last one.
    """

    kind: str
    word: str
    reasons: Sequence[str]
    stale: bool = False


def state_of(run: Run) -> State:
    """The state of a run."""
    if run.damage:
        return State(BAD, "damaged", [*run.damage, "the page shows everything that can be read"])
    if not run.sessions:
        return State(BAD, "unfinished", [f"{rundir.PROVENANCE} has no session: nothing was done"])
    last, result = run.sessions[-1], run.result
    code, error = last.get("exit_code"), failure(run.log, last.get("started"))
    stale = result is not None and (error is not None or code in (None, INTERRUPTED))
    if code is None:
        why = "no end was recorded: it is running, or was killed; the same command continues it"
        return State(DOUBTFUL, "unfinished", [why], stale)
    if code == INTERRUPTED:
        return State(DOUBTFUL, "interrupted", ["the same command continues it"], stale)
    if result is None and code == 0:
        return State(BAD, "damaged", [f"it ended without an error, but {rundir.RESULT} is missing"])
    reasons = [str(reason) for reason in listing((result or {}).get("reasons"))]
    if result is not None and not stale and code in (0, 3):
        return _finished(run, result, reasons)
    words = {3: "not converged", 4: "unphysical", 6: "connection lost"}
    if code == 4 and error is None:  # a result that counts as an error
        reasons = [str((result or {}).get("verdict_reason", CODES[4]))]
    elif error is not None:
        reasons = [error]
    word = words.get(code) if isinstance(code, int) else None
    return State(BAD, word or f"failed, exit code {code}", reasons, stale)


def _finished(run: Run, result: Mapping[str, Any], reasons: Sequence[str]) -> State:
    simulation = run.protocol in SIMULATIONS
    if result.get("converged") is True:
        return State(GOOD, "complete" if simulation else "converged", reasons)
    return State(BAD, "not complete" if simulation else "not converged", reasons)


def failure(log: Sequence[str], since: Any) -> str | None:
    """The last error in the log, if it is not older than ``since``."""
    for line in reversed(log):
        found = re.match(r"(\S+) failed: (.*)", line)
        if found:
            # Times in one format and zone are in alphabetical order.
            return None if isinstance(since, str) and found[1] < since else found[2]
    return None


def meaning(code: Any) -> str:
    """An exit code in words, or that a session has no recorded end."""
    if code is None:
        return "no end recorded"
    return f"{code}, {CODES[code]}" if isinstance(code, int) and code in CODES else str(code)


def seconds_of(session: Mapping[str, Any]) -> float | None:
    """The duration of a session, s; None if it is not known."""
    from datetime import datetime

    times = []
    for name in ("started", "ended"):
        try:
            times.append(datetime.strptime(str(session.get(name)), "%Y-%m-%dT%H:%M:%S%z"))
        except ValueError:
            return None
    return (times[1] - times[0]).total_seconds()


def model_of(run: Run) -> Mapping[str, Any]:
    """The known facts about the model."""
    for source in (*reversed(run.sessions), run.result or {}):
        found = mapping(source.get("model"))
        if found:
            return found
    return {}
