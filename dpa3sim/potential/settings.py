"""What a model is loaded with: the one definition for Python, flags, config files and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dpa3sim.common.settings import option, validate
from dpa3sim.graph.edges import Truncation
from dpa3sim.kernels.api import Matmul

Dtype = Literal["auto", "float32", "float64"]


@dataclass(frozen=True)
class ModelSettings:
    """Which model computes, and how."""

    model: str | None = option(None, "checkpoint file or registry name [embedded dpa3-openlam]")
    head: str | None = option(None, "head of a multi-task checkpoint")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...")
    dtype: Dtype = option(
        "auto",
        "arithmetic; auto is the checkpoint's own precision",
        choices=get_args(Dtype),
    )
    matmul: Matmul = option(
        "full",
        "products on a GPU: full precision, or inputs rounded; the deviation is reported",
        choices=get_args(Matmul),
    )
    truncate: Truncation = option(
        "deepmd",
        "apply the model's neighbour limits as deepmd-kit does, or none",
        choices=get_args(Truncation),
    )
    smooth_cutoff: float | None = option(
        None,
        "smooth the step of the energy at the cutoff of angles over this width, such as 0.3, with "
        "--truncate none: another potential, which conserves energy [as the model is]",
        unit="Å",
        minimum=0.0,
    )

    def __post_init__(self) -> None:
        validate(self)

    def for_protocol(self, settings: Any) -> ModelSettings:
        """The same in the precision of a protocol, where that has an option ``dtype``."""
        return replace(self, dtype=getattr(settings, "dtype", self.dtype))
