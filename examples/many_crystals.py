"""Writes a thousand small crystals, or as many as are asked for, to have something to screen.

    python examples/many_crystals.py 1000

Binary compounds of 20 elements in five prototypes, primitive and conventional cells of 2 to 12
atoms, their bonds as long as the covalent radii say and every atom a little out of its place.

Prints:
    1000 crystals of 20 elements, 2 to 12 atoms -> crystals.extxyz
"""

import itertools
import random
import sys

from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii
from ase.io import write

CATIONS = "Li Na K Mg Ca Sr Ba Al Sc Y Ti Zr Zn Cd".split()
ANIONS = "O S Se F Cl N".split()
# Lattice constant in lengths of a bond.
PROTOTYPES = {
    "rocksalt": 2.0,
    "cesiumchloride": 1.155,
    "zincblende": 2.309,
    "fluorite": 2.309,
    "wurtzite": 1.633,
}
CUBIC = ("rocksalt", "zincblende", "fluorite")  # with conventional cells of 8 or 12 atoms


def crystals():
    """All of them, in a fixed order that mixes sizes and elements."""
    found = []
    for cation, anion, prototype in itertools.product(CATIONS, ANIONS, PROTOTYPES):
        bond = sum(covalent_radii[atomic_numbers[name]] for name in (cation, anion))
        formula = f"{cation}{anion}2" if prototype == "fluorite" else f"{cation}{anion}"
        for cubic in (False, True) if prototype in CUBIC else (False,):
            for scale in (0.97, 1.03):
                a = scale * PROTOTYPES[prototype] * bond
                atoms = bulk(formula, prototype, a=a, cubic=cubic)
                atoms.rattle(0.05, seed=len(found))
                atoms.info["prototype"] = prototype
                found.append(atoms)
    random.Random(0).shuffle(found)
    return found


count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
chosen = crystals()[:count]
write("crystals.extxyz", chosen)
elements = {symbol for atoms in chosen for symbol in atoms.symbols}
sizes = [len(atoms) for atoms in chosen]
print(
    f"{len(chosen)} crystals of {len(elements)} elements, {min(sizes)} to {max(sizes)} atoms "
    "-> crystals.extxyz"
)
