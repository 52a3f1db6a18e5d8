"""Masses of the structure in phonons and in dynamics."""

import numpy as np
import pytest
from ase.build import bulk, molecule

from dpa3sim.common.errors import InputError
from dpa3sim.protocols import elastic, md, phonon
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.crystals.isotopes import species
from dpa3sim.protocols.harmonics.force_constants import new_phonopy

OPTIONS = {"supercell": "2,2,2", "mesh": 20.0, "relax": False}


def hydride(*masses, cubic=False):
    """LiH whose hydrogen atoms have these masses, u, or their own."""
    atoms = bulk("LiH", "rocksalt", a=4.02, cubic=cubic)
    if masses:
        found = atoms.get_masses()
        found[atoms.numbers == 1] = masses
        atoms.set_masses(found)
    return atoms


def optical(result):
    return np.sort(result.to_dict()["frequencies_gamma_THz"])[-3:]


@pytest.fixture(scope="module")
def light(embedded64):
    return phonon.run(hydride(), embedded64, phonon.Settings(**OPTIONS))


def test_frequencies_go_with_the_reduced_mass(embedded64, light):
    """The force constants are the same: at Γ two sublattices vibrate against each other."""
    heavy = phonon.run(hydride(2.014), embedded64, phonon.Settings(**OPTIONS))
    np.testing.assert_allclose(
        heavy.phonon.force_constants, light.phonon.force_constants, atol=1e-12
    )
    reduced = [1 / (1 / 6.94 + 1 / m) for m in (1.008, 2.014)]
    ratio = np.sqrt(reduced[0] / reduced[1])
    np.testing.assert_allclose(optical(heavy), ratio * optical(light), rtol=1e-3)
    assert ratio < 0.8
    # The zero-point energy falls, the entropy rises.
    key = "zero_point_energy_per_atom_eV"
    assert heavy.to_dict()[key] < 0.85 * light.to_dict()[key]


def test_masses_that_are_the_usual_ones_change_nothing(embedded64, light):
    same = phonon.run(hydride(1.008), embedded64, phonon.Settings(**OPTIONS))
    np.testing.assert_allclose(optical(same), optical(light), rtol=1e-4)


def test_isotopes_of_one_element_are_not_equivalent(embedded64):
    """Half of the hydrogen atoms are deuterium: both masses are in the primitive cell."""
    atoms = hydride(1.008, 2.014, 1.008, 2.014, cubic=True)
    cells = Cells.of(atoms, 0.01)
    masses = cells.primitive.atoms.get_masses()
    assert len(masses) == 4
    assert sorted(masses.round(3)) == [1.008, 2.014, 6.94, 6.94]
    assert sorted(cells.conventional.atoms.get_masses().round(3).tolist()).count(2.014) == (
        len(cells.conventional.atoms) // 4
    )
    assert cells.number != 225
    expanded = cells.primitive.expand(cells.primitive.atoms)
    np.testing.assert_allclose(expanded.get_masses(), atoms.get_masses())
    result = phonon.run(atoms, embedded64, phonon.Settings(**{**OPTIONS, "supercell": "1,1,1"}))
    primitive = result.phonon.primitive
    assert sorted(primitive.masses.round(3)) == [1.008, 2.014, 6.94, 6.94]
    # Acoustic modes stay at zero, and the highest lies between those of both pure crystals.
    assert np.abs(np.sort(np.abs(result.to_dict()["frequencies_gamma_THz"]))[:3]).max() < 0.1


def test_without_masses_nothing_is_told_apart():
    atoms = hydride(cubic=True)
    assert (species(atoms) == atoms.numbers).all()
    assert len(Cells.of(atoms, 0.01).primitive.atoms) == 2
    unit = new_phonopy(hydride(2.014), np.eye(3, dtype=int), 0.01)
    assert list(unit.primitive.symbols) == ["Li", "H"]
    np.testing.assert_allclose(unit.primitive.masses, [6.94, 2.014])


def test_elastic_constants_do_not_depend_on_masses(embedded64):
    settings = elastic.Settings(relax=False)
    found = [
        elastic.run(atoms, embedded64, settings).to_dict() for atoms in (hydride(), hydride(2.014))
    ]
    np.testing.assert_allclose(*(r["elastic_tensor_GPa"] for r in found), atol=1e-6)
    assert found[1]["density_g_per_cm3"] > 1.1 * found[0]["density_g_per_cm3"]


def test_molecular_dynamics_moves_heavy_atoms_slower(embedded64):
    """One step from rest: displacements are F dt^2 / 2m."""
    steps = {}
    for name, mass in (("light", None), ("heavy", 2.014)):
        atoms = molecule("H2O")
        atoms.positions[1] *= 1.1
        if mass:
            masses = atoms.get_masses()
            masses[1:] = mass
            atoms.set_masses(masses)
        settings = md.Settings(steps=1, timestep=0.1, temperature=1e-6, ensemble="nve")
        result = md.run(atoms, embedded64, settings)
        steps[name] = result.atoms[0].get_positions() - atoms.positions
        expected = atoms.get_masses()
        np.testing.assert_allclose(result.atoms[0].get_masses(), expected)
    moved = [np.linalg.norm(steps[name][1] - steps[name].mean(axis=0)) for name in steps]
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_masses_that_are_none(bad):
    for check, options in ((phonon.check, phonon.Settings()), (md.check, md.Settings())):
        with pytest.raises(InputError, match=r"atom 1 \(H\) has the mass"):
            check(hydride(bad), options)
