"""Steps of relaxations with two scales for the moves of the cell: ours, and that of ASE's filters.

    python benchmarks/cell_scale.py

Ten crystals, strained by 3 or 8 % and with every atom displaced, relax atoms and cell with the
embedded model and the defaults of ``dpa3sim relax``. ASE divides the forces on the cell by the
number of atoms; dpa3sim by a multiple of the root of the volume.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from dpa3sim import Engine, Potential
from dpa3sim.protocols import relax
from dpa3sim.protocols.crystals.cell_filter import CellFilter


def distorted(atoms: Atoms, seed: int, strain: float = 0.03, displacement: float = 0.05) -> Atoms:
    """A copy with another cell and other positions."""
    rng = np.random.default_rng(seed)
    change = rng.uniform(-1, 1, (3, 3))
    change += change.T
    change *= strain / np.abs(change).max()
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + change), scale_atoms=True)
    atoms.rattle(displacement, seed=seed)
    return atoms


def structures() -> list[Atoms]:
    """Metals, ionic and covalent crystals of 2 to 32 atoms."""
    rutile = crystal(
        "TiO",
        [(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136,
        cellpar=[4.65, 4.65, 2.97, 90, 90, 90],
    )
    quartz = crystal(
        "SiO",
        [(0.47, 0, 1 / 3), (0.41, 0.27, 0.12)],
        spacegroup=152,
        cellpar=[4.91, 4.91, 5.4, 90, 90, 120],
    )
    perovskite = crystal(
        ["Ba", "Ti", "O"],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[4.05] * 3 + [90] * 3,
    )
    gan = bulk("GaN", "wurtzite", a=3.19, c=5.19)
    return [
        distorted(rutile, 1),
        distorted(rutile * (1, 2, 2), 2),
        distorted(quartz, 3),
        distorted(perovskite, 4),
        distorted(bulk("MgO", "rocksalt", a=4.25) * 2, 5),
        distorted(bulk("Cu", cubic=True) * 2, 6),
        distorted(bulk("W", cubic=True), 7),
        distorted(bulk("NaCl", "rocksalt", a=5.7, cubic=True), 8),
        distorted(quartz, 9, 0.08, 0.1),
        distorted(gan * (2, 2, 1), 10, 0.08, 0.15),
    ]


class AseScale(CellFilter):
    """The filter with the factor that ASE takes where none is given."""

    def __init__(self, atoms: Atoms, exp_cell_factor: float, **kwargs: Any) -> None:
        super().__init__(atoms, **kwargs)


def main() -> None:
    """Relax all of them in both ways and print a table."""
    from dpa3sim.protocols.crystals import cell_filter

    potential, settings = Potential(), relax.Settings(cell="full", steps=300)
    crystals, steps = structures(), []
    for scale in (AseScale, CellFilter):
        cell_filter.CellFilter = scale  # type: ignore[misc]
        results = Engine(potential).map(
            crystals, lambda atoms: relax.run(atoms, atoms.calc.potential, settings)
        )
        if not all(result.converged for result in results):
            raise SystemExit("some did not converge")
        steps.append([result.steps[-1].index for result in results])
    print("| crystal | steps, number of atoms | steps, root of the volume | ratio |")
    print("|---|---|---|---|")
    for atoms, theirs, ours in zip(crystals, *steps, strict=True):
        print(f"| {atoms.get_chemical_formula()} | {theirs} | {ours} | {theirs / ours:.1f} |")
    ratios = np.divide(*steps)
    print(f"\nmean (geometric) {np.exp(np.log(ratios).mean()):.2f}")


if __name__ == "__main__":
    main()
