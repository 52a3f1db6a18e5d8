"""Guards find and measure what can spoil small differences of energies in this model family.

DPA3 models without ``smooth_edge_update`` have a step in the energy where two atoms are as far
apart as the cutoff of angles (docs/model.md#step-at-the-angle-cutoff), and selection limits that
cut a shell of equal distances make the energy depend on rounding errors
(docs/model.md#ties-at-the-selection-limit). A property is a difference of energies or forces: if a
shell crosses the cutoff on the way, the difference contains the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.units import GPA
from dpa3sim.structures.system import stated_charge

from ..base import Stage

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential

# A shell this close to the cutoff (relative) is reported even if the property does not reach it.
NEAR = 0.015
# Distances that differ by less (Å) belong to one shell.
SHELL_WIDTH = 0.005
# Relative distance from the cutoff at which both sides of the step are evaluated.
ASIDE = 1e-6
# Smaller steps (meV/atom, GPa) are not reported.
SMALLEST_MEV, SMALLEST_GPA = 1e-3, 1e-3
ORDERS = 4


def check(
    atoms: Atoms,
    potential: BatchPotential,
    *,
    strain: float = 0.0,
    displacement: float = 0.0,
) -> list[str]:
    """Warnings about a structure that is going to be strained or whose atoms will be displaced.

    Args:
        atoms: the structure of the property, such as a relaxed crystal.
        potential: evaluates a few variants of it.
        strain: largest relative change of a length.
        displacement: largest displacement of an atom, Å.
    """
    start = potential.evaluate([atoms])[0]
    warnings = domain(atoms, potential, start)
    warnings += _steps(atoms, potential, strain, displacement)
    if start.n_cut_edges or start.n_cut_angle_edges:
        warnings += _truncated(atoms, potential, start)
    return warnings


def afterwards(warnings: Callable[..., Iterable[str]], *args: Any, **options: Any) -> list[str]:
    """Warnings about a finished result; an error in making them becomes a warning itself.

    Args:
        warnings: function that makes them from ``args`` and ``options``.
    """
    try:
        return list(warnings(*args, **options))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [f"a check of the finished result failed, the result itself is complete ({reason})"]


def stage(atoms: Atoms) -> Stage:
    """What :func:`check` is going to evaluate: more if shells are close to the cutoff."""
    note = "more where neighbours are at the angle cutoff, or cut"
    return Stage("checks of the model here", [len(atoms)], atoms, (1, 1 + ORDERS + 4), note=note)


def domain(atoms: Atoms, potential: BatchPotential, start: Evaluation) -> list[str]:
    """Warnings about a structure, with its evaluation, outside the domain of the model."""
    warnings = list(start.warnings)
    if not atoms.pbc.any():
        warnings.append(
            f"this is a molecule; model {potential.model.name} is used regardless of its "
            "training data"
        )
    return warnings + _charged(atoms, potential)


def _charged(atoms: Atoms, potential: BatchPotential) -> list[str]:
    """A warning about a charge that the model ignores."""
    charge = stated_charge(atoms.info) + float(atoms.get_initial_charges().sum())
    if (
        not np.isfinite(charge)
        or abs(charge) < 1e-6
        or potential.model.config.descriptor.add_chg_spin_ebd
    ):
        return []
    return [f"the structure has charge {charge:+g}; model {potential.model.name} ignores it"]


def _steps(
    atoms: Atoms, potential: BatchPotential, strain: float, displacement: float
) -> list[str]:
    """Warnings about shells of neighbours at the cutoff of a model with a step there."""
    descriptor = potential.model.config.descriptor
    if not descriptor.has_step:
        return []
    cutoff = descriptor.a_rcut
    reach = strain + 2 * displacement / cutoff
    warnings = []
    for shell, pairs in shells(atoms, cutoff, max(NEAR, 1.05 * reach)):
        energy, stress = _step(atoms, potential, cutoff / shell)
        if energy < SMALLEST_MEV and stress < SMALLEST_GPA:
            continue
        away = abs(shell / cutoff - 1)
        within = (
            "the strains or displacements here carry it across, so results contain that step"
            if away <= reach
            else f"it stays on one side here (range {100 * reach:.2g} %), but crosses the cutoff "
            "with larger changes"
        )
        warnings.append(
            f"neighbours {pairs} at {shell:.4f} Å are {100 * away:.2g} % from the angle cutoff "
            f"{cutoff:g} Å, where the energy of this model has a step of {energy:.3g} meV/atom and "
            f"the stress one of {stress:.3g} GPa: {within}"
        )
    return warnings


def shells(atoms: Atoms, cutoff: float, reach: float) -> list[tuple[float, str]]:
    """Mean distances and elements of the shells within ``reach`` (relative) of ``cutoff``."""
    from ase.data import chemical_symbols
    from ase.neighborlist import neighbor_list

    i, j, distance = neighbor_list("ijd", atoms, cutoff * (1 + reach))
    keep = (distance >= cutoff * (1 - reach)) & (i <= j)
    shells: list[list[tuple[float, str]]] = []
    order = np.argsort(distance[keep])
    for a, b, d in zip(i[keep][order], j[keep][order], distance[keep][order], strict=True):
        first, second = sorted((int(atoms.numbers[a]), int(atoms.numbers[b])))
        name = f"{chemical_symbols[first]}-{chemical_symbols[second]}"
        if shells and d - shells[-1][-1][0] < SHELL_WIDTH:
            shells[-1].append((float(d), name))
        else:
            shells.append([(float(d), name)])
    return [
        (float(np.mean([d for d, _ in shell])), ", ".join(sorted({name for _, name in shell})))
        for shell in shells
    ]


def _step(atoms: Atoms, potential: BatchPotential, scale: float) -> tuple[float, float]:
    """The step in energy (meV/atom) and pressure (GPa) if lengths are scaled to the cutoff."""
    sides = []
    for aside in (1 - ASIDE, 1 + ASIDE):
        side = atoms.copy()
        side.set_cell(atoms.cell[:] * scale * aside, scale_atoms=True)
        sides.append(side)
    inside, outside = potential.evaluate(sides)
    energy = 1000 * abs(inside.energy - outside.energy) / len(atoms)
    return energy, abs(_pressure(inside, sides[0]) - _pressure(outside, sides[1]))


def _truncated(atoms: Atoms, potential: BatchPotential, start: Evaluation) -> list[str]:
    """A warning if the cut selection makes the energy depend on orientation or order of atoms."""
    rng = np.random.default_rng(0)
    variants = []
    for _ in range(ORDERS):
        variant = atoms[rng.permutation(len(atoms))]
        variant.set_constraint()
        variant.rotate(float(rng.uniform(20, 160)), rng.normal(size=3), rotate_cell=True)
        variants.append(variant)
    results = [start, *potential.evaluate(variants)]
    energy = float(np.ptp([1000 * r.energy / len(atoms) for r in results]))
    stress = float(np.ptp([_pressure(r, atoms) for r in results]))
    if energy < SMALLEST_MEV and stress < SMALLEST_GPA:
        return []
    return [
        "the selection limit cuts neighbours: rotating the structure and reordering its atoms "
        f"changes the energy by {energy:.2g} meV/atom and the pressure by {stress:.2g} GPa; "
        "truncate=none avoids that"
    ]


def _pressure(result: Evaluation, atoms: Any) -> float:
    """Pressure from the virial, GPa; 0 without a volume."""
    if atoms.cell.rank < 3:
        return 0.0
    return float(np.trace(result.virial) / 3 / atoms.get_volume() / GPA)
