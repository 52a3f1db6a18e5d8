"""What must hold of any potential: derivatives, symmetries, extensivity."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tests_support import DATA, load_reference, reference_atoms

from dpa3sim import Potential

SMOOTH = Potential(DATA / "models/dynamic/model.pt")
WATER = next(
    reference_atoms(c)
    for c in load_reference(DATA / "models/dynamic/reference.json")
    if c["system"] == "water8_triclinic"
)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=12, deadline=None)


def shaken(seed, amplitude=0.08):
    atoms = WATER.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=amplitude, size=(len(atoms), 3))
    return atoms


def energy(potential, atoms):
    return potential.evaluate([atoms])[0].energy


def difference(potential, atoms, displace, step):
    """Fourth-order central difference of the energy along a one-parameter change."""

    def at(x):
        changed = atoms.copy()
        displace(changed, x)
        return energy(potential, changed)

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def check_derivatives(potential, atoms, atol, n_forces=4, step=1e-3):
    result = potential.evaluate([atoms])[0]
    rng = np.random.default_rng(0)
    for _ in range(n_forces):
        index, axis = int(rng.integers(len(atoms))), int(rng.integers(3))

        def move(a, x, index=index, axis=axis):
            a.positions[index, axis] += x

        slope = difference(potential, atoms, move, step)
        assert result.forces[index, axis] == pytest.approx(-slope, abs=atol)
    for row, column in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

        def strain(a, x, row=row, column=column):
            deformation = np.eye(3)
            deformation[row, column] += x / 2
            deformation[column, row] += x / 2
            if a.pbc.any():
                a.set_cell(a.cell[:] @ deformation, scale_atoms=True)
            else:
                a.positions = a.positions @ deformation

        slope = difference(potential, atoms, strain, step / 2)
        symmetric = (result.virial[row, column] + result.virial[column, row]) / 2
        assert symmetric == pytest.approx(-slope, abs=atol * 5)


def test_derivatives_of_a_smooth_model():
    """Polynomial switch, smooth update: no step anywhere, pairs may cross the cutoffs."""
    potential = Potential(DATA / "variants/linear/model.pt", truncate="none")
    # The switch has no fourth derivative at the cutoffs; a small step keeps that out.
    check_derivatives(potential, WATER, atol=1e-8, step=1e-4)


def test_derivatives_of_a_dynamic_model():
    """The exponential switch ends at 8e-7, so no pair may cross the cutoff: a small molecule."""
    check_derivatives(SMOOTH, Atoms("OHHOHH", positions=WATER.positions[:6]), atol=1e-9)


@pytest.mark.parametrize(
    "variant", ["linear", "res_avg", "sequential_static", "noangle", "econf_bias16"]
)
def test_derivatives_of_every_kind_of_layer(variant):
    """Water molecules far enough apart that no pair is near a cutoff step."""
    potential = Potential(DATA / "variants" / variant / "model.pt")
    atoms = Atoms("OHHOHH", positions=WATER.positions[:6] * 1.02)
    check_derivatives(potential, atoms, atol=1e-8, n_forces=3)


@pytest.mark.parametrize("variant", ["res_incr", "res_avg", "sequential_static", "act_softplus"])
def test_derivatives_where_the_step_is_smoothed(variant):
    """Pairs may cross the cutoff of angles; the switch of edges needs a small step."""
    path = DATA / "variants" / variant / "model.pt"
    check_derivatives(Potential(path, truncate="none", smooth_cutoff=0.8), WATER, 1e-8, step=1e-4)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Si", cubic=True),  # neighbours at 2.35, 3.84 and 4.50 Å: none near 4 or 6 Å
        bulk("Cu", "fcc", 3.70, cubic=True),
    ],
    ids=["Si", "Cu"],
)
def test_derivatives_of_the_embedded_model(embedded64, atoms):
    atoms = atoms.copy()
    atoms.rattle(0.03, seed=1)
    check_derivatives(embedded64, atoms, atol=2e-7, n_forces=3)


def test_atomic_energies_add_up_and_forces_vanish_in_sum(embedded64):
    atoms = bulk("MgO", "rocksalt", 4.25, cubic=True)
    atoms.rattle(0.05, seed=2)
    result = embedded64.evaluate([atoms])[0]
    assert result.energies.sum() == pytest.approx(result.energy, abs=1e-12)
    np.testing.assert_allclose(result.forces.sum(axis=0), 0, atol=1e-12)


@few
@given(seeds)
def test_rotation(seed):
    atoms, rotated = shaken(seed), shaken(seed)
    matrix = Rotation.random(random_state=seed % 2**32).as_matrix()
    if seed % 2:
        matrix = -matrix  # an improper rotation: also a symmetry
    rotated.set_cell(rotated.cell[:] @ matrix.T)
    rotated.positions = rotated.positions @ matrix.T
    a, b = SMOOTH.evaluate([atoms, rotated])
    assert b.energy == pytest.approx(a.energy, abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces @ matrix.T, atol=1e-11)
    np.testing.assert_allclose(b.virial, matrix @ a.virial @ matrix.T, atol=1e-10)


@few
@given(seeds)
def test_translation_and_wrapping(seed):
    rng = np.random.default_rng(seed)
    atoms, moved = shaken(seed), shaken(seed)
    moved.positions += rng.uniform(-20, 20, 3)
    moved.positions += rng.integers(-3, 4, (len(moved), 3)) @ moved.cell[:]
    a, b = SMOOTH.evaluate([atoms, moved])
    assert b.energy == pytest.approx(a.energy, abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces, atol=1e-11)
    np.testing.assert_allclose(b.virial, a.virial, atol=1e-10)


@few
@given(seeds)
def test_permutation(seed):
    atoms = shaken(seed)
    order = np.random.default_rng(seed).permutation(len(atoms))
    a, b = SMOOTH.evaluate([atoms, atoms[order]])
    assert b.energy == pytest.approx(a.energy, abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces[order], atol=1e-11)
    np.testing.assert_allclose(b.energies, a.energies[order], atol=1e-11)


@few
@given(seeds)
def test_choice_of_cell(seed):
    """Another basis of the same lattice, and a supercell, describe the same crystal."""
    rng = np.random.default_rng(seed)
    atoms = shaken(seed)
    basis = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.permutation(3)[:2]
        basis[i] += int(rng.integers(-1, 2)) * basis[j]
    other = atoms.copy()
    other.set_cell(basis @ atoms.cell[:])
    a, b = SMOOTH.evaluate([atoms, other])
    assert b.energy == pytest.approx(a.energy, abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces, atol=1e-11)


def test_supercell():
    atoms = shaken(4)
    matrix = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 1]])
    big = make_supercell(atoms, matrix)
    a, b = SMOOTH.evaluate([atoms, big])
    assert b.energy == pytest.approx(2 * a.energy, abs=1e-9)
    np.testing.assert_allclose(b.virial, 2 * a.virial, atol=1e-9)
    forces = {tuple(np.round(f, 9)) for f in b.forces}
    assert forces == {tuple(np.round(f, 9)) for f in a.forces}


def test_supercell_with_the_embedded_model(embedded64):
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=5)
    a, b = embedded64.evaluate([atoms, atoms * (2, 1, 3)])
    assert b.energy == pytest.approx(6 * a.energy, abs=1e-9)
    np.testing.assert_allclose(b.forces[:2], a.forces, atol=1e-9)


def test_isolated_atoms_have_an_energy_and_no_force(embedded64):
    one = embedded64.evaluate([Atoms("O")])[0]
    two = embedded64.evaluate([Atoms("O2", [[0, 0, 0], [100, 0, 0]])])[0]
    assert np.isfinite(one.energy)
    assert two.energy == pytest.approx(2 * one.energy, abs=1e-12)
    assert not one.forces.any()
    assert not two.forces.any()
    assert not two.virial.any()


def test_the_same_batch_twice_gives_the_same_bits(embedded):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    a, b = embedded.evaluate([atoms])[0], embedded.evaluate([atoms])[0]
    assert a.energy == b.energy
    np.testing.assert_array_equal(a.forces, b.forces)
    np.testing.assert_array_equal(a.virial, b.virial)
