"""Other tools with our calculator, where they are installed, and what lets them find it.

The blocks of docs/adapters.md are further tests.
"""

import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from ase.build import bulk
from tests_support import ENVIRONMENT, TESTS

from dpa3sim import DPA3Calculator, Potential

PATCHES = TESTS.parent / "docs/patches"
# What each patch changes, and what it is for.
PATCHED = {
    "matcalc": (
        "matcalc",
        "from matcalc.utils import PESCalculator\n"
        "calculators = [PESCalculator.load_universal(x) for x in ('dpa3', 'DPA3-LAM-2025.3.14')]",
    ),
    "janus-core": (
        "janus_core",
        "from janus_core.helpers.mlip_calculators import choose_calculator\n"
        "calculators = [choose_calculator('dpa3sim', device='cpu')]\n"
        "assert calculators[0].parameters['arch'] == 'dpa3sim'",
    ),
    "atomate2": (
        "atomate2",
        "from atomate2.forcefields.utils import MLFF, _get_pkg_name, ase_calculator\n"
        "calculators = [ase_calculator('DPA3')]\n"
        "assert _get_pkg_name(MLFF.DPA3) == 'dpa3sim'",
    ),
    "i-pi": (
        "ipi",
        "from ipi.pes import load_pes\n"
        "calculators = []\n"
        "assert load_pes('dpa3', None).__module__ == 'dpa3sim.clients.ipi.pes'",
    ),
}


def test_the_entry_point_is_light():
    """OpenMM-ML loads it while it is being imported itself."""
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["openmmml.potentials"]["dpa3"].split(":")
    assert callable(getattr(import_module(module), name)().createImpl)
    code = f"import sys, {module}; assert not {{'torch', 'openmm', 'ase'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, timeout=60)


def test_every_patch_is_tested():
    assert {path.stem for path in PATCHES.iterdir()} == set(PATCHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHED)
def test_patches(name, tmp_path):
    """A copy of the installed package, patched, makes our calculator."""
    package, code = PATCHED[name]
    found = find_spec(package)
    if found is None or shutil.which("patch") is None:
        pytest.skip(f"needs {package} and the program patch")
    (folder,) = found.submodule_search_locations
    shutil.copytree(folder, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (PATCHES / f"{name}.patch").open() as patch:
        subprocess.run(["patch", "-p1", "-d", tmp_path], stdin=patch, check=True)
    code += (
        "\nfrom dpa3sim import DPA3Calculator\n"
        "assert all(type(x) is DPA3Calculator and x.model.name == 'dpa3-openlam'"
        " for x in calculators)\n"
    )
    paths = f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=ENVIRONMENT | {"PYTHONPATH": paths},
        cwd=Path(tmp_path),
        timeout=300,
    )


@pytest.mark.slow
def test_matcalc(embedded64: Potential):
    """Its classes for elasticity, equations of state and phonons agree with each other."""
    matcalc = pytest.importorskip("matcalc", reason="needs matcalc")
    calculator = DPA3Calculator(embedded64)
    assert matcalc.PESCalculator.load_universal(calculator) is calculator
    silicon = bulk("Si", a=5.46)
    elastic = matcalc.ElasticityCalc(calculator, fmax=0.01).calc(silicon)
    curve = matcalc.EOSCalc(calculator, fmax=0.01).calc(silicon)
    modulus = elastic["bulk_modulus_vrh"] * 160.2177  # GPa
    assert modulus == pytest.approx(curve["bulk_modulus_bm"], rel=0.1)
    cells = ((2, 0, 0), (0, 2, 0), (0, 0, 2))
    phonons = matcalc.PhononCalc(calculator, fmax=0.01, supercell_matrix=cells, min_length=None)
    heat = phonons.calc(silicon)["thermal_properties"]["heat_capacity"]
    # At 1000 K the law of Dulong and Petit, less some 2 % for quantum mechanics; J/K/mol.
    assert 0.96 < heat[-1] / (6 * 8.314) < 1
