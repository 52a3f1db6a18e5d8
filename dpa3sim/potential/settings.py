"""The options of a model: one definition for Python, flags, config files and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, validate
from dpa3sim.kernels.api import Matmul

ENVIRONMENT: Literal["env"] = "env"
"""In place of a number of ranks: the processes of torchrun or srun."""
RANK_TIMEOUT = 300.0
"""How long another process is waited for, s."""
Dtype = Literal["auto", "float32", "float64"]
Truncate = Literal["auto", "deepmd", "none"]
DispersionName = Literal["none", "d3"]


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
    truncate: Truncate = option(
        "auto",
        "apply the model's limits on the number of neighbours as deepmd-kit does, or apply none; "
        "auto is as the model was trained",
        choices=get_args(Truncate),
    )
    smooth_cutoff: float | None = option(
        None,
        "smooth the step of the energy at the angle cutoff over this width, such as 0.3, with "
        "--truncate none; this is a different potential, which conserves energy [no smoothing]",
        unit="Å",
        minimum=0.0,
    )
    uncertainty: str | None = option(
        None,
        "results get uncertainties from this file of 'dpa3sim uncertainty fit', or from that of "
        "the model itself: model [none]",
    )
    dispersion: DispersionName = option(
        "none",
        "add the London dispersion D3(BJ) to a model that was trained to a functional without it; "
        "needs the package dftd3",
        choices=get_args(DispersionName),
    )
    ranks: str = option(
        "1",
        "processes that share the work: a number on this machine, each with its part of the cores "
        "or its own GPU, or env for those of torchrun or srun",
    )
    rank_timeout: float = option(
        RANK_TIMEOUT, "how long another process is waited for", unit="s", minimum=0.0
    )

    def __post_init__(self) -> None:
        validate(self)
        number_of_ranks(self.ranks)

    def for_protocol(self, settings: Any) -> ModelSettings:
        """The same in the precision of a protocol, where that has an option ``dtype``."""
        return replace(self, dtype=getattr(settings, "dtype", self.dtype))


def number_of_ranks(ranks: int | str) -> int | Literal["env"]:
    """The option ``ranks``, checked.

    Raises:
        InputError: it is neither a positive number nor ``env``.
    """
    if ranks == ENVIRONMENT:
        return ENVIRONMENT
    if isinstance(ranks, bool) or not str(ranks).isdecimal() or int(ranks) < 1:
        raise InputError(
            f"option ranks = {ranks!r} must be a number of processes, or env for those of torchrun "
            "or srun"
        )
    return int(ranks)
