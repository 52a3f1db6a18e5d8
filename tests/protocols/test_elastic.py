"""Elastic constants: known values, symmetry, invariance to the cell, honesty about doubts."""

import json

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk, fcc111
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.units import GPa
from matscipy.elasticity import fit_elastic_constants, generate_strained_configs

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.common.errors import InputError, NotConvergedError
from dpa3sim.protocols import elastic
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.crystals.moduli import directional_young, moduli
from dpa3sim.protocols.crystals.stiffness import (
    invariant_tensors,
    needed_components,
    rotated,
    standard_orientation,
)
from dpa3sim.protocols.elastic import Settings
from dpa3sim.run.store import StoredPotential

# C11, C12, C44 with relaxed and C44 with clamped ions, GPa, of the embedded model in float64.
CUBIC = {
    "Si": (bulk("Si"), (133, 57, 73, 101)),
    "MgO": (bulk("MgO", "rocksalt", a=4.25), (262, 89, 122, 122)),
    "Cu": (bulk("Cu"), (178, 121, 74, 74)),
    "W": (bulk("W"), (486, 178, 144, 144)),
}
LAUE = {
    "-1": (2, 21),
    "2/m": (14, 13),
    "mmm": (62, 9),
    "4/m": (88, 7),
    "4/mmm": (139, 6),
    "-3": (148, 7),
    "-3m": (167, 6),
    "6/m": (176, 5),
    "6/mmm": (194, 5),
    "m-3": (205, 3),
    "m-3m": (225, 3),
}


def cubic_tensor(c11, c12, c44):
    c = np.zeros((6, 6))
    c[:3, :3] = c12
    np.fill_diagonal(c, [c11] * 3 + [c44] * 3)
    return c


@pytest.mark.parametrize("name", CUBIC)
def test_known_constants(embedded64, name):
    atoms, (c11, c12, c44, clamped) = CUBIC[name]
    result = elastic.run(atoms, embedded64)
    expected = cubic_tensor(c11, c12, c44)
    ieee = np.array(result.to_dict()["elastic_tensor_ieee_GPa"])
    np.testing.assert_allclose(ieee, expected, rtol=0.02, atol=1e-6)
    ieee = np.array(result.to_dict()["elastic_tensor_clamped_ieee_GPa"])
    np.testing.assert_allclose(ieee, cubic_tensor(c11, c12, clamped), rtol=0.02, atol=1e-6)
    assert result.components == (0, 3)
    assert result.n_independent == 3
    assert result.moduli.born_stable
    assert result.relaxed.error.max() < 0.005 * c11


def test_ions_on_inversion_centres_do_not_relax(embedded64):
    """Rock salt: both tensors are the same (docs/methods.md#elastic-constants)."""
    result = elastic.run(bulk("MgO", "rocksalt", a=4.25), embedded64)
    np.testing.assert_allclose(result.relaxed.stiffness, result.clamped.stiffness, atol=1e-6)


def random_rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def turned(atoms, rotation):
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] @ rotation.T)
    atoms.positions = atoms.positions @ rotation.T
    return atoms


@pytest.mark.parametrize("fix_symmetry", [pytest.param(True, marks=pytest.mark.slow), False])
def test_every_cell_of_a_crystal_gives_the_same_tensor(embedded64, fix_symmetry):
    """Conventional, primitive, rotated, reordered, shifted, repeated: 1e-3 after turning back."""
    settings = Settings(fix_symmetry=fix_symmetry)
    conventional = bulk("Si", a=5.44, cubic=True)
    reference = elastic.run(conventional, embedded64, settings)
    rotation = random_rotation(3)
    reordered = conventional[np.random.default_rng(1).permutation(8)]
    reordered.positions += [0.3, -1.2, 7.0]
    repeated = bulk("Si", a=5.44) * (2, 1, 1)
    largest = reference.relaxed.stiffness.max()
    cases = [(turned(conventional, rotation), rotation), (repeated, np.eye(3))]
    if fix_symmetry:
        cases += [(bulk("Si", a=5.44), np.eye(3)), (reordered, np.eye(3))]
    for atoms, turn in cases:
        result = elastic.run(atoms, embedded64, settings)
        for name in ("relaxed", "clamped"):
            back = rotated(getattr(result, name).stiffness, turn.T)
            expected = getattr(reference, name).stiffness
            np.testing.assert_allclose(back, expected, atol=1e-3 * largest)
        np.testing.assert_allclose(
            result.to_dict()["elastic_tensor_ieee_GPa"],
            reference.to_dict()["elastic_tensor_ieee_GPa"],
            atol=1e-3 * largest,
        )


def test_trigonal_axes_have_one_sense(embedded64):
    """Antimony given in axes turned by half a turn: C14 has the other sign, but not in IEEE's."""
    sb = Atoms(
        "Sb2",
        scaled_positions=[[0.2336] * 3, [-0.2336] * 3],
        cell=[4.507, 4.507, 4.507, 57.11, 57.11, 57.11],
        pbc=True,
    )
    settings = Settings(relax_ions=False, relax=False)
    a = elastic.run(sb, embedded64, settings)
    b = elastic.run(turned(sb, random_rotation(8)), embedded64, settings)
    half = np.diag([-1.0, -1.0, 1.0])
    c = elastic.run(turned(turned(sb, a.rotation), half), embedded64, settings)
    ieee = [np.array(r.to_dict()["elastic_tensor_clamped_ieee_GPa"]) for r in (a, b, c)]
    assert a.n_independent == 6
    assert ieee[0][0, 3] > 1
    assert ieee[0][0, 4] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(ieee[1], ieee[0], atol=1e-3 * ieee[0].max())
    np.testing.assert_allclose(ieee[2], ieee[0], atol=1e-3 * ieee[0].max())


def test_all_strains_confirm_the_symmetry_in_few_batches(embedded64, tmp_path):
    """24 strains of a crystal whose ions relax: a batch for each step of the slowest."""
    few = elastic.run(bulk("Ti"), embedded64)
    with StoredPotential(embedded64, tmp_path / "s") as stored:
        many = elastic.run(bulk("Ti"), stored, Settings(all_strains=True))
        before = many.prepared.relaxation.steps[-1].index + 1
        assert stored.statistics.computed > 60
        assert stored.statistics.batches < before + 12
    assert (few.components, many.components) == ((0, 2, 3), tuple(range(6)))
    assert many.to_dict()["n_strains"] == 24
    np.testing.assert_allclose(many.relaxed.stiffness, few.relaxed.stiffness, atol=0.3)
    assert many.relaxed.residual < 0.5
    # Relaxing ions can only soften a crystal.
    softened = np.linalg.eigvalsh(few.clamped.stiffness - few.relaxed.stiffness)
    assert softened.min() > -0.05
    assert softened.max() > 10


def test_matscipy_fits_the_same_clamped_tensor(embedded64):
    result = elastic.run(bulk("Si"), embedded64)
    start = result.prepared.cells.primitive.atoms
    strained = generate_strained_configs(start, "triclinic", N_steps=5, delta=0.0025)
    configurations = []
    for atoms in strained:
        configurations.append(atoms)
        atoms.calc = DPA3Calculator(embedded64)
    c, _ = fit_elastic_constants(configurations, "triclinic", N_steps=5, verbose=False)
    np.testing.assert_allclose(c * 160.21766208, result.clamped.stiffness, atol=0.5)


@pytest.mark.parametrize("name", ["Si", "MgO"])
def test_differences_of_stresses_by_ase_give_the_relaxed_tensor(embedded64, name):
    """ASE alone: its optimizers for the crystal and for the ions of each strained cell."""
    start, _ = CUBIC[name]
    crystal = start.copy()
    crystal.calc = DPA3Calculator(embedded64)
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-6, steps=100)
    sizes = np.array([0.0025, 0.005])

    def stress(component, size):
        strain = np.zeros((3, 3))
        i, j = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)][component]
        strain[i, j] += size / 2
        strain[j, i] += size / 2
        strained = crystal.copy()
        strained.set_cell(crystal.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = DPA3Calculator(embedded64)
        BFGS(strained, logfile=None).run(fmax=1e-6, steps=100)
        return strained.get_stress() / GPa

    differences = [[(stress(c, s) - stress(c, -s)) / 2 for s in sizes] for c in range(6)]
    expected = np.einsum("s,csi->ic", sizes, differences) / (sizes @ sizes)
    result = elastic.run(start, embedded64)
    np.testing.assert_allclose(result.relaxed.stiffness, expected, atol=1e-3 * expected.max())


def test_without_relaxed_ions(embedded64):
    result = elastic.run(bulk("Si"), embedded64, Settings(relax_ions=False))
    data = result.to_dict()
    assert result.relaxed is None
    assert data["elastic_tensor_GPa"] is None
    assert data["elastic_tensor_clamped_ieee_GPa"][3][3] == pytest.approx(101, rel=0.02)


def test_an_unstable_crystal_is_told(embedded64):
    result = elastic.run(bulk("Ti", "bcc", a=3.25), embedded64)
    assert not result.moduli.born_stable
    assert any("mechanically unstable" in warning for warning in result.warnings)


def test_stress_at_zero_strain_is_told(embedded64):
    result = elastic.run(bulk("Cu", a=3.5), embedded64, Settings(relax=False))
    assert any("has a stress of" in warning for warning in result.warnings)


def test_shells_near_the_cutoff_are_told(embedded64):
    assert any("angle cutoff" in w for w in elastic.run(bulk("Al"), embedded64).warnings)


def test_no_crystal_no_constants(embedded64):
    slab = fcc111("Cu", (1, 1, 4), vacuum=8)
    slab.pbc = True
    with pytest.raises(InputError, match="elastic constants need a crystal; this is a slab"):
        elastic.run(slab, embedded64)


def test_ions_that_do_not_converge_are_told(embedded64):
    result = elastic.run(bulk("Si", a=5.465), embedded64, Settings(relax=False, steps=1))
    assert not result.converged
    assert "4 of 4 strained cells did not relax in 1 steps" in result.reasons[0]
    with pytest.raises(NotConvergedError):
        elastic.run(bulk("Si", a=5.3), embedded64, Settings(steps=1))


def test_diamond_in_spite_of_its_cut_selection(embedded64):
    """Forces jump at docs/model.md#ties-at-the-selection-limit; symmetry keeps ions out of it."""
    result = elastic.run(bulk("C", a=3.57), embedded64)
    assert result.converged
    assert any("selection limit" in warning for warning in result.warnings)
    assert any("not linear" in warning for warning in result.warnings)


@pytest.mark.slow
def test_diamond_with_all_neighbours_is_linear():
    result = elastic.run(bulk("C", a=3.57), Potential(dtype="float64", truncate="none"))
    assert not result.warnings
    assert result.relaxed.error.max() < 1


def test_result_is_json_ready(embedded64):
    result = elastic.run(bulk("Cu"), embedded64)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert np.shape(data["elastic_tensor_GPa"]) == (6, 6)
    assert data["settings"]["fmax_eV_per_A"] == 1e-5
    assert data["laue_class"] == "m-3m"


# -- symmetry -----------------------------------------------------------------------------------


def cartesian_point_group(number):
    """Rotations of a space group in a lattice that it allows."""
    hall = next(h for h in range(1, 531) if spglib.get_spacegroup_type(h).number == number)
    rotations = spglib.get_symmetry_from_database(hall)["rotations"]
    generic = np.array([[3.0, 0.1, 0.2], [0.1, 4.1, 0.3], [0.2, 0.3, 5.3]])
    metric = np.mean([w.T @ generic @ generic.T @ w for w in rotations], axis=0)
    columns = np.linalg.cholesky(metric).T
    return np.array([columns @ w @ np.linalg.inv(columns) for w in rotations])


@pytest.mark.parametrize("name", LAUE)
def test_independent_constants_of_every_laue_class(name):
    number, count = LAUE[name]
    group = cartesian_point_group(number)
    basis = invariant_tensors(group)
    assert len(basis) == count
    rng = np.random.default_rng(number)
    tensor = np.einsum("k,kij->ij", rng.normal(size=count), basis)
    for rotation in group:
        np.testing.assert_allclose(rotated(tensor, rotation), tensor, atol=1e-9)
    components = needed_components(basis)
    columns = basis[:, :, list(components)].reshape(count, -1)
    assert np.linalg.matrix_rank(columns) == count
    for component in components:
        fewer = [c for c in components if c != component]
        columns = basis[:, :, fewer].reshape(count, -1)
        assert np.linalg.matrix_rank(columns) < count


@pytest.mark.parametrize("name", LAUE)
def test_the_fit_recovers_a_tensor_from_its_stresses(name):
    """With even and odd orders of the strain besides, and in any orientation."""
    group = cartesian_point_group(LAUE[name][0])
    basis = invariant_tensors(group)
    rng = np.random.default_rng(1)
    tensor = 100 * np.einsum("k,kij->ij", rng.normal(size=len(basis)), basis)
    frame = random_rotation(5)
    components = needed_components(basis)
    magnitudes = np.array([0.0025, 0.005])
    even = rng.normal(size=6) * 1000
    stresses = np.array(
        [
            0.05 + tensor[:, c] * s * m + even * m**2
            for c in components
            for m in magnitudes
            for s in (1, -1)
        ]
    )
    fitted = elastic._fit(stresses, components, magnitudes, basis, frame)
    np.testing.assert_allclose(rotated(fitted.stiffness, frame), tensor, atol=1e-8)
    assert fitted.residual < 1e-8
    assert fitted.error.max() < 1e-8
    noisy = elastic._fit(
        stresses + 1e-3 * rng.normal(size=stresses.shape), components, magnitudes, basis, frame
    )
    assert 0.01 < noisy.error.max() < 2
    assert np.abs(noisy.stiffness - fitted.stiffness).max() < 10 * noisy.error.max()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_orthorhombic_axes_are_ordered_by_length(order):
    """c < a < b (IEEE 176)."""
    lengths = np.array([3.0, 4.0, 5.0])[list(order)]
    cells = Cells.of(turned(Atoms("Cu", cell=lengths, pbc=True), random_rotation(2)), 1e-3)
    axes = cells.input.atoms.cell[:] / lengths[:, None]
    frame = standard_orientation(cells)
    along = [lengths[np.argmax(np.abs(axes @ row))] for row in frame]
    assert along == [4.0, 5.0, 3.0]
    assert np.linalg.det(frame) == pytest.approx(1)


@pytest.mark.parametrize("seed", [1, 2])
def test_standard_axes_follow_the_crystal(seed):
    """The same physical axes, however the crystal lies."""
    rotation = random_rotation(seed)
    for atoms in (bulk("Ti"), bulk("Sn", "diamond", 6.5), bulk("GaN", "wurtzite", a=3.2, c=5.2)):
        frame = standard_orientation(Cells.of(atoms, 1e-3))
        again = standard_orientation(Cells.of(turned(atoms, rotation), 1e-3))
        relative = again @ rotation @ frame.T
        group = frame @ Cells.of(atoms, 1e-3).rotations @ frame.T
        assert min(np.abs(relative - sign * g).max() for g in group for sign in (1, -1)) < 1e-6
        assert np.linalg.det(frame) == pytest.approx(1)


# -- moduli -------------------------------------------------------------------------------------


def test_isotropic_moduli():
    bulk_modulus, shear = 150.0, 70.0
    c = cubic_tensor(bulk_modulus + 4 * shear / 3, bulk_modulus - 2 * shear / 3, shear)
    values = moduli(c, bulk("Cu"))
    assert values.bulk == pytest.approx((bulk_modulus,) * 3)
    assert values.shear == pytest.approx((shear,) * 3)
    assert values.young == pytest.approx(9 * bulk_modulus * shear / (3 * bulk_modulus + shear))
    assert values.poisson == pytest.approx(values.young / (2 * shear) - 1)
    assert values.universal_anisotropy == pytest.approx(0)
    assert values.zener == pytest.approx(1)
    assert values.young_extremes == pytest.approx((values.young,) * 2)
    assert values.eigenvalues == pytest.approx((2 * shear,) * 5 + (3 * bulk_modulus,))


def test_copper_from_measured_constants():
    """168.4, 121.4, 75.4 GPa (Overton and Gaffney 1955): textbook values follow."""
    values = moduli(cubic_tensor(168.4, 121.4, 75.4), bulk("Cu", a=3.615))
    assert values.bulk[2] == pytest.approx(137.1, abs=0.1)
    assert values.shear[0] == pytest.approx(54.6, abs=0.1)
    assert values.shear[1] == pytest.approx(40.0, abs=0.1)
    assert values.zener == pytest.approx(3.21, abs=0.01)
    assert values.young_extremes == pytest.approx((66.7, 191.1), abs=0.2)
    assert np.abs(values.young_directions[1]) == pytest.approx([3**-0.5] * 3, abs=2e-3)
    assert values.density == pytest.approx(8.93, abs=0.01)
    assert values.debye_temperature == pytest.approx(343, rel=0.03)  # from the heat capacity


def test_moduli_do_not_depend_on_the_orientation():
    rng = np.random.default_rng(4)
    c = rng.normal(size=(6, 6))
    c = 100 * (c @ c.T + np.eye(6))
    a, b = moduli(c, bulk("Cu")), moduli(rotated(c, random_rotation(6)), bulk("Cu"))
    for name in ("bulk", "shear", "young", "eigenvalues", "universal_anisotropy"):
        assert getattr(a, name) == pytest.approx(getattr(b, name))
    assert a.young_extremes == pytest.approx(b.young_extremes, rel=1e-4)


def test_directional_young_is_that_of_a_pull(embedded64):
    """Along a turned x axis it is 1 / S11 of the turned tensor."""
    rng = np.random.default_rng(4)
    c = rng.normal(size=(6, 6))
    c = 100 * (c @ c.T + np.eye(6))
    rotation = random_rotation(9)
    expected = 1 / np.linalg.inv(rotated(c, rotation))[0, 0]
    assert directional_young(np.linalg.inv(c), rotation[0]) == pytest.approx(expected)


def test_an_unstable_tensor_has_no_directions_and_no_sound():
    values = moduli(cubic_tensor(100, 150, 50), bulk("Cu"))
    assert not values.born_stable
    assert values.young_extremes is None
    values = moduli(cubic_tensor(100, 150, -50), bulk("Cu"))
    assert values.to_dict()["debye_temperature_K"] is None
