"""What the processes of a team send to each other in a step, in a fixed order.

A step of a model with L layers has, on every rank: one gather of statistics, L - 1 exchanges of
node features forwards and as many of their gradients backwards, one exchange of forces, and the
results. A rank without atoms takes part with no rows, a failed one with NaN: nobody waits in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpa3sim.parallel.halo import Halo


class Ranks(Protocol):
    """Processes that exchange data; all of them call the same methods in the same order.

    Attributes:
        rank, size: which process this is, and of how many.
    """

    rank: int
    size: int

    def swap(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Send rows to all ranks, in their order, and receive theirs.

        Args:
            rows: ``(sum(send), ...)``, those for rank 0 first.
            send, receive: numbers of rows for and from each rank.

        Returns:
            ``(sum(receive), ...)``, those from rank 0 first.
        """

    def gather(self, values: Tensor) -> Tensor:
        """The values ``(k,)`` of all ranks, ``(size, k)``, the same on each; on the host."""

    def share(self, values: Tensor) -> Tensor:
        """The values of rank 0; the others give any of the same shape and kind. On the host."""


@dataclass
class Traffic:
    """What a rank exchanged within steps.

    Attributes:
        steps: evaluations of structures that several ranks share.
        renewals: searches of neighbours; divisions: new owners of atoms.
        gathers, forward, backward, forces: numbers of exchanges.
        sent, received: bytes of rows of ghosts and for ghosts of others.
        seconds: time in these exchanges, in which a rank also waits for slower ones.
    """

    steps: int = 0
    renewals: int = 0
    divisions: int = 0
    gathers: int = 0
    forward: int = 0
    backward: int = 0
    forces: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """The counters as a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Routes:
    """Which own atoms are ghosts of other ranks, and how many ghosts are here.

    Attributes:
        atoms: ``(n_sent,)`` numbers of own atoms, by the rank that they go to.
        send: ``(size,)`` how many go to each rank. receive: ``(size,)`` how many come from each.
    """

    atoms: np.ndarray
    send: tuple[int, ...]
    receive: tuple[int, ...]

    @classmethod
    def agree(cls, halo: Halo, ranks: Ranks) -> Routes:
        """Tell every rank which of its atoms are needed here, and hear what others need."""
        ones = [1] * ranks.size
        wanted = ranks.swap(torch.from_numpy(halo.ghosts_of), ones, ones)
        send, receive = tuple(wanted.tolist()), tuple(halo.ghosts_of.tolist())
        atoms = ranks.swap(torch.from_numpy(halo.ghosts), receive, send)
        own = halo.nodes[: halo.n_own]
        return cls(np.searchsorted(own, atoms.numpy()), send, receive)


class HaloExchange:
    """Fetches what other ranks compute, within one step; see :class:`kernels.api.Exchange`.

    Args:
        ranks: the team. routes: who needs what.
        row_of: ``(n_atoms,)`` block row of each own atom.
        layers: of the model. like: ``(0, n_dim)``, of the kind of node features.
        traffic: where exchanges are counted.
    """

    def __init__(
        self,
        ranks: Ranks,
        routes: Routes,
        row_of: Tensor,
        layers: int,
        like: Tensor,
        traffic: Traffic,
    ) -> None:
        self._ranks, self._routes, self._traffic = ranks, routes, traffic
        self._like = like
        self._n_atoms, self._n_ghosts = len(row_of), sum(routes.receive)
        self._rows = row_of.index_select(0, torch.from_numpy(routes.atoms).to(row_of.device))
        # Received gradients of an own row are added in the order of the ranks that sent them.
        sorted_rows, self._order = self._rows.sort(stable=True)
        self._targets, counts = torch.unique_consecutive(sorted_rows, return_counts=True)
        self._starts = counts.cumsum(0) - counts
        self._left = {"forward": layers - 1, "backward": layers - 1, "forces": 1}

    def forward(self, node: Tensor) -> Tensor:
        """Features ``(n_nodes, n_dim)`` of all nodes from those of the centres."""
        return torch.cat([node, self._swap("forward", node.index_select(0, self._rows))])

    def backward(self, d_node: Tensor) -> Tensor:
        """Gradient ``(n_atoms, n_dim)`` of the centres from that of all nodes."""
        return self._return("backward", d_node)

    def forces(self, rows: Tensor) -> Tensor:
        """Forces ``(n_atoms, 3)`` on the centres from the parts ``(n_nodes, 3)`` found here."""
        return self._return("forces", rows)

    def end(self) -> None:
        """Check that all exchanges of the step were made."""
        if any(self._left.values()):
            raise RuntimeError(f"a step ended without exchanges: {self._left}")

    def finish(self) -> None:
        """Make the exchanges that are left: of a rank that failed, others get NaN."""
        features, forces = self._like, self._like.new_empty((0, 3), dtype=torch.float64)
        for name, like in (("forward", features), ("backward", features), ("forces", forces)):
            count = len(self._rows) if name == "forward" else self._n_ghosts
            while self._left[name]:
                self._swap(name, like.new_full((count, like.shape[1]), torch.nan))

    def _return(self, name: str, rows: Tensor) -> Tensor:
        own, ghosts = rows.split([self._n_atoms, self._n_ghosts])
        received = self._swap(name, ghosts)
        if len(received):
            total = torch.nn.functional.embedding_bag(
                self._order, received, self._starts, mode="sum"
            )
            own.index_add_(0, self._targets, total)  # each of them once
        return own

    def _swap(self, name: str, rows: Tensor) -> Tensor:
        turn = next((kind for kind, left in self._left.items() if left), None)
        if name != turn:
            raise RuntimeError(f"exchange {name!r} is out of turn: {self._left} are left")
        start = perf_counter()
        send, receive = self._routes.send, self._routes.receive
        if name != "forward":
            send, receive = receive, send
        received = self._ranks.swap(rows, send, receive)
        self._left[name] -= 1
        traffic, row = self._traffic, rows.shape[1] * rows.element_size()
        setattr(traffic, name, getattr(traffic, name) + 1)
        traffic.sent += row * sum(send)
        traffic.received += row * sum(receive)
        traffic.seconds += perf_counter() - start
        return received
