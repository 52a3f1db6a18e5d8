"""What a protocol is going to ask of the model, counted before anything is computed.

Every protocol has a pure function ``stages(*structures, settings, cutoff)`` beside ``run``; both
decide by the same functions what is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms

# Steps that relaxations take, from those that begin near their minimum to those that do not
# (docs/report.md). With many degrees of freedom they are more; the most is the option's.
TYPICAL_STEPS = (3, 60)
EVALUATION, HESSIAN = "evaluation", "second derivatives"


@dataclass(frozen=True)
class Stage:
    """Structures that are evaluated together, once or again and again.

    Attributes:
        name: what is done.
        atoms: of each structure.
        sample: a structure of the same kind, of any size: what an atom of it costs.
        evaluations: of each structure, the least and the most.
        certain: whether which structures there are cannot change any more.
        note: what the numbers depend on.
        kind: :data:`EVALUATION` of energy, forces and virial, or :data:`HESSIAN`.
    """

    name: str
    atoms: Sequence[int]
    sample: Atoms
    evaluations: tuple[int, int] = (1, 1)
    certain: bool = True
    note: str = ""
    kind: str = EVALUATION

    @property
    def exact(self) -> bool:
        """Whether the number of evaluations is known."""
        return self.certain and self.evaluations[0] == self.evaluations[1]

    @property
    def total(self) -> tuple[int, int]:
        """Evaluations of all structures, the least and the most."""
        low, high = self.evaluations
        return low * len(self.atoms), high * len(self.atoms)


def relaxation(
    name: str,
    atoms: Sequence[int],
    sample: Atoms,
    steps: int,
    *,
    always: bool = True,
) -> Stage:
    """A stage of relaxations, whose steps nobody knows before.

    Args:
        name, atoms, sample: see :class:`Stage`.
        steps: the largest number of them that is allowed.
        always: whether none of the structures can be at its minimum already.
    """
    low, high = (min(typical, steps) for typical in TYPICAL_STEPS)
    note = f"{low} to {high} steps, as is typical" + (f"; at most {steps}" if steps > high else "")
    return Stage(name, atoms, sample, (1 + low if always else 0, 1 + high), note=note)
