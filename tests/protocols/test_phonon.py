"""Phonons: known frequencies, the same from every cell, honest verdicts, phonopy's numbers."""

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.io import read
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from tests_support import EXAMPLES

from dpa3sim import DPA3Calculator
from dpa3sim.common.errors import InputError
from dpa3sim.protocols import phonon
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.crystals.supercells import parse
from dpa3sim.protocols.crystals.symmetric_supercells import choose
from dpa3sim.protocols.harmonics.bands import BandPath
from dpa3sim.protocols.harmonics.force_constants import as_atoms, harmonic
from dpa3sim.protocols.harmonics.hessians import nondiagonal, period_of
from dpa3sim.protocols.phonon import Settings
from dpa3sim.run.directory import with_units
from dpa3sim.run.store import StoredPotential

SI = 5.465
# A small supercell and a coarse mesh, where physics does not need more.
SMALL = {"supercell": "max-atoms=64", "mesh": 40.0}
# Born charges and dielectric constant of MgO.
BORN = """\
14.399652
3.1 0 0 0 3.1 0 0 0 3.1
1.98 0 0 0 1.98 0 0 0 1.98
-1.98 0 0 0 -1.98 0 0 0 -1.98
"""


@pytest.fixture(scope="module")
def silicon(embedded64):
    return phonon.run(bulk("Si", a=5.45), embedded64, Settings(mesh=60.0))


def small(potential, atoms, **options):
    return phonon.run(atoms, potential, Settings(**(SMALL | options)))


def test_silicon(silicon):
    data = silicon.to_dict()
    assert data["frequencies_gamma_THz"][3:] == pytest.approx([13.8] * 3, rel=0.02)
    assert np.abs(data["frequencies_gamma_THz"][:3]).max() < 0.01
    assert data["verdict"] == "stable"
    assert data["spacegroup"] == "Fd-3m (227)"
    assert min(data["supercell_widths_A"]) >= 15
    assert data["n_displacements"] == 1
    # The primitive cell, and 216 atoms that keep a CPU busy alone.
    assert data["n_batches"] == 2
    modes = data["modes_gamma"]
    assert [(m["irrep"], m["degeneracy"], m["acoustic"]) for m in modes] == [
        ("T1u", 3, True),
        ("T2g", 3, False),
    ]
    # Sound along [100], the fastest: 8.4 km/s measured; the limit of Dulong and Petit.
    assert 7 < data["highest_group_velocity_km_per_s"] < 10
    assert data["heat_capacity_per_atom_J_per_K_mol"][-1] == pytest.approx(3 * 8.314, rel=0.03)
    assert data["residual_acoustic_gamma_THz"] < 0.01


@pytest.mark.parametrize("noise", [0.0, 2e-5])
def test_modes_of_a_cell_whose_origin_is_a_little_off(embedded64, noise):
    """phonopy takes a translation of 0.993 for none where the tolerance is 0.01 Å."""
    start = bulk("Si", a=5.465)
    start.translate(start.cell.cartesian_positions([-0.0033, -0.002, 0.001]))
    start.rattle(noise, seed=1)
    modes = small(embedded64, start, relax=False).to_dict()["modes_gamma"]
    assert [(m["irrep"], m["degeneracy"]) for m in modes] == [("T1u", 3), ("T2g", 3)]


def test_keys_carry_units(silicon):
    units = with_units(silicon.to_dict())["units"]
    assert units["frequencies_gamma_THz"] == "THz"
    assert units["free_energy_per_formula_unit_kJ_per_mol"] == "kJ/mol/formula unit"
    assert units["heat_capacity_per_atom_J_per_K_mol"] == "J/K/mol/atom"
    assert units["residual_translation_eV_per_A2"] == "eV/Å^2"
    assert units["highest_group_velocity_km_per_s"] == "km/s"
    assert units["temperatures_K"] == "K"


def test_thermal_properties_are_consistent(silicon):
    """S = -dF/dT and C = T dS/dT; F(0) is the zero-point energy; per cell is per atom times n."""
    data = silicon.to_dict()
    t = np.array(data["temperatures_K"])
    free = np.array(data["free_energy_per_atom_kJ_per_mol"])
    entropy = np.array(data["entropy_per_atom_J_per_K_mol"])
    capacity = np.array(data["heat_capacity_per_atom_J_per_K_mol"])
    np.testing.assert_allclose(-1000 * np.gradient(free, t)[15:-1], entropy[15:-1], rtol=5e-3)
    np.testing.assert_allclose((t * np.gradient(entropy, t))[15:-1], capacity[15:-1], rtol=5e-3)
    zero = data["zero_point_energy_per_atom_eV"]
    assert free[0] == pytest.approx(zero * 96.485, rel=1e-4)
    assert data["zero_point_energy_per_cell_eV"] == pytest.approx(2 * zero)


def test_densities_of_states_count_the_modes(silicon):
    dos = silicon.dos
    assert np.trapezoid(dos.total, dos.frequencies) == pytest.approx(6, rel=0.01)
    assert dos.projected.shape == (2, len(dos.frequencies))
    np.testing.assert_array_equal(*dos.projected)  # equivalent atoms


def test_densities_of_states_are_those_of_phonopy(embedded64):
    """Ours need only the irreducible wave vectors, phonopy's projected ones all of them."""
    oxide = small(embedded64, bulk("MgO", "rocksalt", a=4.25))
    dos, phonon = oxide.dos, oxide.crystal.phonon
    step = {"freq_min": dos.frequencies[0], "freq_max": dos.frequencies[-1] + 1e-6}
    step["freq_pitch"] = dos.frequencies[1] - dos.frequencies[0]
    total = phonon.run_total_dos(**step)
    np.testing.assert_allclose(dos.total, total.dos, atol=1e-10)
    phonon.run_mesh(oxide.settings.mesh, with_eigenvectors=True, is_mesh_symmetry=False)
    projected = phonon.run_projected_dos(**step).projected_dos
    np.testing.assert_allclose(dos.projected, projected, atol=1e-6)


def other_cells():
    primitive, conventional = bulk("Si", a=SI), bulk("Si", a=SI, cubic=True)
    rotated = conventional.copy()
    rotated.rotate(40, (3, 1, 2), rotate_cell=True)
    permuted = conventional[np.random.default_rng(1).permutation(8)]
    permuted.set_cell(permuted.cell[[2, 0, 1]])
    permuted.positions += [0.3, -0.2, 0.9]
    skewed = primitive.copy()
    skewed.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, 2, 1]]) @ primitive.cell[:])
    return {
        "conventional": conventional,
        "rotated": rotated,
        "permuted": permuted,
        "supercell": primitive * (2, 1, 1),
        "skewed": skewed,
    }


@pytest.fixture(scope="module")
def reference(embedded64):
    return small(embedded64, bulk("Si", a=SI))


@pytest.mark.parametrize("name", other_cells())
def test_every_cell_of_a_crystal_gives_the_same(embedded64, reference, name):
    atoms = other_cells()[name]
    result = small(embedded64, atoms)
    a, b = reference.to_dict(), result.to_dict()
    assert a["band_path"] == b["band_path"]
    assert a["n_atoms_supercell"] == b["n_atoms_supercell"]
    bands = [np.concatenate(r.phonon.band_structure.frequencies) for r in (reference, result)]
    np.testing.assert_allclose(bands[0], bands[1], rtol=1e-3, atol=1e-3)
    for key in ("free_energy", "entropy", "heat_capacity"):
        key = next(k for k in a if k.startswith(f"{key}_per_atom"))
        np.testing.assert_allclose(a[key][1:], b[key][1:], rtol=1e-3)
    dos = [r.dos.total for r in (reference, result)]
    np.testing.assert_allclose(dos[0], dos[1], atol=2e-3 * dos[0].max())
    per_cell = b["zero_point_energy_per_cell_eV"]
    assert per_cell == pytest.approx(len(atoms) * a["zero_point_energy_per_atom_eV"], rel=1e-3)


@pytest.mark.parametrize("name", other_cells())
def test_special_points_are_the_same_physical_points(name):
    """X of silicon is 1/a along an axis (docs/methods.md#paths-of-band-structures)."""
    atoms = other_cells()[name]
    path = BandPath.of(atoms, 0.01)
    x = path.points["X"]
    assert np.linalg.norm(x) == pytest.approx(1 / SI, rel=1e-6)
    axes = np.eye(3)
    if name == "rotated":
        turned = bulk("Si", a=SI, cubic=True)
        turned.rotate(40, (3, 1, 2), rotate_cell=True)
        axes = turned.cell[:] / SI
    assert np.abs(axes @ x * SI).max() == pytest.approx(1, abs=1e-6)
    given = path.coordinates(atoms.cell[:])["X"]
    np.testing.assert_allclose(given @ np.linalg.inv(atoms.cell[:]).T, x, atol=1e-9)


def test_the_path_has_a_label_for_every_end():
    path = BandPath.of(bulk("Si", a=SI), 0.01)
    jumps = path.connections().count(False)
    assert len(path.labels()) == len(path.segments) + jumps
    assert path.labels()[0] == "Γ"


@pytest.mark.parametrize(
    ("atoms", "size"),
    [
        (bulk("Si", a=SI), "1,1,1,-1,1,1,-1,-1,1"),
        (bulk("Si", a=SI), "2,1,1"),
        (bulk("Si", a=SI), "max-atoms=16"),
        pytest.param(bulk("Si", a=SI), "max-atoms=64", marks=pytest.mark.slow),
        pytest.param(read(EXAMPLES / "GaN.vasp"), "2,2,1", marks=pytest.mark.slow),
        pytest.param(bulk("NaCl", "rocksalt", a=5.7), "max-atoms=64", marks=pytest.mark.slow),
    ],
)
def test_analytic_and_finite_difference_force_constants_agree(embedded64, atoms, size):
    """The displacements are so small that their error, which is quadratic, is below 1e-5."""
    cells = Cells.of(atoms, 0.01)
    matrix, _ = choose(cells, parse(size), 6.0)
    constants = [
        harmonic(
            [cells.primitive.atoms],
            matrix,
            embedded64,
            Settings(method=m, distance=1e-4, symprec=1e-3),
        )[0].phonon.force_constants
        for m in ("fd", "analytic")
    ]
    largest = np.abs(constants[1]).max()
    assert largest > 1
    np.testing.assert_allclose(constants[0], constants[1], atol=1e-4 * largest)


def test_the_analytic_method_gives_the_phonons(embedded64):
    options = {"supercell": "2,2,2", "mesh": 30.0, "relax": False}
    atoms = bulk("Si", a=SI)
    a = phonon.run(atoms, embedded64, Settings(method="analytic", **options)).to_dict()
    b = phonon.run(atoms, embedded64, Settings(distance=1e-4, **options)).to_dict()
    assert a["n_displacements"] == 0
    assert a["frequencies_gamma_THz"][3:] == pytest.approx(b["frequencies_gamma_THz"][3:], rel=1e-5)
    x, y = (d["frequencies_special_points_THz"]["L"] for d in (a, b))
    assert x == pytest.approx(y, rel=1e-4)


@pytest.mark.parametrize("q", [(0.5, 0.5, 0), (1 / 3, 1 / 3, 0), (0, 0.25, 0.75), (0, 0, 0)])
def test_cells_of_a_wave_vector(q):
    atoms = bulk("Si", a=SI)
    atoms.positions += [0.1, 0.4, -0.3]
    period = period_of(np.array(q))
    cell, offsets = nondiagonal(atoms, np.array(q), period)
    assert len(cell) == 2 * period
    assert cell.cell.volume == pytest.approx(period * atoms.cell.volume)
    # The wave fits, and the cell holds the same crystal.
    in_vectors = cell.cell[:] @ np.linalg.inv(atoms.cell[:])
    np.testing.assert_allclose(in_vectors @ q, np.rint(in_vectors @ q), atol=1e-9)
    assert Cells.of(cell, 1e-4).number == 227
    assert len(np.unique(np.rint(offsets).astype(int), axis=0)) == period


def test_phonopy_with_our_calculator_gives_our_numbers(embedded64, reference):
    """The conventional cell for phonopy's unit cell, its own displacements and primitive cell."""
    atoms = reference.prepared.cells.conventional.atoms
    unit = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell[:],
        scaled_positions=atoms.get_scaled_positions(),
    )
    own = Phonopy(unit, supercell_matrix=[2, 2, 2], primitive_matrix="F")
    own.generate_displacements(distance=0.01)
    calculator = DPA3Calculator(embedded64)
    forces = []
    for cell in own.supercells_with_displacements:
        displaced = as_atoms(cell)
        displaced.calc = calculator
        forces.append(displaced.get_forces())
    own.forces = forces
    own.produce_force_constants()
    own.symmetrize_force_constants()
    own.run_mesh(SMALL["mesh"])
    own.run_thermal_properties(t_max=1000, t_step=10, exclude_gamma_acoustic=True)
    ours = reference.phonon.run_qpoints([[0, 0, 0], [0.5, 0, 0.5], [0.5, 0.5, 0.5]]).frequencies
    theirs = own.run_qpoints([[0, 0, 0], [0.5, 0, 0.5], [0.5, 0.5, 0.5]]).frequencies
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        reference.thermal.free_energy, own.thermal_properties.free_energy, rtol=1e-4, atol=1e-3
    )


def test_one_request_for_all_displacements(embedded64, tmp_path):
    """Four supercells of wurtzite: one batch; the second time nothing is computed."""
    atoms = read(EXAMPLES / "GaN.vasp")
    settings = Settings(supercell="2,2,1", mesh=20.0, relax=False)
    results = []
    for _ in range(2):
        with StoredPotential(embedded64, tmp_path / "s") as stored:
            results.append(phonon.run(atoms, stored, settings).to_dict())
            statistics = stored.statistics
    assert results[0] == results[1]
    assert results[0]["n_displacements"] == 4
    assert results[0]["n_batches"] == 1
    assert statistics.computed == 0
    assert statistics.found == statistics.asked > 4


def test_saved_second_derivatives_are_not_repeated(embedded64, tmp_path):
    settings = Settings(supercell="2,1,1", mesh=20.0, relax=False, method="analytic")
    results = []
    for _ in range(2):
        with StoredPotential(embedded64, tmp_path / "s") as stored:
            results.append(phonon.run(bulk("Si", a=SI), stored, settings).to_dict())
            computed = stored.statistics.computed
    assert results[0] == results[1]
    assert computed == 0


def test_residual_forces_are_subtracted(embedded64):
    """An unrelaxed crystal has forces; without subtraction its acoustic modes would not vanish."""
    atoms = read(EXAMPLES / "GaN.vasp")
    atoms.positions[:2, 2] += 0.02
    settings = Settings(supercell="2,2,1", mesh=20.0, relax=False)
    data = phonon.run(atoms, embedded64, settings).to_dict()
    assert data["residual_force_eV_per_A"] > 0.1
    assert data["residual_acoustic_gamma_THz"] < 0.05
    assert np.abs(data["frequencies_gamma_THz"][:3]).max() < 0.01


def test_an_unstable_crystal_is_told_and_followed(embedded64):
    """Body-centred titanium goes to the hexagonal phase along its mode at N (Burgers)."""
    atoms = bulk("Ti", "bcc", a=3.25)
    options = {"supercell": "2,2,2", "fmax": 1e-3, "smax": 0.02, "imaginary": "follow"}
    result = small(embedded64, atoms, **options)
    data = result.to_dict()
    assert data["verdict"] == "unstable"
    assert data["lowest_frequency_THz"] < -2
    assert any("left out of thermal properties" in w for w in data["warnings"])
    assert data["child_found"]
    assert data["child_spacegroup"] == "P6_3/mmc (194)"
    assert 0.05 < data["child_energy_gain_per_atom_eV"] < 0.2
    parent, child = (
        e.energy / len(a)
        for a in (atoms, result.child.atoms)
        for e in embedded64.evaluate([result.crystal.atoms if a is atoms else a])
    )
    assert parent - child == pytest.approx(data["child_energy_gain_per_atom_eV"], abs=1e-4)


def test_born_charges_split_the_optical_modes(embedded64, tmp_path):
    file = tmp_path / "BORN"
    file.write_text(BORN)
    atoms = bulk("MgO", "rocksalt", a=4.255)
    options = {"supercell": "2,2,2", "mesh": 30.0}
    plain = phonon.run(atoms, embedded64, Settings(**options))
    polar = phonon.run(atoms, embedded64, Settings(born=str(file), **options))
    assert any("--born" in w for w in plain.to_dict()["warnings"])
    assert not any("--born" in w for w in polar.to_dict()["warnings"])
    assert polar.to_dict()["nac"]
    near = [[1e-4, 0, 1e-4]]
    before, after = (r.phonon.run_qpoints(near).frequencies[0] for r in (plain, polar))
    assert before[5] == pytest.approx(before[3], abs=1e-3)
    assert after[3] == pytest.approx(before[3], abs=0.01)  # transverse: unchanged
    # Lyddane-Sachs-Teller: w_LO^2 - w_TO^2 = Z^2 e^2 / (eps V mu), here by hand.
    volume = polar.crystal.atoms.get_volume()
    reduced = 1 / (1 / 24.305 + 1 / 15.999)
    shift = 14.399652 * 4 * np.pi * 1.98**2 / (3.1 * volume * reduced) * 15.633302**2
    assert after[5] ** 2 - after[3] ** 2 == pytest.approx(shift, rel=0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a BORN file"),
        ("14.4\n1 2 3\n", "not a BORN file"),
        (BORN.replace("1.98", "abc"), "not a BORN file"),
        (BORN + "1 0 0 0 1 0 0 0 1\n", "Too many atoms"),
        (BORN.replace("3.1", "nan"), "NaN"),
        (None, "cannot be read"),
    ],
)
def test_bad_born_files(tmp_path, content, message):
    file = tmp_path / "BORN"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        phonon.check(read(EXAMPLES / "MgO.vasp"), Settings(born=str(file)))


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (molecule("H2O"), "phonons need a crystal, periodic along three axes; this is a molecule"),
        (molecule("H2"), "a molecule"),
        (fcc111("Cu", (1, 1, 4), vacuum=8.0), "phonons need a crystal"),
        (bulk("Cu")[:0], "no atoms"),
    ],
)
def test_what_has_no_phonons_is_refused(embedded64, atoms, message):
    with pytest.raises(InputError, match=message):
        phonon.run(atoms, embedded64)


def test_masses_of_the_structure_count(embedded64):
    """Heavy silicon: all frequencies smaller by the root of the mass ratio."""
    heavy = bulk("Si", a=SI)
    heavy.set_masses([2 * 28.0855] * 2)
    options = {"supercell": "2,2,2", "mesh": 20.0, "relax": False}
    a = phonon.run(bulk("Si", a=SI), embedded64, Settings(**options)).to_dict()
    b = phonon.run(heavy, embedded64, Settings(**options)).to_dict()
    ratio = a["frequencies_gamma_THz"][5] / b["frequencies_gamma_THz"][5]
    assert ratio == pytest.approx(np.sqrt(2), rel=1e-4)


def test_a_step_in_the_energy_is_told(embedded64):
    """Aluminium's second shell is near the cutoff of angles (guards)."""
    result = small(embedded64, bulk("Al", a=4.05), supercell="max-atoms=32", mesh=20.0)
    assert any("angle cutoff" in w for w in result.warnings)


def test_floats_of_less_precision_decide_less(embedded):
    options = {"supercell": "2,2,2", "mesh": 20.0, "relax": False, "dtype": "auto"}
    single = phonon.run(bulk("Si", a=SI), embedded, Settings(**options)).to_dict()
    assert single["noise_floor_THz"] > 0.05
    assert any("float32" in w for w in single["warnings"])
