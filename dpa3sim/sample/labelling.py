"""Labels of frames: energies, forces and stresses of a model, or of any calculator of ASE."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import Dpa3simError, InputError, memory_ran_out
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.interface import BatchPotential
from dpa3sim.protocols.base import Event, Progress, silent

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

MODEL = "model"
"""The option ``label`` that means the loaded model."""
ERROR = "label_error"
"""The key of ``info`` that says why a frame has no labels."""
# A batch of the model has about so many atoms; a kill costs no more than one.
BATCH_ATOMS = 512


@dataclass(frozen=True)
class Label:
    """What is known of a frame.

    Attributes:
        energy: eV. forces: ``(n, 3)``, eV/Å.
        stress: ``(3, 3)``, eV/Å^3, with ASE's sign; None if the frame is not periodic along three
            axes, or the calculator has none.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, to the last bit."""
        stress = None if self.stress is None else self.stress.tolist()
        return {"energy": self.energy, "forces": self.forces.tolist(), "stress": stress}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Label:
        """The inverse of :meth:`to_dict`."""
        stress = None if data["stress"] is None else np.array(data["stress"], dtype=float)
        forces = np.array(data["forces"], dtype=float).reshape(-1, 3)
        return cls(float(data["energy"]), forces, stress)


@dataclass(frozen=True)
class Failure:
    """Why a frame has no label."""

    reason: str


Labeller = BatchPotential | Any
"""A model, or a calculator of ASE, which has no type that all of them share."""


def label(
    frames: Sequence[Atoms], labeller: Labeller, *, progress: Progress = silent
) -> list[Atoms]:
    """Copies of the frames with labels in a ``SinglePointCalculator``, in the same order.

    A frame that fails has no calculator, and ``info["label_error"]`` says why.

    Args:
        frames: structures; other labels in ``info`` are not changed.
        labeller: a :class:`~dpa3sim.Potential`, or a calculator of ASE.
        progress: called after each batch, and after each frame of a calculator.
    """
    found = []
    for number, outcome in labels(frames, labeller):
        found.append(labelled(frames[number], outcome))
        progress(Event("label", f"{len(found)} of {len(frames)}", len(found), len(frames)))
    return found


def labels(frames: Sequence[Atoms], labeller: Labeller) -> Iterator[tuple[int, Label | Failure]]:
    """The labels of frames one after the other, each with its index.

    Args:
        frames: structures. labeller: see :func:`label`.
    """
    if isinstance(labeller, BatchPotential):
        yield from _by_model(frames, labeller)
    else:
        for number, atoms in enumerate(frames):
            yield number, _by_calculator(atoms, labeller)


def labelled(atoms: Atoms, outcome: Label | Failure) -> Atoms:
    """A copy of a frame with its label, or with the reason why there is none."""
    from ase.calculators.singlepoint import SinglePointCalculator

    found = atoms.copy()
    found.info.pop(ERROR, None)
    if isinstance(outcome, Failure):
        found.info[ERROR] = outcome.reason
        return found
    results: dict[str, Any] = {"energy": outcome.energy, "forces": outcome.forces}
    if outcome.stress is not None:
        xx, yy, zz = np.diag(outcome.stress)
        results["stress"] = np.array([xx, yy, zz, *outcome.stress[[1, 0, 0], [2, 2, 1]]])
    found.calc = SinglePointCalculator(found, **results)
    return found


def _by_model(
    frames: Sequence[Atoms], potential: BatchPotential
) -> Iterator[tuple[int, Label | Failure]]:
    batch: list[int] = []
    size = 0
    for number, atoms in enumerate(frames):
        batch.append(number)
        size += len(atoms)
        if size >= BATCH_ATOMS or number == len(frames) - 1:
            outcomes = potential.evaluate_each([frames[k] for k in batch])
            for k, outcome in zip(batch, outcomes, strict=True):
                yield k, _of_evaluation(frames[k], outcome)
            batch, size = [], 0


def _of_evaluation(atoms: Atoms, outcome: Evaluation | Dpa3simError) -> Label | Failure:
    if isinstance(outcome, Dpa3simError):
        return Failure(str(outcome))
    stress = None
    if atoms.pbc.all():
        stress = -(outcome.virial + outcome.virial.T) / 2 / atoms.get_volume()
    return _checked(outcome.energy, outcome.forces, stress, len(atoms))


def _by_calculator(atoms: Atoms, calculator: Any) -> Label | Failure:
    """Energy, forces and stress; whatever the calculator raises becomes a failure of the frame.

    Where it has a free energy, that is the energy: the forces are its derivatives.
    """
    from ase.calculators.calculator import PropertyNotImplementedError

    copy, stress = atoms.copy(), None
    copy.calc = calculator
    try:
        energy, forces = copy.get_potential_energy(), copy.get_forces()
        energy = calculator.results.get("free_energy", energy)
        if atoms.pbc.all():
            try:
                stress = copy.get_stress(voigt=False)
            except PropertyNotImplementedError:
                stress = None
        return _checked(energy, forces, stress, len(atoms))
    except Exception as error:
        if memory_ran_out(error):
            raise
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:500])


def _checked(energy: Any, forces: Any, stress: Any, n_atoms: int) -> Label | Failure:
    """A label, if all of its numbers are finite and as many as they must be."""
    given = {"energy": (energy, ()), "forces": (forces, (n_atoms, 3)), "stress": (stress, (3, 3))}
    for name, (value, shape) in given.items():
        if value is None and name == "stress":
            continue
        array = np.asarray(value, dtype=float)
        if array.shape != shape:
            return Failure(f"{name} has the shape {array.shape} instead of {shape}")
        if not np.isfinite(array).all():
            return Failure(f"{name} is not finite")
    tensor = None if stress is None else np.asarray(stress, dtype=float)
    return Label(float(energy), np.asarray(forces, dtype=float), tensor)


def calculator(text: str, options: Mapping[str, Any]) -> BaseCalculator:
    """Make a calculator of ASE.

    Args:
        text: ``module:Name`` of a class or function, which may be in the working directory.
        options: its arguments.

    Raises:
        InputError: it cannot be imported or made, or is no calculator.
    """
    name, _, attribute = text.partition(":")
    sys.path.append("")
    try:
        found: Any = import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
        made: BaseCalculator = found(**options) if callable(found) else found
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise InputError(f"label = {text}: {reason}") from None
    finally:
        sys.path.remove("")
    if not (hasattr(made, "get_potential_energy") and hasattr(made, "results")):
        raise InputError(f"label = {text}: makes no calculator of ASE, but {type(made).__name__}")
    return made


def arguments(words: Sequence[str]) -> dict[str, Any]:
    """Arguments from ``KEY=VALUE``; a value is what Python reads, or else a text.

    Raises:
        InputError: a word is something else.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key.isidentifier():
            raise InputError(f"label_options = {word!r}: write it as KEY=VALUE")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[key] = value
    return found
