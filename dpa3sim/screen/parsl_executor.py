"""Computes what waits in a screening's database by workers of Parsl, on one machine or many.

Every worker loads the model once and keeps it. Structures travel in chunks; those of a worker that
was lost are sent again in halves, so that a structure that kills workers is found. Only this
process writes the database, so that every result is in it once.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.errors import UNPHYSICAL, Dpa3simError, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.screen.calculation import Calculation, failure
from dpa3sim.screen.database import Database, Outcome, from_json
from dpa3sim.screen.runner import Progress, stream

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential

# A structure whose worker was lost so often is not tried again.
LOSSES = 3
# So many chunks wait in Parsl; more would only take memory.
OUTSTANDING = 256
# A worker's machine that is silent for so long is lost, s.
HEARTBEAT_THRESHOLD, HEARTBEAT_PERIOD = 30, 5


@lru_cache(maxsize=1)
def _resident(model: ModelSettings, threads: int | None) -> Potential:
    """The model of this process, loaded when first asked for."""
    import torch

    from dpa3sim.potential.potential import Potential

    if threads:
        torch.set_num_threads(threads)
    return Potential.load(model)


def compute_chunk(
    calculation: Calculation,
    model: ModelSettings,
    threads: int | None,
    structures: list[tuple[int, str, str | None]],
    at_once: int,
) -> list[tuple[int, Outcome]]:
    """In a worker: compute some structures, and return what came of them.

    Args:
        calculation, model, at_once: see :func:`compute`.
        threads: of this process; None is torch's choice.
        structures: id, structure, and how far an earlier try came.
    """
    found: list[tuple[int, Outcome]] = []
    items = [(number, from_json(text)) for number, text, _ in structures]
    known = {number: progress for number, _, progress in structures}

    def take(number: int, outcome: Outcome) -> None:
        found.append((number, outcome))

    stream(items, calculation, _resident(model, threads), take, at_once, known.get)
    return found


def compute(
    database: Database,
    calculation: Calculation,
    model: ModelSettings,
    progress: Progress,
    *,
    folder: Path,
    config_file: Path | None,
    workers: int,
    chunk: int,
    at_once: int,
) -> None:
    """Compute all structures that wait; see :func:`dpa3sim.screen.runner.compute`.

    Args:
        database, calculation, progress, at_once: see there.
        model: what workers load.
        folder: Parsl keeps its logs there.
        config_file: Python file that defines ``config``, a :class:`parsl.config.Config`, with
            one worker for each accelerator; None is ``workers`` processes on this machine.
        workers: see ``config_file``.
        chunk: structures that travel together.

    Raises:
        InputError: Parsl is not installed, or the file defines no configuration.
    """
    try:
        import parsl
    except ImportError:
        raise InputError("parsl is not installed; pip install 'dpa3sim[parsl]'") from None
    # Parsl starts its programs by name, and this environment need not be an active one.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    waiting = database.waiting()
    chunks = [waiting[start : start + chunk] for start in range(0, len(waiting), chunk)]
    if not chunks:
        return
    threads = None if config_file else max(1, (os.cpu_count() or 1) // workers)
    config = _from_file(config_file) if config_file else _local(folder, workers)
    losses: Counter[int] = Counter()
    with parsl.load(config) as kernel:
        app: Any = parsl.python_app(compute_chunk, data_flow_kernel=kernel)
        running: dict[Future[Any], list[int]] = {}
        while chunks or running:
            while chunks and len(running) < OUTSTANDING:
                numbers = chunks.pop(0)
                sent = [(n, database.input_text(n), database.progress(n)) for n in numbers]
                running[app(calculation, model, threads, sent, at_once)] = numbers
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                outcomes, again = _collect(future, running.pop(future), losses)
                chunks[:0] = again
                for number, outcome in outcomes:
                    database.finish(number, outcome)
                    progress(number, outcome)


def _collect(
    future: Future[Any], numbers: list[int], losses: Counter[int]
) -> tuple[list[tuple[int, Outcome]], list[list[int]]]:
    """What a chunk gave, and what of it is to be sent again.

    Raises:
        Dpa3simError: an error of the worker that every other one would have too.
    """
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    try:
        return future.result(), []
    except (WorkerLost, ManagerLost):
        losses.update(numbers)
    except Dpa3simError:
        raise
    except Exception as error:
        raise InputError(f"a worker cannot compute ({type(error).__name__}: {error})") from None
    if len(numbers) > 1:
        middle = len(numbers) // 2
        return [], [numbers[:middle], numbers[middle:]]
    (number,) = numbers
    if losses[number] < LOSSES:
        return [], [numbers]
    reason = f"the worker died {losses[number]} times, the last time with this structure alone"
    return [(number, failure(reason, UNPHYSICAL, 0.0))], []


def _from_file(path: Path) -> Any:
    from parsl.config import Config

    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # the user's own program may raise anything
        raise InputError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise InputError(f"{path}: must define 'config', a parsl.config.Config")
    return config


def _local(folder: Path, workers: int) -> Any:
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        label="dpa3sim",
        address="127.0.0.1",
        max_workers_per_node=workers,
        cores_per_worker=1e-6,  # as many as were asked for, however few cores there are
        heartbeat_threshold=HEARTBEAT_THRESHOLD,
        heartbeat_period=HEARTBEAT_PERIOD,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor], run_dir=str(folder / "parsl"))
