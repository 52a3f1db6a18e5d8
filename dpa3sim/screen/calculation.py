"""What a screening does with each structure: a protocol with its options, wherever it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpa3sim.common import errors
from dpa3sim.common.errors import Dpa3simError, EngineError
from dpa3sim.run.certainty import certainty
from dpa3sim.run.hints import hints
from dpa3sim.screen.database import (
    DONE,
    FAILED,
    NOT_CONVERGED,
    Outcome,
    taken_warnings,
    to_json,
)

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import PotentialLike
    from dpa3sim.protocols.relax import Result, Step

# How much of a relaxation a kill may cost, s.
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Calculation:
    """A protocol and its options; can be sent to other processes.

    Attributes:
        protocol: name of the module in :mod:`dpa3sim.protocols`.
        settings: its ``Settings``.
        together: whether many structures are computed at the same time, each asking for one
            evaluation after the other; else the protocol makes batches itself.
    """

    protocol: str
    settings: Any
    together: bool

    @property
    def continues(self) -> bool:
        """Whether it can go on from where it was, after a kill or with more steps."""
        return self.protocol == "relax"

    def __call__(
        self,
        atoms: Atoms,
        potential: PotentialLike,
        progress: str | None = None,
        save: Callable[[str], None] | None = None,
    ) -> Outcome:
        """Compute one structure; its errors are part of what is returned.

        Args:
            atoms: the structure as it was given.
            potential: the model.
            progress: what ``save`` was given, to continue from there.
            save: called every so often with the progress. An exception in it ends the calculation.

        Raises:
            EngineError: the engine was stopped; nothing is known of the structure.
        """
        found: Any
        module: Any = import_module(f"dpa3sim.protocols.{self.protocol}")
        began, warnings = time.monotonic(), taken_warnings(atoms)
        try:
            potential.check(atoms)
            module.check(atoms, self.settings)
            left = None
            if self.continues:
                found, left = self._relax(atoms, potential, progress, save)
            else:
                found = module.run(atoms, potential, self.settings)
            values, doubts = certainty(potential, [atoms], found)
            content = found.to_dict() | values
            doubts = [*content["warnings"], *doubts, *hints(potential, [atoms])]
            content["warnings"] = list(dict.fromkeys([*warnings, *doubts]))
            result = json.dumps(content, allow_nan=False)  # NaN is not a result
            final = found.atoms if hasattr(found, "atoms") else found.prepared.atoms
            return Outcome(
                state=DONE if found.converged else NOT_CONVERGED,
                exit_code=errors.DONE if found.converged else errors.NOT_CONVERGED,
                seconds=time.monotonic() - began,
                error=None if found.converged else "; ".join(found.reasons),
                result=result,
                structure=to_json(final),
                progress=left,
            )
        except EngineError:
            raise
        except Dpa3simError as error:
            return failure(str(error), error.exit_code, time.monotonic() - began)
        # What one of many structures makes a library raise must not end the others.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return failure(reason, errors.UNPHYSICAL, time.monotonic() - began)

    def _relax(
        self,
        atoms: Atoms,
        potential: PotentialLike,
        progress: str | None,
        save: Callable[[str], None] | None,
    ) -> tuple[Result, str | None]:
        """The result, and from where more steps would continue."""
        from dpa3sim.protocols import relax

        start = atoms
        history: tuple[Step, ...] = ()
        if progress is not None:
            with suppress(KeyError, TypeError, ValueError):  # what is damaged only costs time
                start, history = relax.restore(atoms, json.loads(progress))
        first, saved = history[:1], time.monotonic()

        def follow(step: Step, now: Atoms) -> None:
            nonlocal first, saved
            first = first or (step,)
            if save is not None and time.monotonic() - saved >= SAVE_SECONDS:
                saved = time.monotonic()
                save(json.dumps(relax.state(now, (*first, step))))

        found = relax.run(
            start, potential, self.settings, progress=follow, initial=atoms, history=history
        )
        if found.converged:
            return found, None
        return found, json.dumps(relax.state(found.atoms, (found.steps[0], found.steps[-1])))


def failure(reason: str, exit_code: int, seconds: float) -> Outcome:
    """The outcome of a structure that has no result."""
    return Outcome(FAILED, exit_code, seconds, error=reason)
