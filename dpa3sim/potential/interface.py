"""What clients and protocols need of a potential: the model itself, or a client of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dpa3sim.common.errors import InputError
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.settings import Dtype
from dpa3sim.structures.system import AtomsLike, System

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dpa3sim.checkpoints import ModelFile
    from dpa3sim.common.errors import Dpa3simError
    from dpa3sim.graph.lists import Counters
    from dpa3sim.potential.dispersion import Dispersion
    from dpa3sim.uncertainty.rigidity import Rigidity


@runtime_checkable
class PotentialLike(Protocol):
    """What calculators and protocols need: a :class:`Potential`, or a client of an engine."""

    @property
    def model(self) -> ModelFile:
        """The model in use."""

    @property
    def dtype(self) -> str:
        """Precision of the descriptor: ``"float32"`` or ``"float64"``."""

    def evaluate(self, structures: Sequence[AtomsLike | System]) -> list[Evaluation]:
        """Energies, forces and virials."""

    def check(self, structure: AtomsLike | System) -> None:
        """Raise InputError if ``structure`` cannot be evaluated."""


@runtime_checkable
class BatchPotential(PotentialLike, Protocol):
    """What an engine and the property protocols need: a :class:`Potential`, or one like it."""

    @property
    def counters(self) -> Counters:
        """The work of the model so far."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def identity(self) -> str:
        """A text that distinguishes results of this potential from those of others."""

    def evaluate_each(
        self, structures: Sequence[AtomsLike | System]
    ) -> list[Evaluation | Dpa3simError]:
        """Like ``evaluate``, with the error of a bad structure in place of its result."""

    @property
    def batches(self) -> int:
        """Number of batches evaluated so far."""

    def hessian(
        self, structure: AtomsLike | System, atoms: Sequence[int] | None = None
    ) -> np.ndarray:
        """Second derivatives; see :meth:`Potential.hessian`."""

    def in_precision(self, dtype: Dtype) -> BatchPotential:
        """The same model in this precision; ``"auto"`` is the one it has."""


def rigidity_of(potential: PotentialLike) -> Rigidity | None:
    """The uncertainty of a potential; None if it has none."""
    return getattr(potential, "rigidity", None)


def dispersion_of(potential: PotentialLike) -> Dispersion | None:
    """What is added to the model of a potential; None if nothing is."""
    return getattr(potential, "dispersion", None)


def forces_uncertainty(
    potential: PotentialLike, structures: Sequence[AtomsLike | System], members: int
) -> list[np.ndarray]:
    """See :meth:`Potential.forces_uncertainty`.

    Raises:
        InputError: this is no potential that has them.
    """
    judge = getattr(potential, "forces_uncertainty", None)
    if judge is None:
        raise InputError(f"{potential!r} has no uncertainties of forces: use a Potential")
    found: list[np.ndarray] = judge(structures, members)
    return found
