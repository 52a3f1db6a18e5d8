"""The options of a model: one definition for Python, flags, config files and workers."""

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
    """Which model is used, and how it computes."""

    model: str | None = option(None, "checkpoint file or registry name [embedded dpa3-openlam]")
    head: str | None = option(None, "which head of a multi-task checkpoint to use")
    device: str = option("auto", "device of the model: auto, cpu, cuda, cuda:1 ...")
    dtype: Dtype = option(
        "auto",
        "floating-point precision; auto is the precision of the checkpoint",
        choices=get_args(Dtype),
    )
    matmul: Matmul = option(
        "full",
        "matrix products on a GPU, in full precision or with rounded inputs; the deviation "
        "from full precision is reported",
        choices=get_args(Matmul),
    )
    truncate: Truncation = option(
        "deepmd",
        "apply the model's limits on the number of neighbours as deepmd-kit does, or apply none",
        choices=get_args(Truncation),
    )
    smooth_cutoff: float | None = option(
        None,
        "smooth the step of the energy at the angle cutoff over this width, such as 0.3, with "
        "--truncate none; this is a different potential, which conserves energy [no smoothing]",
        unit="Å",
        minimum=0.0,
    )

    def __post_init__(self) -> None:
        validate(self)

    def load_for(self, settings: Any) -> Potential:
        """Load the model for a protocol, whose own option ``dtype`` takes precedence."""
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
