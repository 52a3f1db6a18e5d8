"""The line that a person can check, and what is suspicious of a structure."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.io import write

from dpa3sim.cli.main import main
from dpa3sim.structures.inspection import inspect


def test_what_the_line_says():
    line = inspect(bulk("NaCl", "rocksalt", a=5.64, cubic=True)).line
    assert line == (
        "Cl4Na4, 8 atoms, periodic along abc, 22.43 Å^3/atom, shortest distance 2.82 Å (Na-Cl)"
    )
    assert inspect(molecule("H2O")).line == "H2O, 3 atoms, molecule, shortest distance 0.97 Å (H-O)"
    assert inspect(Atoms("He")).line == "He, 1 atom, molecule"
    assert "shortest distance 3.00 Å (Po-Po)" in inspect(bulk("Po", "sc", a=3.0)).line
    far = Atoms("He2", [[0, 0, 0], [0, 0, 100.0]])
    assert inspect(far).line == "He2, 2 atoms, molecule"


@pytest.mark.parametrize("symbol", "Li Na K Rb Cs Be Mg Al Si Ge C Cu Ag Au W Fe Pb Xe Ne".split())
def test_elements_are_not_suspicious(symbol):
    assert not inspect(bulk(symbol)).warnings


@pytest.mark.parametrize(("factor", "word"), [(0.5, "denser"), (2.0, "less dense")])
def test_cells_in_other_units(factor, word):
    """Lengths of a half and of twice: nanometres and bohr taken for Å come out worse."""
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.set_cell(atoms.cell[:] * factor, scale_atoms=True)
    assert any(word in warning for warning in inspect(atoms).warnings)


def test_atoms_that_overlap():
    atoms = bulk("Si", cubic=True)
    atoms.append("O")
    atoms.positions[-1] = atoms.positions[3] + [0, 0, 0.4]
    (warning,) = inspect(atoms).warnings
    assert "atoms 3 and 8 (O-Si) are 0.400 Å apart" in warning
    close = atoms.copy()
    close.positions[-1] = atoms.positions[3] + [0, 0, 0.9]  # half of the sum is 0.89
    assert not inspect(close).warnings
    twice = bulk("Si", cubic=True)
    twice += twice
    assert any("(8 such pairs)" in warning for warning in inspect(twice).warnings)


def test_overlaps_across_the_boundary():
    atoms = Atoms("Si2", [[0.1, 2, 2], [5.0, 2, 2]], cell=[5.2, 4, 4], pbc=True)
    assert any("0.300 Å" in warning for warning in inspect(atoms).warnings)
    atoms.pbc = False
    assert not inspect(atoms).warnings


def test_periodic_vacuum():
    slab = fcc111("Cu", (1, 1, 4), vacuum=6.0)
    assert not inspect(slab).warnings  # is not periodic there
    slab.pbc = True
    (warning,) = inspect(slab).warnings
    assert "vacuum of 12.0 Å along c" in warning
    sheet = graphene(vacuum=7.0)
    sheet.pbc = True
    assert "14.0 Å along c" in inspect(sheet).warnings[0]
    box = molecule("CH4")
    box.set_cell([15, 15, 15])
    box.pbc = True
    assert all(f"Å along {axis}" in inspect(box).warnings[0] for axis in "abc")


def test_vacuum_in_skewed_cells_and_across_the_boundary():
    slab = fcc111("Cu", (1, 1, 4), vacuum=6.0)
    slab.pbc = True
    cell = slab.cell[:].copy()
    cell[2] += 3 * cell[0] - cell[1]  # the same crystal
    skewed = Atoms(slab.symbols, slab.positions, cell=cell, pbc=True)
    moved = slab.copy()
    moved.positions += [0, 0, 11.0]
    for atoms in (skewed, moved):
        assert "12.0 Å along c" in inspect(atoms).warnings[0]


def test_bad_geometry_is_described_without_more():
    """It is refused, with the reason, where it is to be computed."""
    for atoms in (
        Atoms("H", [[np.nan, 0, 0]]),
        Atoms("H", cell=[0, 0, 0], pbc=True),
        Atoms("H2", cell=[1e-3, 5, 5], pbc=True),
        Atoms(),
    ):
        assert inspect(atoms).warnings == ()


def test_warnings_come_before_the_work_and_in_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0)
    slab.pbc = True
    write("slab.extxyz", slab)
    assert main(["relax", "slab.extxyz", "--steps", "1", "--fmax", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [k for k, line in enumerate(lines) if "vacuum" in line]
    step = next(k for k, line in enumerate(lines) if line.startswith("step"))
    assert len(told) == 1
    assert told[0] < step
    result = json.loads(Path("slab.relax/result.json").read_text())
    assert any("vacuum" in warning for warning in result["warnings"])


def test_warnings_in_screenings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0)
    slab.pbc = True
    write("all.extxyz", [slab, bulk("Cu")])
    assert main(["sp", "all.extxyz", "--screen", "run"]) == 0
    from dpa3sim.screen.database import Database

    log = Path("run/run.log").read_text()
    assert "all.extxyz@1: Cu, 1 atom, periodic along abc" in log
    assert log.count("warning:") == 1
    with Database(Path("run/results.sqlite")) as database:
        first, second = (row.result["warnings"] for row in database.rows())
        assert any("vacuum" in warning for warning in first)
        assert not second
        assert "reading_warnings" not in database.structure(1).info
