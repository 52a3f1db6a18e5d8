"""The scatter of several models, in the terms of deepmd-kit's ``dp model-devi``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from dpa3sim.potential import Evaluation, PotentialLike
    from dpa3sim.structures.system import AtomsLike, System

COLUMNS = (
    *("step", "max_devi_v", "min_devi_v", "avg_devi_v"),
    *("max_devi_f", "min_devi_f", "avg_devi_f", "devi_e"),
)


@dataclass(frozen=True)
class Deviation:
    """How much models differ in one structure.

    Attributes:
        forces: ``(n,)`` eV/Å: root mean square distance of the models' forces from their mean.
        virial: ``(3, 3)`` eV/atom: standard deviations of the components.
        energy: eV/atom, standard deviation.
    """

    forces: np.ndarray
    virial: np.ndarray
    energy: float

    def row(self, step: int) -> list[float]:
        """The values of :data:`COLUMNS`."""
        v, f = self.virial, self.forces
        rms = float(np.sqrt(np.mean(v**2)))
        return [step, v.max(), v.min(), rms, f.max(), f.min(), float(f.mean()), self.energy]


def deviation(evaluations: Sequence[Evaluation]) -> Deviation:
    """The scatter of what several models say of one structure; divided by their number.

    Raises:
        InputError: there are less than two.
    """
    if len(evaluations) < 2:
        raise InputError("a committee needs at least two models")
    forces = np.stack([x.forces for x in evaluations])
    n = forces.shape[1]
    scatter = forces - forces.mean(axis=0)
    return Deviation(
        forces=np.sqrt(np.mean(np.sum(scatter**2, axis=2), axis=0)),
        virial=np.std([x.virial / n for x in evaluations], axis=0),
        energy=float(np.std([x.energy / n for x in evaluations])),
    )


def deviations(
    potentials: Sequence[PotentialLike], structures: Sequence[AtomsLike | System]
) -> list[Deviation]:
    """The scatter of several models for each structure.

    Raises:
        InputError: less than two models, or a structure that one of them cannot compute.
    """
    results = [potential.evaluate(structures) for potential in potentials]
    return [deviation(of_one) for of_one in zip(*results, strict=True)]


def table(found: Sequence[Deviation]) -> str:
    """The content of deepmd-kit's ``model_devi.out``."""
    widths = [12, *[19] * (len(COLUMNS) - 1)]
    head = "".join(f"{name:>{w}}" for name, w in zip(("step", *COLUMNS[1:]), widths, strict=True))
    lines = [f"#{head[1:]}"]
    for step, one in enumerate(found):
        first, *values = one.row(step)
        lines.append(f"{int(first):12d}" + "".join(f"{x:19.6e}" for x in values))
    return "\n".join(lines) + "\n"
