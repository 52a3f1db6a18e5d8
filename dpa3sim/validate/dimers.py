"""Two atoms of every element: do they repel each other at short distances?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.protocols.base import Event, Progress, Stage
from dpa3sim.validate.check import Findings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.validate.settings import ValidateSettings

# Distances from this share of the sum of the covalent radii on; atoms nearer than the second share
# overlap, which no simulation reaches.
SHORTEST, OVERLAP = 0.3, 0.5
# The bond is looked for from this share on.
BOND = 0.6
POINTS = 48
# Energies that fall by less on the way inwards are noise, eV.
NOISE = 1e-3


def distances(element: str, cutoff: float) -> np.ndarray:
    """Distances of two atoms, Å, ``(POINTS,)``; at the last one they do not see each other."""
    from ase.data import atomic_numbers, covalent_radii

    bond = 2 * float(covalent_radii[atomic_numbers[element]])
    return np.append(np.geomspace(SHORTEST * bond, cutoff - 0.01, POINTS - 1), cutoff + 0.5)


def dimer(element: str, distance: float) -> Atoms:
    """Two atoms."""
    from ase import Atoms

    return Atoms([element] * 2, positions=[[0, 0, 0], [0, 0, distance]])


def stages(elements: Sequence[str], settings: ValidateSettings, cutoff: float) -> list[Stage]:
    """See :class:`~dpa3sim.validate.check.Check`."""
    # A request for each element, so that no plan times two atoms in the place of crystals.
    return [Stage("dimers", [2] * POINTS, dimer(element, 2.0)) for element in elements]


def run(potential: BatchPotential, settings: ValidateSettings, progress: Progress) -> Findings:
    """See :class:`~dpa3sim.validate.check.Check`."""
    elements = potential.model.elements
    cutoff = potential.model.config.descriptor.e_rcut
    rows = []
    for done, element in enumerate(elements):
        r = distances(element, cutoff)
        outs = potential.evaluate([dimer(element, float(x)) for x in r])
        energies = np.array([out.energy for out in outs])
        rows.append({"element": element, **_curve(element, r, energies - energies[-1])})
        progress(Event("dimers", element, done + 1, len(elements)))
    bad = [row for row in rows if row["attractive_below_A"] is not None and not row["overlap"]]
    deep = [row["element"] for row in bad if row["hole_eV"] < 0]
    warnings = []
    if bad:
        named = ", ".join(f"{row['element']} ({row['attractive_below_A']:.2f} Å)" for row in bad)
        warnings.append(
            f"two atoms attract each other at short distances, below: {named}; hot or dense "
            "structures can collapse"
        )
    if deep:
        warnings.append(f"there the energy is below that of the bond: {', '.join(deep)}")
    return Findings({"dimers": rows}, tuple(warnings))


def _curve(element: str, r: np.ndarray, energies: np.ndarray) -> dict[str, Any]:
    """The bond, and where the energy falls again on the way from there to zero.

    Args:
        element: of both atoms. r: Å. energies: ``(n,)`` eV, of two atoms far apart zero.
    """
    from ase.data import atomic_numbers, covalent_radii

    radii = 2 * float(covalent_radii[atomic_numbers[element]])
    first = int(np.searchsorted(r, BOND * radii))
    bond = first + int(np.argmin(energies[first:]))
    top = bond
    while top > 0 and energies[top - 1] > energies[top] - NOISE:
        top -= 1
    turns = top > 0
    return {
        "bond_length_A": float(r[bond]),
        "bond_energy_eV": float(energies[bond]),
        "attractive_below_A": float(r[top]) if turns else None,
        "overlap": bool(turns and r[top] < OVERLAP * radii),
        # Of the deepest place inside, above the bond; negative: the atoms would stay there.
        "hole_eV": float(energies[: top + 1].min() - energies[bond]) if turns else None,
        "repulsion_eV": float(energies[:bond].max(initial=0.0) - energies[bond]),
        "distances_A": r.tolist(),
        "energies_eV": energies.tolist(),
    }
