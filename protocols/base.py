"""The contract of every protocol: settings, a check, a plan, a run and a result.

Each public module satisfies :class:`Property`. Its ``stages`` and its ``run`` decide by the same
functions what is evaluated, so that a plan can be made before anything is computed.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dpa3sim.common import settings as options_of

if TYPE_CHECKING:
    from ase import Atoms

# Steps of a relaxation that starts near its minimum, and of one that does not (docs/report.md).
# Many degrees of freedom need more; the settings limit their number.
TYPICAL_STEPS = (3, 60)
EVALUATION, HESSIAN = "evaluation", "second derivatives"
SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        stage: what is being done, such as ``"relax"``.
        message: one line about it.
        done, total: how much of the stage is done; 0, 0 where that is unknown.
    """

    stage: str
    message: str
    done: int = 0
    total: int = 0


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event: the progress of a run that nobody follows."""


@dataclass(frozen=True, kw_only=True)
class Result(Generic[SettingsT]):
    """What every protocol returns.

    Attributes:
        settings: the options of the run.
        converged: whether the run met its thresholds.
        reasons: why it did or did not.
        warnings: what impairs the numbers.
    """

    settings: SettingsT
    converged: bool = True
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; every key with a dimension ends in its unit."""
        return {
            "converged": self.converged,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self._values(),
            "settings": options_of.to_dict(self.settings),
        }

    def _values(self) -> dict[str, Any]:
        """What :meth:`to_dict` adds for this protocol."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stage:
    """Structures that are evaluated together, once or again and again.

    Attributes:
        name: what is done.
        atoms: number of atoms of each structure.
        sample: a structure of the same kind and of any size, which shows what an atom costs.
        evaluations: of each structure, the least and the most.
        certain: whether the structures are already known for sure.
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
    """A stage of relaxations, whose number of steps cannot be known in advance.

    Args:
        name, atoms, sample: see :class:`Stage`.
        steps: the largest number of steps that is allowed.
        always: whether every structure is evaluated; otherwise some may already be at a minimum.
    """
    low, high = (min(typical, steps) for typical in TYPICAL_STEPS)
    note = f"{low} to {high} steps, as is typical" + (f"; at most {steps}" if steps > high else "")
    return Stage(name, atoms, sample, (1 + low if always else 0, 1 + high), note=note)


AnyResult = Result[Any]


class Property(typing.Protocol):
    """What each public module of :mod:`dpa3sim.protocols` offers.

    ``check(*structures, settings)`` raises InputError for structures that the protocol cannot
    handle, and computes nothing. ``stages(*structures, settings, cutoff)`` lists what ``run`` is
    going to evaluate with a model of that cutoff (Å). ``run(*structures, potential, settings, *,
    progress)`` computes, without reading or writing files; ``progress`` is called as it goes on.
    """

    @property
    def Settings(self) -> type[Any]:  # noqa: N802
        """The options: a frozen dataclass with the one place for defaults and help texts."""

    @property
    def Result(self) -> type[AnyResult]:  # noqa: N802
        """What ``run`` returns."""

    @property
    def check(self) -> Callable[..., Any]:
        """See above."""

    @property
    def stages(self) -> Callable[..., list[Stage]]:
        """See above."""

    @property
    def run(self) -> Callable[..., AnyResult]:
        """See above."""
