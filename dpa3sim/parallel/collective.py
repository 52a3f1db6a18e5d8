"""Exchanges between processes: gloo for what is on hosts, NCCL for what is on GPUs.

A team has groups of its own, so that there may be several of them in one process, and others that
use torch.distributed. Commands come when rank 0 has some, perhaps after hours; all else is waited
for no longer than a limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from dpa3sim.common.errors import NoAnswerError, RankLostError
from dpa3sim.parallel.processes import Meeting

T = TypeVar("T")

# How long a rank waits for a command.
_FOR_EVER = timedelta(days=3650)


class Collective:
    """The processes of a team, all of which make the same calls; see :class:`exchange.Ranks`.

    Args:
        meeting: how they find each other.
        limit: s, how long an exchange waits for the slowest rank.

    Raises:
        RankLostError: another rank does not come.
    """

    def __init__(self, meeting: Meeting, limit: float) -> None:
        self.rank, self.size = meeting.place.rank, meeting.place.size
        self._limit = limit
        self._wait_for_all(meeting)
        self._commands = self._group(meeting, "commands", _FOR_EVER)
        self._data = self._group(meeting, "data", timedelta(seconds=limit))
        self._device_data = self._data
        if meeting.device.type == "cuda":
            store = PrefixStore("device", meeting.store)
            options = dist.ProcessGroupNCCL.Options()
            self._device_data = dist.ProcessGroupNCCL(store, self.rank, self.size, options)

    def _wait_for_all(self, meeting: Meeting) -> None:
        """Wait until all ranks are about to connect, which does not take notice of lost ones."""
        meeting.store.set(f"here {self.rank}", "")
        keys = [f"here {rank}" for rank in range(self.size)]
        end = time.monotonic() + meeting.patience.total_seconds()
        while not self._checked(lambda: meeting.store.check(keys)):
            if time.monotonic() > end:
                raise RankLostError(f"rank {self.rank} does not find the others")
            time.sleep(0.02)

    def _group(self, meeting: Meeting, name: str, limit: timedelta) -> Any:
        store = PrefixStore(name, meeting.store)
        arguments = store, self.rank, self.size, meeting.patience
        group = self._checked(lambda: dist.ProcessGroupGloo(*arguments))
        group._set_default_timeout(limit)
        return group

    def swap(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """See :class:`~dpa3sim.parallel.exchange.Ranks`."""
        out = rows.new_empty((sum(receive), *rows.shape[1:]))
        group = self._device_data if rows.is_cuda else self._data
        arguments = out, rows.contiguous(), list(receive), list(send)
        self._checked(lambda: group.alltoall_base(*arguments).wait())
        return out

    def gather(self, values: Tensor) -> Tensor:
        """See :class:`~dpa3sim.parallel.exchange.Ranks`."""
        out = [torch.empty_like(values) for _ in range(self.size)]
        self._checked(lambda: self._data.allgather([out], [values]).wait())
        return torch.stack(out)

    def share(self, values: Tensor) -> Tensor:
        """See :class:`~dpa3sim.parallel.exchange.Ranks`."""
        self._checked(lambda: self._data.broadcast(values, 0).wait())
        return values

    def tell(self, message: bytes) -> None:
        """Send a command from rank 0 to the others."""
        size = torch.tensor([len(message)])
        self._checked(lambda: self._commands.broadcast(size, 0).wait())
        self.share(_numbers(message))

    def hear(self) -> bytes:
        """The next command of rank 0, however long it takes."""
        size = torch.zeros(1, dtype=torch.int64)
        self._checked(lambda: self._commands.broadcast(size, 0).wait())
        return _text(self.share(torch.empty(int(size), dtype=torch.uint8)))

    def collect(self, message: bytes) -> list[bytes]:
        """Messages of all ranks, on rank 0; nothing on the others."""
        sizes = self.gather(torch.tensor([len(message)], dtype=torch.float64))[:, 0].int().tolist()
        nothing = [0] * self.size
        receive = sizes if self.rank == 0 else nothing
        found = self.swap(_numbers(message), [len(message), *nothing[1:]], receive)
        return [_text(part) for part in found.split(receive)] if self.rank == 0 else []

    def _checked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:
            if "imed out" in str(error):
                limit = f"no answer for {self._limit:g} s"
                raise NoAnswerError(f"rank {self.rank} waits for another one: {limit}") from error
            reason = str(error).partition(". This is")[0].rpartition("] ")[2]
            raise RankLostError(f"rank {self.rank} cannot reach another one: {reason}") from error


def _numbers(message: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(message, dtype=np.uint8).copy())


def _text(numbers: Tensor) -> bytes:
    return numbers.numpy().tobytes()
