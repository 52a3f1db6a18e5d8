"""Structures of silicon unlike those of a crystal that vibrates, with labels of the embedded model.

They show whether a model that knows crystals notices what it does not know (docs/uncertainty.md).

Prints:
    29 structures -> strange.extxyz
"""

import numpy as np
from ase.build import bulk, surface
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpa3sim import Potential

rng = np.random.default_rng(3)
frames = []


def add(kind, atoms, spread):
    """Add a copy whose atoms are displaced at random, by so many Å."""
    atoms = atoms.copy()
    atoms.positions += rng.normal(scale=spread, size=atoms.positions.shape)
    atoms.info = {"config_type": kind}
    frames.append(atoms)


crystal = bulk("Si", cubic=True) * (2, 2, 1)
for spread in (0.3, 0.4, 0.5):
    for _ in range(3):
        add("distorted", crystal, spread)
for _ in range(4):
    vacancy = crystal.copy()
    del vacancy[5]
    add("vacancy", vacancy, 0.05)
for miller in ((1, 0, 0), (1, 1, 0), (1, 1, 1)):
    slab = surface(bulk("Si", cubic=True), miller, 2, vacuum=6)
    for spread in (0.03, 0.1):
        add("slab", slab, spread)
for name, a in (("fcc", 3.9), ("bcc", 3.1), ("sc", 2.55)):
    for spread in (0.02, 0.1):
        add("other lattice", bulk("Si", name, a=a, cubic=True) * 2, spread)
for factor in (0.88, 0.92, 1.08, 1.12):
    strained = crystal.copy()
    strained.set_cell(strained.cell * factor, scale_atoms=True)
    add("strained", strained, 0.05)

potential = Potential()
for atoms in frames:
    (found,) = potential.evaluate([atoms])
    atoms.calc = SinglePointCalculator(atoms, energy=found.energy, forces=found.forces)
write("strange.extxyz", frames)
print(f"{len(frames)} structures -> strange.extxyz")
