"""Born charges: every form of phonopy's file, whole and reduced, and what is wrong with some."""

from pathlib import Path

import numpy as np
import phonopy
import pytest
from ase.build import bulk
from ase.io import read
from scipy.spatial.transform import Rotation

from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError
from dpa3sim.protocols import phonon
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.harmonics import born
from dpa3sim.protocols.harmonics.force_constants import new_phonopy

FIELD = Path(__file__).parents[2] / "field/born-factor"
MGO = bulk("MgO", "rocksalt", a=4.255)
CHARGE, EPSILON = 1.98, 3.1
ROWS = [np.eye(3) * CHARGE, -np.eye(3) * CHARGE]


def write(path, tensors, epsilon=EPSILON, head="14.400"):
    epsilon = np.eye(3) * epsilon if np.isscalar(epsilon) else epsilon
    lines = [" ".join(f"{v:.10f}" for v in np.ravel(t)) for t in (epsilon, *tensors)]
    path.write_text("\n".join([head, *lines]) + "\n")
    return str(path)


def read_for(atoms, file):
    cells = Cells.of(atoms, 0.01)
    unit = new_phonopy(cells.primitive.atoms, np.eye(3, dtype=int), 0.01)
    return born.read(file, cells.primitive, unit.primitive, 0.01), cells


def on_primitive(found, cells, key="born"):
    unit = new_phonopy(cells.primitive.atoms, np.eye(3, dtype=int), 0.01)
    return found.parameters(cells.primitive, unit.primitive, 0.01)[key]


@pytest.mark.parametrize(
    ("head", "factor"),
    [
        ("14.400", 14.4),
        ("14.4 1.0 0.2", 14.4),
        ("# epsilon and Z* of atoms 1 2", None),
        ("default value", None),
        ("default", None),
        ("", None),
        ("Z* by hand", None),
        ("2.0", 2.0),
    ],
)
def test_first_lines(tmp_path, head, factor):
    """As phonopy reads them."""
    file = write(tmp_path / "BORN", ROWS, head=head)
    found, cells = read_for(MGO, file)
    assert found.factor == pytest.approx(factor or 14.399652, rel=1e-6)
    assert any("factor" in w for w in found.warnings) == (factor == 2.0)
    unit = new_phonopy(MGO, np.eye(3, dtype=int), 0.01)
    if not head:
        return
    theirs = phonopy.file_IO.parse_BORN(unit.primitive, filename=file)
    assert theirs.get("factor", found.factor) == pytest.approx(found.factor)
    assert theirs.get("G_cutoff") == found.cutoff
    assert theirs.get("Lambda") == found.damping
    np.testing.assert_allclose(on_primitive(found, cells), theirs["born"], atol=1e-12)
    mine = on_primitive(found, cells, "dielectric")
    np.testing.assert_allclose(mine, theirs["dielectric"], atol=1e-12)


@pytest.mark.parametrize("head", ["# 1 3", "GaN 2024 PBE", "# 0 0", "# 14.4"])
def test_numbers_in_a_comment_are_no_cutoffs(tmp_path, head):
    """phonopy takes them for some: those of the first are wrong by many THz."""
    found, _ = read_for(MGO, write(tmp_path / "BORN", ROWS, head=head))
    assert (found.cutoff, found.damping) == (None, None)
    assert not found.warnings


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("0", "the factor of 0 in line 1"),
        ("-14.4", "the factor of -14.4"),
        ("1e999", "the factor of inf"),
        ("14.4 0 0", "the G_cutoff of 0"),
        ("14.4 1 -1", "the Lambda of -1"),
        ("14.4 2024", "reciprocal vectors"),
        ("3.1 0 0 0 3.1 0 0 0 3.1", "line 1 has nine numbers"),
    ],
)
def test_first_lines_that_are_none(tmp_path, head, message):
    with pytest.raises(InputError, match=message) as error:
        read_for(MGO, write(tmp_path / "BORN", ROWS, head=head))
    assert "\n" not in str(error.value)


def test_cutoffs_that_do_not_suffice_are_told(tmp_path):
    found, _ = read_for(MGO, write(tmp_path / "BORN", ROWS, head="default 1 3"))
    assert "end too early" in found.warnings[0]
    assert not read_for(MGO, write(tmp_path / "BORN", ROWS, head="default 1 0.2"))[0].warnings


def test_charges_in_another_order_than_copies_of_an_atom(tmp_path):
    """Grouped by element, where the structure has them in turn: their means would be zero."""
    atoms = bulk("MgO", "rocksalt", a=4.255, cubic=True)
    assert str(atoms.symbols[:2]) == "MgO"
    found, _ = read_for(atoms, write(tmp_path / "BORN", [*[ROWS[0]] * 4, *[ROWS[1]] * 4]))
    assert any("differ by up to 1.98 e" in w for w in found.warnings)


def test_dielectric_tensors_that_break_the_symmetry_are_told(tmp_path):
    found, _ = read_for(MGO, write(tmp_path / "BORN", ROWS, epsilon=np.diag([3.1, 3.1, 4.0])))
    assert "breaks the symmetry of the crystal by up to 0.6" in found.warnings[0]


def test_numbers_that_are_no_charges(tmp_path):
    with pytest.raises(InputError, match="too large for a charge"):
        read_for(MGO, write(tmp_path / "BORN", [ROWS[0] * 1e200, ROWS[1]]))


def test_isotopes_have_the_charges_of_their_element(tmp_path):
    atoms = bulk("MgO", "rocksalt", a=4.255, cubic=True)
    masses = atoms.get_masses()
    masses[np.flatnonzero(atoms.numbers == 8)[:2]] = 17.999
    atoms.set_masses(masses)
    found, cells = read_for(atoms, write(tmp_path / "BORN", ROWS))
    charges = on_primitive(found, cells)
    assert len(charges) == 4
    for symbol, charge in zip(cells.primitive.atoms.symbols, charges, strict=True):
        np.testing.assert_allclose(charge, ROWS[0 if symbol == "Mg" else 1], atol=1e-9)


def wurtzite():
    return read(FIELD / "POSCAR")


def test_all_atoms_give_what_the_independent_ones_give():
    few, cells = read_for(wurtzite(), str(FIELD / "BORN"))
    many, _ = read_for(wurtzite(), str(FIELD / "BORN_all"))
    for key in ("born", "dielectric"):
        values = [on_primitive(born, cells, key) for born in (few, many)]
        np.testing.assert_allclose(*values, atol=1e-6)  # the cell has so many digits
    assert not few.warnings
    assert not many.warnings


@pytest.mark.parametrize("seed", range(3))
def test_all_atoms_of_any_cell_in_any_order(tmp_path, seed):
    """A supercell of the crystal, turned, in another order: the tensors turn with it."""
    rng = np.random.default_rng(seed)
    atoms = wurtzite() * (2, 1, 1)
    per_element = {"Ga": np.diag([2.6, 2.6, 2.75]), "N": -np.diag([2.6, 2.6, 2.75])}
    turn = Rotation.random(random_state=seed).as_matrix()
    atoms.set_cell(atoms.cell[:] @ turn.T, scale_atoms=True)
    atoms = atoms[rng.permutation(len(atoms))]
    tensors = [turn @ per_element[s] @ turn.T for s in atoms.symbols]
    epsilon = turn @ np.diag([5.4, 5.4, 5.6]) @ turn.T
    file = write(tmp_path / "BORN", tensors, epsilon=epsilon)
    found, cells = read_for(atoms, file)
    assert not found.warnings
    charges = on_primitive(found, cells)
    assert len(charges) == 4
    for symbol, charge in zip(cells.primitive.atoms.symbols, charges, strict=True):
        np.testing.assert_allclose(charge, turn @ per_element[symbol] @ turn.T, atol=1e-5)


def test_a_conventional_cell(tmp_path):
    atoms = bulk("MgO", "rocksalt", a=4.255, cubic=True)
    tensors = [ROWS[0] if s == "Mg" else ROWS[1] for s in atoms.symbols]
    for listed in (tensors, ROWS):
        found, cells = read_for(atoms, write(tmp_path / "BORN", listed))
        np.testing.assert_allclose(on_primitive(found, cells), ROWS, atol=1e-9)


@pytest.mark.parametrize(("count", "word"), [(1, "few"), (3, "many"), (7, "many"), (9, "many")])
def test_numbers_of_tensors_that_fit_nothing(tmp_path, count, word):
    file = write(tmp_path / "BORN", [ROWS[k % 2] for k in range(count)])
    with pytest.raises(InputError, match=f"Too {word} atoms: {count} charge tensors"):
        read_for(bulk("MgO", "rocksalt", a=4.255, cubic=True), file)


def test_what_is_told(tmp_path):
    def warnings(tensors, **options):
        return read_for(MGO, write(tmp_path / "BORN", tensors, **options))[0].warnings

    assert not warnings(ROWS)
    assert not warnings([np.eye(3) * 1.99, -np.eye(3) * 1.97])  # rounding
    (text,) = warnings([np.eye(3) * 2.3, -np.eye(3) * 1.9])
    assert "acoustic sum rule by 0.2 e" in text
    (text,) = warnings([np.diag([1.98, 1.98, 2.4]), -np.diag([1.98, 1.98, 2.4])])
    assert "symmetry of their sites by up to 0.28 e" in text
    (text,) = warnings(ROWS[::-1])
    assert "Mg has -1.98 e" in text
    assert "O has +1.98 e" in text
    (text,) = warnings(ROWS, epsilon=0.5)
    assert "no crystal has one below 1" in text


def test_charges_become_neutral_and_symmetric(tmp_path):
    tensors = [np.diag([2.3, 2.3, 2.5]), -np.diag([1.9, 1.9, 1.9])]
    found, cells = read_for(MGO, write(tmp_path / "BORN", tensors))
    charges = on_primitive(found, cells)
    np.testing.assert_allclose(charges.sum(axis=0), 0, atol=1e-12)
    for tensor in charges:
        np.testing.assert_allclose(tensor, tensor[0, 0] * np.eye(3), atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, -3.0, np.diag([3.0, 3.0, -1.0])])
def test_dielectric_tensors_that_are_none(tmp_path, epsilon):
    with pytest.raises(InputError, match="not positive"):
        read_for(MGO, write(tmp_path / "BORN", ROWS, epsilon=epsilon))


def test_what_follows_a_blank_line_does_not_count(tmp_path):
    file = Path(write(tmp_path / "BORN", ROWS))
    file.write_text(file.read_text() + "\nnotes of mine: 1 2 3\n")
    assert len(read_for(MGO, str(file))[0].charges) == 2


def test_splitting_is_that_of_phonopy(tmp_path, monkeypatch, capsys):
    """Run by itself on our force constants, with its own reading of both files."""
    monkeypatch.chdir(tmp_path)
    options = ["--supercell", "2,2,1", "--mesh", "20", "--no-plot", "--no-relax"]
    for name in ("BORN", "BORN_all"):
        arguments = ["phonon", str(FIELD / "POSCAR"), "--born", str(FIELD / name), *options]
        assert main([*arguments, "--out", name]) == 0

    def load(name, is_nac):
        constants = f"{name}/force_constants.hdf5"
        return phonopy.load(
            f"{name}/phonopy.yaml", force_constants_filename=constants, is_nac=is_nac
        )

    points = [[1e-3, 0, 0], [0, 0, 1e-3], [1e-3, 1e-3, 0], [0.25, 0.1, 0.4], [0.5, 0, 0]]
    alone, plain = load("BORN", False), load("BORN", False)
    params = phonopy.file_IO.parse_BORN(alone.primitive, filename=str(FIELD / "BORN"))
    # The first line of the second file names a factor, that of the first one does not.
    for name, factor in (("BORN", 14.399652), ("BORN_all", 14.4)):
        alone.nac_params = {**params, "factor": factor}
        expected = alone.run_qpoints(points).frequencies
        mine = load(name, True).run_qpoints(points).frequencies
        np.testing.assert_allclose(mine, expected, atol=1e-6)
    split = expected[:2, -1] - plain.run_qpoints(points).frequencies[:2, -1]
    assert np.abs(split).max() > 0.5  # THz


def test_the_warnings_are_those_of_the_result(embedded64, tmp_path):
    file = write(tmp_path / "BORN", ROWS[::-1])
    settings = phonon.Settings(supercell="2,2,2", mesh=20.0, born=file, relax=False)
    result = phonon.run(MGO, embedded64, settings)
    assert any("electronegativities" in w for w in result.to_dict()["warnings"])


@pytest.mark.slow
def test_a_crystal_that_becomes_more_symmetric(embedded64, tmp_path):
    """The file is of the distorted one, whose atoms are all different."""
    atoms = bulk("MgO", "rocksalt", a=4.255, cubic=True)
    atoms.rattle(0.02, seed=1)
    tensors = [ROWS[0] if s == "Mg" else ROWS[1] for s in atoms.symbols]
    file = write(tmp_path / "BORN", tensors)
    options = {"supercell": "1,1,1", "mesh": 20.0, "symprec": 1e-3, "fmax": 1e-4}
    result = phonon.run(atoms, embedded64, phonon.Settings(born=file, **options))
    found = result.phonon.nac_params["born"]
    assert len(found) == len(result.phonon.primitive)
    for symbol, charge in zip(result.phonon.primitive.symbols, found, strict=True):
        np.testing.assert_allclose(charge, ROWS[0 if symbol == "Mg" else 1], atol=1e-3)
