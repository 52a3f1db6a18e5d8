"""What a model is loaded with: the one definition for Python, flags, config files and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dpa3sim.common.settings import option, validate
from dpa3sim.graph.edges import Truncation
from dpa3sim.kernels.api import Matmul

if TYPE_CHECKING:
    from dpa3sim.checkpoints import ModelFile
    from dpa3sim.potential.potential import Potential

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

    def load_for(self, settings: Any) -> Potential:
        """Load the model for a protocol, which may have an option of the same name, ``dtype``."""
        return replace(self, dtype=getattr(settings, "dtype", self.dtype)).load()

    def load(self, model: str | Path | ModelFile | None = None) -> Potential:
        """Load the model onto its device.

        Args:
            model: used instead of the option ``model``, such as a file that was read already.

        Raises:
            CheckpointError: the model cannot be read. InputError: a bad argument.
        """
        from dpa3sim.potential.potential import Potential

        return Potential(
            self.model if model is None else model,
            head=self.head,
            device=self.device,
            dtype=self.dtype,
            truncate=self.truncate,
            smooth_cutoff=self.smooth_cutoff,
            matmul=self.matmul,
        )
