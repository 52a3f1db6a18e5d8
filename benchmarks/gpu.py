"""Everything that is worth knowing of a GPU that is at hand for some minutes, in one table.

    benchmarks/gpu_wheels.sh                    # before, with a network: a folder of wheels
    python3 benchmarks/gpu.py --wheels gpu-wheels --json gpu.json
    python benchmarks/gpu.py --dry-run          # on a CPU, with tiny cases

Each part (``gpu_parts.py``) runs in a process of its own and in a time box, so that one that fails
or hangs loses nothing of the others. The file is written after every part. With ``--wheels``, what
this Python lacks is installed from that folder first, into a temporary one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers import machine, write_report

ROOT = Path(__file__).resolve().parents[1]
# Seconds for each part, the most important first; together less than eight minutes.
BOXES = {
    "limits": 20,
    "programs": 60,
    "parity": 60,
    "speed": 110,
    "memory": 45,
    "profile": 35,
    "training": 30,
    "batches": 30,
    "tests": 45,
    "tiles": 30,
}
TOTAL = 470.0
# What is worth a look in the table, of a record's numbers; the file has all of them.
HIDDEN = ("outputs", "tiles")
Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a part gave.

    Attributes:
        part: its name. ended: in words. seconds: how long it ran.
        records: what it found, all that was printed before it ended.
        errors: the end of what it wrote to its standard error.
    """

    part: str
    ended: str
    seconds: float
    records: list[Record]
    errors: str = ""


def run_part(part: str, command: Sequence[str], seconds: float) -> Outcome:
    """Run a part and all that it starts for at most so many seconds."""
    start, records = time.monotonic(), []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            records += [json.loads(line)] if line.startswith("{") and line.endswith("}\n") else []
        status = process.wait()
        timer.cancel()
        errors.seek(0)
        text = errors.read()[-2000:]
    took = time.monotonic() - start
    ended = "done" if status == 0 else f"failed with exit status {status}"
    if late.is_set():
        ended = f"stopped after {seconds:.0f} s"
    return Outcome(part, ended, took, records, "" if status == 0 else text)


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table of all records."""
    lines = ["| part | case | result |", "|---|---|---|"]
    for outcome in outcomes:
        lines.append(f"| **{outcome.part}** | {outcome.ended} | {outcome.seconds:.0f} s |")
        for record in outcome.records:
            shown = (
                f"{name} {in_words(value)}"
                for name, value in record.items()
                if name not in ("case", *HIDDEN)
            )
            lines.append(f"| {outcome.part} | {record['case']} | {', '.join(shown)} |")
        if outcome.errors:
            last = outcome.errors.strip().splitlines()[-1:] or [""]
            lines.append(f"| {outcome.part} | its last words | {last[0].replace('|', '/')} |")
    return "\n".join(lines)


def in_words(value: Any) -> str:
    """A number in four digits; anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def install(folder: Path, site: Path) -> None:
    """Install the wheels of a folder without a network, but for packages that are there."""
    wheels = [str(file) for file in sorted(folder.glob("*.whl"))]
    if not wheels:
        sys.exit(f"{folder} has no wheels; make them with benchmarks/gpu_wheels.sh")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(site), *wheels], check=True)


def card() -> dict[str, Any]:
    """The machine, and its GPU if there is one."""
    import torch

    found: dict[str, Any] = {
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "memory_GiB": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return found


def in_one_line(found: dict[str, Any]) -> str:
    """The machine in words."""
    gpu = f"{found['gpu']}, {found['memory_GiB']:.0f} GiB" if "gpu" in found else "no GPU"
    return f"{gpu}; {found['machine']}; Python {found['python']}, torch {found['torch']}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print the table; returns 0 if all of them came to their end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(BOXES), choices=BOXES)
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on a CPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds for everything")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--output", type=Path, help="file whose marked part the table replaces")
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + args.total
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(ROOT)]
        if args.wheels:
            install(args.wheels, Path(folder) / "site")
            paths.append(str(Path(folder) / "site"))
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
        # Programs that one part compiled are there for the next.
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(folder) / "triton"))
        found = card()
        outcomes = []
        for part in args.parts:
            seconds = min(BOXES[part], deadline - time.monotonic())
            if seconds < 1:
                outcomes.append(Outcome(part, "left out: no time was left", 0.0, []))
                continue
            command = [sys.executable, str(ROOT / "benchmarks/gpu_parts.py"), part]
            outcomes.append(run_part(part, command + ["--dry-run"] * args.dry_run, seconds))
            print(f"{part}: {outcomes[-1].ended}", file=sys.stderr, flush=True)
            if args.json:
                numbers = {**found, "parts": [asdict(outcome) for outcome in outcomes]}
                args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    report = f"{in_one_line(found)}\n\n{table(outcomes)}"
    print(report)
    if args.output:
        write_report(args.output, "gpu", report)
    return 0 if all(outcome.ended == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
