"""Several processes that train: those of :mod:`dpa3sim.parallel.processes`, in one group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from dpa3sim.common.errors import RankLostError
from dpa3sim.parallel import processes
from dpa3sim.parallel.processes import Meeting
from dpa3sim.train.team import Alone, Team, Together

T = TypeVar("T")

# How long ranks wait until all are prepared. The end of a rank is noticed without it, and ranks may
# be far apart: rank 0 finds the edges of all frames on the disk, the others search for them.
_PREPARATION = timedelta(hours=6)
_CONTINUES = "the same command continues from the last saved state"


def run(ranks: int, work: Callable[[Team], T], device: torch.device) -> T:
    """Do the same work in several processes at once; see :func:`processes.run`.

    Args:
        ranks: how many of this machine; within torchrun or srun, which have decided it, 1.
        work: what each of them does; it is pickled for the children.
        device: the CPU, or ``cuda``, of which each process of a machine takes another one.
    """
    if ranks == 1 and processes.place() is None:
        return work(Alone())
    return processes.run(ranks, partial(_connected, work), device, _CONTINUES)


def _connected(work: Callable[[Team], T], meeting: Meeting) -> T:
    """Do the work in the default group of torch.distributed.

    Raises:
        RankLostError: another rank does not come.
    """
    me = meeting.place
    # Small tensors on the CPU decide the course, and must not wait for a GPU.
    backend = "gloo" if meeting.device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(
            backend,
            store=meeting.store,
            rank=me.rank,
            world_size=me.size,
            timeout=meeting.patience,
        )
    except RuntimeError as error:
        raise RankLostError(f"rank {me.rank} does not find the others: {error}") from error
    succeeded = False
    try:
        c10d._set_pg_timeout(_PREPARATION)
        result = work(Together())
        succeeded = True
        return result
    finally:
        if succeeded or not me.rank:  # others tell first why they fail, then end
            dist.destroy_process_group()
