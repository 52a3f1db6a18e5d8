"""Candidate lists of many structures: kept, shared by similar ones, renewed when necessary."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass

from dpa3sim.graph.skin import SkinList
from dpa3sim.structures.system import System

# Number of lists to try for a structure in addition to its last one.
TRIES = 4
MAX_LISTS = 512
MAX_PAIRS = 20_000_000


@dataclass
class Counters:
    """Statistics of the incremental graph.

    Attributes:
        evaluations: evaluated structures; batches: number of batches.
        rebuilds: neighbour searches; row_updates: searches for a few moved atoms only.
        shared_lists: structures that use the list of another one.
        reused_edges, reused_angles: batches with unchanged edges, or unchanged angles.
        layouts: arrangements into blocks; retries: batches split or repeated for lack of memory.
    """

    evaluations: int = 0
    batches: int = 0
    rebuilds: int = 0
    row_updates: int = 0
    shared_lists: int = 0
    reused_edges: int = 0
    reused_angles: int = 0
    layouts: int = 0
    retries: int = 0

    def to_dict(self) -> dict[str, int]:
        """The counters as a dictionary."""
        return asdict(self)


class ListCache:
    """Finds a valid candidate list for a structure, and searches only if there is none.

    Structures with the same atoms and periodicity (displaced or strained supercells, beads,
    images of a path) share a list as long as its exact test allows it.

    Args:
        cutoff: Å; skin: additional radius of the search, Å.
        counters: the statistics to update.
    """

    def __init__(self, cutoff: float, skin: float, counters: Counters) -> None:
        self.cutoff, self.skin = cutoff, skin
        self._counters = counters
        self._lists: OrderedDict[bytes, list[SkinList]] = OrderedDict()

    def find(self, system: System, last: SkinList | None = None) -> SkinList:
        """A list that contains every pair within the cutoff.

        Args:
            system: the structure, with its types.
            last: the last list of the structure, if it is known to be invalid now.
        """
        key, positions, cell = system.list_key, system.positions, system.cell
        known = self._lists.setdefault(key, [])
        self._lists.move_to_end(key)
        for candidate in reversed(known[-TRIES:]):
            if candidate is not last and candidate.deformation(positions, cell).valid:
                self._counters.shared_lists += 1
                return candidate
        renewed = None
        if last is not None:
            renewed = last.with_moved_atoms(positions, last.deformation(positions, cell))
        if renewed is not None:
            self._counters.row_updates += 1
        else:
            self._counters.rebuilds += 1
            renewed = SkinList.search(positions, cell, system.pbc, self.cutoff, self.skin)
        self._lists[key] = [x for x in known if x is not last] + [renewed]
        self._evict()
        return renewed

    def _evict(self) -> None:
        """Drop the least recently used structures, and the oldest lists of the last one."""
        while True:
            lists = [x for known in self._lists.values() for x in known]
            if len(lists) <= MAX_LISTS and sum(x.neighbour.size for x in lists) <= MAX_PAIRS:
                return
            oldest = next(iter(self._lists))
            if len(self._lists) > 1:
                del self._lists[oldest]
            elif len(self._lists[oldest]) > 1:
                self._lists[oldest].pop(0)
            else:
                return
