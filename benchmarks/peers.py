"""What the comparisons share: workers that take turns, and the report."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MODELS = Path(os.environ.get("DPA3SIM_TEST_MODELS", ROOT.parent / "shared" / "models"))


def with_threads(threads: int) -> dict[str, str]:
    """The environment of a process that may use so many threads, whatever its libraries."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "DP_INTRA_OP_PARALLELISM_THREADS": str(threads),
        "DP_INTER_OP_PARALLELISM_THREADS": "1",
    }


class WorkerDiedError(Exception):
    """A worker process ended before it answered."""

    def __init__(self, side: str, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.side = side


class Worker:
    """A process of ``script --worker SIDE ARGUMENTS`` that answers requests, JSON line by line."""

    def __init__(
        self, script: str, side: str, python: str, arguments: Sequence[str], threads: int
    ) -> None:
        self._side = side
        self._process = subprocess.Popen(
            [python, script, "--worker", side, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if side == "dpa3sim" else subprocess.DEVNULL,
            text=True,
            env=with_threads(threads),
            cwd="/",
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            WorkerDiedError: there will be none.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise WorkerDiedError(self._side, self._process.returncode)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def answer_requests(answer: Callable[..., dict[str, Any]]) -> None:
    """In a worker: pass each request's entries to ``answer`` until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


def machine() -> str:
    """Processor and cores."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} cores of {cpu}"


def marks(name: str) -> tuple[str, str]:
    """Between which the report of this name stands in a document."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def write_report(path: Path, name: str, report: str) -> None:
    """Replace what stands between the marks of a report."""
    start, end = marks(name)
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n{report}\n{end}{after}", encoding="utf-8")
