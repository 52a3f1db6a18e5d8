"""Training structures from given ones: made, chosen for diversity, and labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpa3sim.common.lazy import lazy

if TYPE_CHECKING:
    from dpa3sim.sample.generation import generate
    from dpa3sim.sample.labelling import label
    from dpa3sim.sample.selection import choose
    from dpa3sim.sample.settings import SampleSettings

__all__ = ["SampleSettings", "choose", "generate", "label"]

_EXPORTS = {
    "SampleSettings": "dpa3sim.sample.settings",
    "choose": "dpa3sim.sample.selection",
    "generate": "dpa3sim.sample.generation",
    "label": "dpa3sim.sample.labelling",
}
__getattr__ = lazy(__name__, _EXPORTS)  # torch and ASE only where they are needed
