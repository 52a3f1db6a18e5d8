"""How certain a model is where a calculation begins and where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpa3sim.potential.interface import PotentialLike, rigidity_of

if TYPE_CHECKING:
    from ase import Atoms

# A warning is given if the largest novelty grew by this factor, to more than 1: out of what the
# uncertainty was fitted to.
GROWTH = 2.0


def certainty(
    potential: PotentialLike, start: Sequence[Atoms], result: Any
) -> tuple[dict[str, Any], list[str]]:
    """Values for ``result.json``, and a warning if a calculation led far away from what is known.

    Nothing is evaluated, and both are empty, for a potential without an uncertainty.

    Args:
        potential: the model. start: the structures that were given.
        result: of a protocol; what it ends with are its ``atoms``, its ``images`` or its prepared
            structure.
    """
    if rigidity_of(potential) is None:
        return {}, []
    ends = _ends(result)
    found = [out.uncertainty for out in potential.evaluate([*start, *ends])]
    judged = [x for x in found if x is not None]
    first = max(x.novelty for x in judged[: len(start)])
    values: dict[str, Any] = {"novelty_initial": first}
    warnings = []
    if ends:
        last = max(x.novelty for x in judged[len(start) :])
        values["novelty_final"] = last
        if last > max(1.0, GROWTH * first):
            warnings.append(
                f"the largest novelty of an atom grew from {first:.3g} to {last:.3g}: the "
                "calculation led to surroundings that the uncertainty was not fitted to"
            )
    if judged[-1].energy is not None:
        values["energy_uncertainty_eV"] = judged[-1].energy
    return values, warnings


def certainty_lines(stored: Mapping[str, Any]) -> list[str]:
    """What :func:`certainty` found, for people."""
    if "novelty_initial" not in stored:
        return []
    text = f"largest novelty of an atom {stored['novelty_initial']:.3g}"
    if "novelty_final" in stored:
        text += f" -> {stored['novelty_final']:.3g}"
    energy = stored.get("energy_uncertainty_eV")
    if "novelty_largest" in stored:
        text += (
            f", at most {stored['novelty_largest']:.3g} in step {stored['novelty_largest_step']}"
        )
    if kept := stored.get("uncertain_frames"):
        text += f"; {kept} uncertain frames are kept"
    return [text if energy is None else f"{text}; uncertainty of the energy {energy:.3g} eV"]


def _ends(result: Any) -> list[Atoms]:
    """The structures that a calculation ended with."""
    for name in ("images", "atoms"):
        found = getattr(result, name, None)
        if found is not None:
            return list(found) if isinstance(found, (list, tuple)) else [found]
    prepared = getattr(result, "prepared", None)
    return [] if prepared is None else [prepared.atoms]
