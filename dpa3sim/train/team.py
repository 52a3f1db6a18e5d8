"""Processes that train one model together, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import distributed_c10d

from dpa3sim.common.errors import InputError, RankLostError

# How long an exchange waits for the slowest rank, as long as a step or a validation may take.
_STEP = timedelta(minutes=30)


class Team(Protocol):
    """Sums over the ranks, and what they agree on.

    Attributes:
        rank, size: which process this is, and of how many.
    """

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, the same bits on each."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""

    def meet(self, state: int) -> None:
        """Wait until all ranks are prepared; they must have the same state.

        From then on, they wait for each other only as long as a step may take.

        Raises:
            InputError: another rank has another state.
        """


class Alone:
    """One process."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        """See :class:`Team`."""
        return x

    def any(self, flag: bool) -> bool:
        """See :class:`Team`."""
        return flag

    def meet(self, state: int) -> None:
        """See :class:`Team`."""


class Together:
    """The processes of the default group of torch.distributed, which must be initialised.

    Both backends, gloo and NCCL, reduce each number in one place and send the result to all ranks,
    so that all have the same bits.
    """

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """See :class:`Team`.

        Raises:
            RankLostError: another rank is gone.
        """
        total = x.clone(memory_format=torch.contiguous_format)
        try:
            torch.distributed.all_reduce(total)
        except RuntimeError as error:
            raise RankLostError(f"rank {self.rank} cannot reach the others: {error}") from error
        return total

    def any(self, flag: bool) -> bool:
        """See :class:`Team`; no rank waits for its GPU."""
        return bool(self.sum(torch.tensor(int(flag))))

    def meet(self, state: int) -> None:
        """See :class:`Team`."""
        # The same sum everywhere, so that all ranks raise the error.
        found = self.sum(torch.tensor([state, state**2], dtype=torch.int64))
        distributed_c10d._set_pg_timeout(_STEP)
        if self.size * int(found[1]) != int(found[0]) ** 2:
            raise InputError(
                "the ranks do not find the same saved state: all machines must see the same run "
                "directory"
            )


def sum_gradients(
    team: Team, gradients: Mapping[str, Tensor], names: Sequence[str], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients added over all ranks, in one exchange.

    Args:
        team: the ranks.
        gradients: of this rank, by name; may be empty.
        names: all that any rank can have, in the same order everywhere.
        like: tensors with the shapes of the gradients.
    """
    if team.size == 1:
        return dict(gradients)
    parts = [
        gradients[name].flatten()
        if name in gradients
        else like[name].new_zeros(like[name].numel(), dtype=torch.float64)
        for name in names
    ]
    total = team.sum(torch.cat(parts))
    found = total.split([part.numel() for part in parts])
    return {name: x.view(like[name].shape) for name, x in zip(names, found, strict=True)}
