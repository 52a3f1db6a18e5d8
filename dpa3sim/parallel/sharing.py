"""How several structures are shared among ranks: whole ones side by side, large ones together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A rank needs so many atoms for exchanges to cost little, by the kind of its device. The second
# number is an estimate.
LEAST_ATOMS = {"cpu": 100, "cuda": 200}
# Structures are divided where the busiest rank would have more than this times the mean work.
_UNEVEN = 1.2


@dataclass(frozen=True)
class Sharing:
    """Who evaluates what.

    Attributes:
        together: structures that several ranks evaluate together, each with the number of ranks.
        alone: of each rank, the structures that it evaluates alone.
    """

    together: tuple[tuple[int, int], ...]
    alone: tuple[tuple[int, ...], ...]

    def busiest(self, sizes: Sequence[int]) -> float:
        """Atoms that the busiest rank evaluates, of structures of so many."""
        shared = sum(sizes[index] / parts for index, parts in self.together)
        return shared + max(sum(sizes[index] for index in own) for own in self.alone)

    def __str__(self) -> str:
        found = []
        if self.together:
            parts = sorted({parts for _, parts in self.together})
            count = " or ".join(map(str, parts))
            found.append(f"{_structures(len(self.together))} divided among {count} ranks")
        whole = sum(map(len, self.alone))
        if whole:
            ranks = sum(map(bool, self.alone))
            where = "1 rank" if ranks == 1 else f"{ranks} ranks, whole ones side by side"
            found.append(f"{_structures(whole)} on {where}")
        return ", ".join(found)

    @property
    def used(self) -> int:
        """How many ranks have work."""
        most = max((parts for _, parts in self.together), default=1)
        return max(most, sum(map(bool, self.alone)))


def _structures(count: int) -> str:
    return f"{count} structure" if count == 1 else f"{count} structures"


def share_out(sizes: Sequence[int], ranks: int, least: int) -> Sharing:
    """Share structures of so many atoms so that all ranks are busy equally long, if possible.

    Whole structures need no exchange. They go, the largest first, to the rank that has the least
    work. As long as that is uneven, the largest structure is divided instead, if each part of it
    has enough atoms. Only the sizes decide, so that the same structures come to the same ranks.

    Args:
        sizes: atoms of each structure. ranks: how many. least: atoms that make a part worthwhile.
    """
    order = sorted(range(len(sizes)), key=lambda k: (-sizes[k], k))
    together: list[tuple[int, int]] = []
    while True:
        alone: list[list[int]] = [[] for _ in range(ranks)]
        work = [0] * ranks
        for index in order[len(together) :]:
            rank = min(range(ranks), key=lambda r: (work[r], r))
            alone[rank].append(index)
            work[rank] += sizes[index]
        even = max(work) * ranks <= _UNEVEN * sum(work)
        next_parts = 0
        if len(together) < len(order):
            next_parts = min(ranks, sizes[order[len(together)]] // least)
        if even or next_parts < 2:
            return Sharing(tuple(together), tuple(map(tuple, alone)))
        together.append((order[len(together)], next_parts))
