"""ASE's optimizers, step by step: of atoms, of atoms with their cell, and of bands of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.optimize.optimize import Optimizer

OPTIMIZERS = tuple("auto LBFGS BFGS FIRE FIRE2 BFGSLineSearch LBFGSLineSearch MDMin".split())
# "auto" uses the robust FIRE above this force (eV/Å) and the faster L-BFGS below it.
FIRE_UNTIL = 1.0
# LBFGS has gone astray if a force exceeds this, eV/Å.
FIRE_AGAIN = 2.0


def optimize(target: Any, name: str, done: Callable[[], bool], steps: int) -> Iterator[None]:
    """Yield after every step of an optimizer.

    Args:
        target: what ASE's optimizers move.
        name: of the optimizer; ``"auto"`` is FIRE while a force exceeds :data:`FIRE_UNTIL`, then
            LBFGS, and FIRE again if a force comes to exceed :data:`FIRE_AGAIN`.
        done: whether to stop, asked before the first step and after each one.
        steps: the largest number of steps.
    """
    while steps > 0 and not done():
        switching = name == "auto" and largest_force(target) > FIRE_UNTIL
        chosen = name if name != "auto" else "FIRE" if switching else "LBFGS"
        moves = _optimizer(chosen, target).irun(fmax=0.0, steps=steps)
        next(moves)  # the point where it starts, which is known
        before = steps
        for _ in moves:
            steps -= 1
            yield
            if done():
                return
            if switching and largest_force(target) <= FIRE_UNTIL:
                break
            if chosen == "LBFGS" != name and largest_force(target) > FIRE_AGAIN:
                break
        if steps == before:
            return  # all forces vanish and yet it is not done: a constraint holds it


def largest_force(target: Any) -> float:
    """Norm of the largest force on an atom, or on another part of the target, eV/Å."""
    return float(np.sqrt((np.asarray(target.get_forces()) ** 2).sum(axis=1)).max())


def _optimizer(name: str, target: Any) -> Optimizer:
    import ase.optimize
    from ase.optimize.fire2 import FIRE2

    cls: Any = FIRE2 if name == "FIRE2" else getattr(ase.optimize, name)
    optimizer: Optimizer = cls(target, logfile=None)
    return optimizer
