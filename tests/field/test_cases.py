"""Files of people, rebuilt small from public reports: what each is, or that it is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import spglib

from dpa3sim.cli.main import main
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structure

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def group_of(atoms):
    return spglib.get_spacegroup((atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers), 1e-3)


@pytest.mark.parametrize(
    ("file", "formula", "volume", "group"),
    [
        ("ipi-cell-comment/init.xyz", "C8", 45.39, "Fd-3m (227)"),
        ("gpumd-lowercase-lattice/model.xyz", "Si8", 160.4, "Fd-3m (227)"),
        ("cif-uppercase-labels/CaF2.cif", "Ca4F8", 163.0, "Fm-3m (225)"),
        ("cif-three-decimals/Mg.cif", "Mg2", 46.5, "P6_3/mmc (194)"),
        ("cif-symops-no-name/CsCl.cif", "ClCs", 70.09, "Pm-3m (221)"),
        ("cif-unknown-hm-name/calcite.cif", "C2Ca2O6", 121.9, "R-3c (167)"),
        ("qe-input-leading-space/NaCl.in", "Cl4Na4", 184.25, "Fm-3m (225)"),
        ("cif-occupancy-dot/NaCl.cif", "Cl4Na4", 179.4, "Fm-3m (225)"),
        ("cif-missing-hydrogen/brucite.cif", "MgO2", 40.75, "P-3m1 (164)"),
    ],
)
def test_crystals(file, formula, volume, group):
    source = read_structure(str(HERE / file))
    atoms = source.atoms
    assert atoms.pbc.all()
    assert atoms.get_chemical_formula() == formula
    # As exact as the values of the list, whose last digit is rounded (C8: from other constants).
    assert atoms.get_volume() == pytest.approx(volume, abs=0.06)
    tolerance = 1e-3 if formula != "C8" else 5e-3
    found = spglib.get_spacegroup(
        (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers), tolerance
    )
    assert found == group
    assert bool(source.warnings) == (formula == "MgO2")


def test_missing_hydrogen_is_told_in_terminal_and_result(capsys):
    assert main(["sp", str(HERE / "cif-missing-hydrogen/brucite.cif")]) == 0
    out = capsys.readouterr().out
    assert "H2MgO2" in out
    assert "the sites are MgO2" in out
    result = json.loads(Path("brucite.sp/result.json").read_text())
    assert any("hydrogen" in warning for warning in result["warnings"])


@pytest.mark.parametrize("name", ["water.lmp", "water.lammps-data", "water_atomic.lammps-data"])
def test_numbered_types_need_elements(name, capsys):
    path = HERE / "deepmd-water-lmp" / name
    assert main(["relax", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--elements" in err
    atoms = read_structure(str(path), ReadingSettings(elements="O,H")).atoms
    assert atoms.get_chemical_formula() == "H8O4"
    assert (atoms.numbers[:4] == 8).all()
    np.testing.assert_allclose(atoms.positions[0], [11.83, 2.56, 2.18])


def test_elements_for_a_command(capsys):
    path = HERE / "deepmd-water-lmp/water.lmp"
    assert main(["sp", str(path), "--elements", "O,H"]) == 0
    assert "H8O4" in capsys.readouterr().out
    assert main(["sp", str(path), "--elements", "O,H,C", "--out", "x"]) == 2
    assert "3 elements" in capsys.readouterr().err
    assert main(["sp", str(path), "--elements", "O,Hx", "--out", "x"]) == 2
    assert "'Hx' is not an element" in capsys.readouterr().err
    assert not Path("x").exists()


def test_elements_for_a_screening():
    path = HERE / "deepmd-water-lmp/water.lmp"
    assert main(["sp", str(path), "--elements", "O,H", "--screen", "run"]) == 0
    assert main(["sp", str(path), "--screen", "other"]) == 2


def test_water_of_a_mineral_table_is_refused(capsys):
    assert main(["relax", str(HERE / "cif-amcsd-water/caox.cif")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Wat1" in err


def test_deuterium_has_its_mass_in_dynamics(capsys):
    path = str(HERE / "ipi-deuterium/init.xyz")
    assert main(["md", path, "--steps", "2", "--temperature", "300"]) == 0
    assert "CD2H3" in capsys.readouterr().out.replace("CH3D2", "CD2H3")
    again = read_structure("init.md/structure_final.extxyz").atoms
    poscar = read_structure("init.md/structure_final.vasp").atoms
    for atoms in (read_structure(path).atoms, again, poscar):
        masses = atoms.get_masses()
        assert sorted(masses[atoms.numbers == 1].round(3)) == [1.008] * 3 + [2.014] * 2


def test_a_label_of_fluorine_is_no_flag():
    assert not read_structure(str(HERE / "poscar-selective-label-f/POSCAR")).atoms.constraints


def test_a_charge_in_words(capsys):
    assert main(["md", str(HERE / "extxyz-charge-info/NaCl_word.extxyz"), "--steps", "2"]) == 0
    assert json.loads(Path("NaCl_word.md/result.json").read_text())["n_steps"] == 2
