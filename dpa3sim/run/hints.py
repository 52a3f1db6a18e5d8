"""What the user of a calculation may have missed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dpa3sim.checkpoints.theory import theory_of
from dpa3sim.potential.interface import PotentialLike, dispersion_of
from dpa3sim.structures.bonding import unbonded_pieces

if TYPE_CHECKING:
    from ase import Atoms


def hints(potential: PotentialLike, structures: Iterable[Atoms]) -> list[str]:
    """A line if what holds a structure together is missing from the model.

    Args:
        potential: the model, with or without dispersion. structures: those that were given.
    """
    theory = theory_of(potential.model)
    if theory is None or theory.dispersion is not None or dispersion_of(potential) is not None:
        return []
    pieces = sorted({word for atoms in structures if (word := unbonded_pieces(atoms))})
    return [
        f"the structure consists of {word} that touch without a bond, and {theory}, to which the "
        "model was trained, lacks the dispersion between them: --dispersion d3 adds it"
        for word in pieces
    ]
