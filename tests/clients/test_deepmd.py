"""The stand-in for deepmd-kit's calculator, in scripts and in the tools that import it."""

import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read
from tests_support import DATA, ENVIRONMENT, load_reference, reference_atoms

from dpa3sim import DPA3Calculator, deepmd_compat
from dpa3sim.clients.deepmd import DP
from dpa3sim.common.errors import InputError

WATER = DATA / "models/dynamic/model.pt"
HEADS = DATA / "models/multitask/model.pt"


@pytest.fixture(autouse=True)
def no_stand_in():
    """None at the start, whatever ran before in this process, and none is left."""
    names = "deepmd", "deepmd.calculator"
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def run(*words, cwd=None):
    command = [sys.executable, "-m", "dpa3sim.deepmd_compat", *map(str, words)]
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


def test_results_are_those_of_deepmd_kit():
    """The reference file was written by deepmd-kit: same model, same names, same signs."""
    cases = [c for c in load_reference(WATER.parent / "reference.json") if c["pbc"]]
    case = next(c for c in cases if np.all(c["pbc"]))
    atoms = reference_atoms(case)
    atoms.calc = DP(WATER)
    forces = atoms.get_forces()
    stress = atoms.get_stress(voigt=False)
    assert set(atoms.calc.results) == {"energy", "free_energy", "forces", "virial", "stress"}
    assert atoms.calc.results["energy"] == pytest.approx(case["energy"], abs=1e-8)
    np.testing.assert_allclose(forces, case["forces"], atol=1e-8)
    virial = atoms.calc.results["virial"]
    np.testing.assert_allclose(virial, np.reshape(case["virial"], (3, 3)), atol=1e-7)
    np.testing.assert_allclose(-stress * atoms.get_volume(), (virial + virial.T) / 2)


def test_a_molecule_has_no_stress():
    atoms = molecule("H2O")
    atoms.calc = DP(str(WATER), "DP", None, None)
    assert set(atoms.calc.get_property("virial", atoms).shape) == {3}
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_heads():
    with pytest.raises(Exception, match="head"):
        DP(HEADS)
    assert DP(HEADS, head="Omat24", dtype="float64").model.head == "Omat24"
    with pytest.raises(TypeError, match="abacus"):
        DP(WATER, abacus=1)


def test_elements_are_types_as_the_dictionary_says():
    assert DP(WATER).model.config.type_map == ("O", "H")
    water = molecule("H2O")
    water.calc = DP(WATER)
    expected = water.get_forces()
    same = water.copy()
    same.calc = DP(WATER, type_dict={"O": 0, "H": 1})
    np.testing.assert_array_equal(same.get_forces(), expected)
    # Sulfur in the place of oxygen, as for a model whose types have other names.
    other = water.copy()
    other.symbols[0] = "S"
    other.calc = DP(WATER, type_dict={"S": 0, "H": 1})
    np.testing.assert_array_equal(other.get_forces(), expected)
    assert other.symbols[0] == other.calc.atoms.symbols[0] == "S"
    batches = other.calc.potential.batches
    other.get_potential_energy()
    assert other.calc.potential.batches == batches


@pytest.mark.parametrize("types", [{"O": 2}, {"O": -1}, {"Xx": 0}])
def test_dictionaries_that_cannot_be(types):
    with pytest.raises(InputError, match=r"type_dict: .* which are 0 \.\.\. 1: O, H"):
        DP(WATER, type_dict=types)


def test_unknown_elements_are_errors():
    atoms = Atoms("OC", [[0, 0, 0], [0, 0, 1.2]])
    atoms.calc = DP(WATER)
    with pytest.raises(InputError, match="unknown element 'C'"):
        atoms.get_potential_energy()
    atoms.calc = DP(WATER, type_dict={"O": 0})
    with pytest.raises(InputError, match="element 'C' is not in type_dict"):
        atoms.get_potential_energy()


def test_imports_of_scripts_find_it():
    deepmd_compat.install()
    import deepmd
    from deepmd.calculator import DP as Theirs

    assert Theirs is DP
    assert deepmd.__version__.startswith("3.1.3+dpa3sim")
    assert importlib.util.find_spec("deepmd.calculator")
    deepmd_compat.install()  # once more changes nothing
    assert sys.modules["deepmd"] is deepmd
    calculator = pickle.loads(pickle.dumps(Theirs(WATER)))
    assert type(calculator) is DP


def test_deepmd_kit_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "deepmd").mkdir()
    (tmp_path / "deepmd/__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match="deepmd-kit is installed here"):
        deepmd_compat.install()
    assert "deepmd" not in sys.modules


def test_runs_a_script(tmp_path):
    (tmp_path / "other.py").write_text("NUMBER = 3\n")
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from ase.build import molecule\n"
        "from deepmd.calculator import DP\n"
        "import other\n"
        "atoms = molecule('H2O')\n"
        "atoms.calc = DP(model=sys.argv[1])\n"
        "print(repr(float(atoms.get_potential_energy())))\n"
        "sys.exit(other.NUMBER)\n"
    )
    found = run("--", tmp_path / "script.py", WATER)
    assert (found.returncode, found.stderr) == (3, "")
    atoms = molecule("H2O")
    atoms.calc = DPA3Calculator(WATER)
    assert float(found.stdout) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_runs_an_installed_program():
    # That of this package, which is found as others are.
    assert run("--", "dpa3sim", "--help").stdout.startswith("usage: dpa3sim")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a program is missing"),
        (("--",), "a program is missing"),
        (("janus",), "a program is missing"),
        (("--", "no_such_program"), "no_such_program: no installed program of that name"),
    ],
)
def test_bad_usage(words, message, capsys):
    assert deepmd_compat.main(words) == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    assert deepmd_compat.main(["--help"]) == 0
    assert "janus singlepoint" in capsys.readouterr().out


@pytest.mark.slow
def test_janus(tmp_path):
    pytest.importorskip("janus_core", reason="needs janus-core")
    bulk("NaCl", "rocksalt", a=5.6, cubic=True).write(tmp_path / "NaCl.cif")
    found = run(
        *("--", "janus", "singlepoint", "--arch", "deepmd", "--model", "dpa3-openlam"),
        *("--struct", "NaCl.cif", "--no-tracker", "--calc-kwargs", "{'dtype': 'float64'}"),
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    atoms = read(tmp_path / "janus_results/NaCl-results.extxyz")
    expected = read(tmp_path / "NaCl.cif")
    expected.calc = DPA3Calculator("dpa3-openlam", dtype="float64")
    assert atoms.info["deepmd_energy"] == pytest.approx(expected.get_potential_energy(), abs=1e-6)
