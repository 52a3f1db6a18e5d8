"""Layers, chains and molecules are told from crystals that bonds hold together."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule, mx2
from ase.lattice.hexagonal import Graphite

from dpa3sim.structures.bonding import unbonded_pieces


def layer():
    atoms = mx2("MoS2", vacuum=None)
    atoms.cell[2] = [0, 0, 6.2]
    atoms.pbc = True
    return atoms


def chains():
    """Carbon chains along z."""
    return Atoms("C2", positions=[[0, 0, 0], [0, 0, 1.3]], cell=[3.5, 3.5, 2.6], pbc=True)


def two_waters(distance):
    water = molecule("H2O")
    other = water.copy()
    other.positions += [0, distance, 0]
    return water + other


@pytest.mark.parametrize(
    ("atoms", "word"),
    [
        (Graphite("C", latticeconstant=(2.46, 6.71)), "layers"),
        (layer(), "layers"),
        (chains(), "chains"),
        (molecule("H2O", cell=[3.1] * 3, pbc=True), "molecules"),
        (bulk("Ar", a=5.31), "molecules"),
        (two_waters(4.0), "molecules"),
    ],
)
def test_pieces_without_bonds(atoms, word):
    assert unbonded_pieces(atoms) == word
    if atoms.pbc.all():  # whichever cell describes it, and wherever its atoms are
        assert unbonded_pieces(atoms * (2, 1, 2)) == word
        other = atoms.copy()
        other.set_cell(np.array([[1, 0, 0], [2, 1, 0], [0, 1, 1]]) @ atoms.cell[:])
        other.positions[0] += 3 * other.cell[1]
        other.rotate(33, (1, 2, 3), rotate_cell=True)
        assert unbonded_pieces(other) == word


@pytest.mark.parametrize(
    "atoms",
    [
        *(bulk(x) for x in ("Si", "Cu", "W", "Zn", "Cd", "Sb", "Cs")),
        *(bulk(x, "rocksalt", a=a) for x, a in (("NaCl", 5.64), ("LiH", 4.08), ("KI", 7.07))),
        molecule("CH3CH2OH"),
        molecule("H2O", cell=[12.0] * 3, pbc=True),
        two_waters(9.0),
        fcc111("Cu", (2, 2, 3), vacuum=8.0),
        graphene(vacuum=8.0),
    ],
    ids=lambda atoms: atoms.get_chemical_formula(),
)
def test_everything_else(atoms):
    assert unbonded_pieces(atoms) is None
