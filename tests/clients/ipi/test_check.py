"""The check through a real server: it passes where all is right, and finds what is wrong."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from tests_support import DATA

from dpa3sim.cli.main import main
from dpa3sim.clients.ipi import checking
from dpa3sim.clients.ipi.evaluator import BatchEvaluator
from dpa3sim.clients.ipi.inputs import TRANSPORTS, InputSettings, write_inputs
from dpa3sim.common.errors import InputError

WATER = DATA / "ipi" / "water8.extxyz"
MODEL = DATA / "models" / "dynamic" / "model.pt"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def sockets():
    return set(Path("/tmp").glob("ipi_dpa3sim*"))


def test_all_is_right(capsys):
    before = sockets()
    assert main(["ipi", "check", "--structure", str(WATER), "--model", str(MODEL)]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok\n") == 5
    assert "far outside the cell" in out
    assert "i-PI receives the energies, forces and virials of the model" in out
    assert sockets() == before


@pytest.mark.parametrize(
    "transport", [pytest.param(t, marks=pytest.mark.slow if t != "shm" else ()) for t in TRANSPORTS]
)
def test_the_forcefield_of_an_input(smooth, tmp_path, transport):
    """Its batch size, transport and parameters are used, wherever it lies."""
    settings = InputSettings(motion="pimd", nbeads=4, transport=transport)
    atoms = read(WATER)
    # A triclinic cell, in which a transposed one is noticed.
    strain = np.array([[0.03, 0.05, -0.02], [0.05, 0.0, 0.04], [-0.02, 0.04, -0.02]])
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    write_inputs(tmp_path / "a", atoms, settings, {"model": str(MODEL)})
    forcefield, start = checking.read_input(tmp_path / "a" / "input.xml")
    report = checking.check(read(start), smooth, forcefield)
    assert report.passed
    assert max(frame.energy for frame in report.frames) < 1e-6
    assert max(frame.forces for frame in report.frames) < 1e-6
    assert max(frame.virial for frame in report.frames) < 1e-5
    assert report.strain < 1e-6 < 1 < report.virial


@pytest.mark.parametrize("wrong", ["sign of the virial", "order of atoms", "unit"])
def test_what_is_wrong_is_found(monkeypatch, capsys, wrong):
    original = BatchEvaluator.__call__

    def spoiled(self, cells, positions):
        energies, forces, virials, extras = original(self, cells, positions)
        if wrong == "sign of the virial":
            virials = -virials
        elif wrong == "order of atoms":
            forces = forces[:, ::-1]
        else:
            energies = energies * 1.0001
        return energies, forces, virials, extras

    monkeypatch.setattr(BatchEvaluator, "__call__", spoiled)
    arguments = ["ipi", "check", "--structure", str(WATER), "--model", str(MODEL)]
    assert main(arguments) == 4
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "receives the energies" not in out


def test_a_virial_that_is_no_derivative(monkeypatch, smooth):
    """Found by finite differences even if i-PI gets it as it is."""
    from dpa3sim.potential.potential import Potential

    original = Potential.evaluate

    def spoiled(self, structures):
        results = original(self, structures)
        for result in results:
            result.virial[0, 1] += 0.001
            result.virial[1, 0] += 0.001
        return results

    monkeypatch.setattr(Potential, "evaluate", spoiled)
    report = checking.check(read(WATER), smooth)
    assert all(frame.passed for frame in report.frames)
    assert report.strain == pytest.approx(0.001, rel=1e-3)
    assert not report.passed


def test_a_molecule_has_no_virial(smooth):
    report = checking.check(molecule("H2O"), smooth)
    assert report.passed
    assert report.strain is None
    assert [frame.name for frame in report.frames] == ["as it is", "rattled"]


def test_another_order_than_that_of_the_input(tmp_path, capsys):
    write_inputs(tmp_path / "a", read(WATER), InputSettings(), {})
    write("other.extxyz", read(WATER)[::-1])
    arguments = ["ipi", "check", "--input", "a/input.xml", "--structure", "other.extxyz"]
    assert main([*arguments, "--model", str(MODEL)]) == 2
    assert "another order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read"),
        ("<simulation>", "not valid XML"),
        ("<simulation/>", "has neither ffsocket nor ffdirect"),
        ("<simulation><ffsocket/></simulation>", "has no name"),
    ],
)
def test_inputs_that_are_none(text, reason):
    if text is not None:
        Path("input.xml").write_text(text)
    with pytest.raises(InputError, match=reason):
        checking.read_input(Path("input.xml"))


def test_no_structure_at_all(capsys):
    assert main(["ipi", "check"]) == 2
    assert "a structure is missing" in capsys.readouterr().err
    root = ET.Element("simulation")
    ET.SubElement(root, "ffsocket", name="dpa3")
    Path("input.xml").write_text(ET.tostring(root, encoding="unicode"))
    assert main(["ipi", "check", "--input", "input.xml"]) == 2
