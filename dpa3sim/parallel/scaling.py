"""How long a step takes on several ranks, and how much is sent: an estimate.

    T = 1.03 (t + 0.01 t g / n) + (2 (L - 1) + 5) latency + (2 (L - 1) g w b + 24 g) / bandwidth

with t what the n own atoms of a rank take alone, g its ghosts, w the width b bytes each of the
features of a node, and L layers. 1.03 is the imbalance of work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

IMBALANCE, GHOST_WORK = 1.03, 0.01
# An atom near the end of a list's radius rarely has an own atom within it, Å.
_CORNERS = 0.8


@dataclass(frozen=True)
class Link:
    """What connects ranks.

    Attributes:
        latency: s of an exchange. bandwidth: bytes per s of a rank.
    """

    latency: float
    bandwidth: float


LINKS = {
    "cpu": Link(1.5e-3, 0.6e9),  # measured: gloo within a machine whose cores are busy
    "cuda": Link(20e-6, 150e9),  # an estimate: NVLink
    "network": Link(35e-6, 20e9),  # an estimate: InfiniBand between GPUs
}


@dataclass(frozen=True)
class Scaling:
    """Steps of a model on several ranks.

    Attributes:
        layers: of the model. row: bytes of a node's features. reach: radius of lists, Å.
        link: what connects the ranks.
    """

    layers: int
    row: int
    reach: float
    link: Link

    def ghosts(self, n_atoms: float, density: float) -> float:
        """Ghosts of a compact part of so many atoms, at so many per Å^3."""
        a, r = (n_atoms / density) ** (1 / 3), self.reach - _CORNERS
        volume = 6 * a**2 * r + 3 * math.pi * a * r**2 + 4 / 3 * math.pi * r**3
        return density * volume

    def sent(self, ghosts: float) -> float:
        """Bytes that a rank exchanges for its ghosts in a step."""
        return (2 * (self.layers - 1) * self.row + 24) * ghosts

    def seconds(self, alone: float, n_atoms: int, parts: int, density: float) -> float:
        """Of a step on so many ranks, of which one would take ``alone`` (s).

        Args:
            alone: see above. n_atoms: of the structure. parts: ranks. density: atoms per Å^3.
        """
        own = n_atoms / parts
        ghosts = min(self.ghosts(own, density), n_atoms - own)
        compute = IMBALANCE * alone / parts * (1 + GHOST_WORK * ghosts / own)
        exchanges = (2 * (self.layers - 1) + 5) * self.link.latency
        return compute + exchanges + self.sent(ghosts) / self.link.bandwidth
