"""A small fast model that imitates a large one for one system or chemistry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpa3sim.common.lazy import lazy

if TYPE_CHECKING:
    from dpa3sim.distill.errors import Errors
    from dpa3sim.distill.settings import DistillOptions

__all__ = ["DistillOptions", "Errors"]

_EXPORTS = {
    "DistillOptions": "dpa3sim.distill.settings",
    "Errors": "dpa3sim.distill.errors",
}
__getattr__ = lazy(__name__, _EXPORTS)  # torch and ASE only where they are needed
