"""PDB and GROMACS files: elements from the names of force fields, atoms in several places."""

from pathlib import Path

import numpy as np
import pytest

from dpa3sim.common.errors import InputError
from dpa3sim.structures.reading import read_structure, read_structures
from dpa3sim.structures.residues import element


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "residue", "expected"),
    [
        ("CA", "ALA", "C"),
        ("CA", "CA", "Ca"),
        ("NA", "NA+", "Na"),
        ("CL", "CL-", "Cl"),
        ("Cl1", "MOL", "Cl"),
        ("Na1", "MOL", "Na"),
        ("CL", "LIG", "Cl"),
        ("BR1", "LIG", "Br"),
        ("SI", "SIO", "Si"),
        ("ZN", "ZN2", "Zn"),
        ("TI1", "TIO", "Ti"),
        ("OW", "SOL", "O"),
        ("HW2", "SOL", "H"),
        ("1HB", "ALA", "H"),
        ("HG11", "VAL", "H"),
        ("SOD", "SOD", "Na"),
        ("CLA", "CLA", "Cl"),
        ("POT", "POT", "K"),
        ("CAA", "LIG", None),
        ("D1", "DOD", "D"),
        ("C12", "LIG", "C"),
        ("U", "UO2", "U"),
    ],
)
def test_names(name, residue, expected):
    if expected is None:
        with pytest.raises(InputError, match="C or Ca"):
            element(name, residue)
    else:
        assert element(name, residue) == expected


@pytest.mark.parametrize("name", ["MW", "LP", "EP", "X1", "M", "DUM"])
def test_virtual_sites_are_no_elements(name):
    """ASE takes MW for tungsten, and LP for phosphorus."""
    with pytest.raises(InputError, match="no element"):
        element(name, "SOL")


@pytest.mark.parametrize(
    ("name", "residue", "expected"),
    [(" CA ", "LIG", "C"), ("CA  ", "LIG", "Ca"), (" ND1", "LIG", "N"), ("NA  ", "X", "Na"),
     (" HG ", "LIG", "H"), ("CA  ", "ALA", "C")],
)  # fmt: skip
def test_columns_of_a_pdb_file_decide(name, residue, expected):
    assert element(name, residue, aligned=True) == expected


def gro(*atoms):
    lines = [
        f"{k:5d}{residue:5s}{name:>5s}{k:5d}{0.3 * k:8.3f}{0.0:8.3f}{0.0:8.3f}"
        for k, (residue, name) in enumerate(atoms, start=1)
    ]
    text = "\n".join(["title", str(len(lines)), *lines, "   3.0   3.0   3.0"])
    Path("x.gro").write_text(text + "\n")
    return read_structure("x.gro").atoms


def test_gromacs():
    atoms = gro(("NA", "NA"), ("CL", "CL"), ("ALA", "CA"), ("SOL", "OW"), ("CA", "CA"))
    assert atoms.get_chemical_symbols() == ["Na", "Cl", "C", "O", "Ca"]
    np.testing.assert_allclose(atoms.positions[:, 0], [3, 6, 9, 12, 15])
    np.testing.assert_allclose(atoms.cell.lengths(), 30)
    with pytest.raises(InputError, match="atom MW of residue SOL"):
        gro(("SOL", "OW"), ("SOL", "MW"))


def pdb_line(name, residue, x, alternative=" ", occupancy="  1.00", symbol=""):
    place = f"{x:8.3f}{0.0:8.3f}{0.0:8.3f}{occupancy}{0.0:6.2f}"
    return f"ATOM      1 {name:4s}{alternative}{residue:3s} A   1    {place}          {symbol:>2s}"


def pdb(*lines):
    Path("x.pdb").write_text("\n".join([*lines, "END"]) + "\n")
    return read_structure("x.pdb").atoms


def test_pdb_files_without_elements():
    atoms = pdb(
        pdb_line(" CA ", "ALA", 0.0), pdb_line("CA  ", " CA", 4.0), pdb_line("CL  ", " CL", 8.0)
    )
    assert atoms.get_chemical_symbols() == ["C", "Ca", "Cl"]
    assert pdb(pdb_line(" CA ", "ALA", 0.0, symbol="CA")).get_chemical_symbols() == ["Ca"]


def test_atoms_in_alternative_places_are_refused():
    places = [pdb_line(" CA ", "ALA", 0.3 * k, alternative="AB"[k], symbol="C") for k in (0, 1)]
    with pytest.raises(InputError, match="alternative places"):
        pdb(*places)
    assert len(pdb(places[0])) == 1
    with pytest.raises(InputError, match="partially occupied"):
        pdb(pdb_line(" CA ", "ALA", 0.0, occupancy="  0.50", symbol="C"))
    # Programs that do not know occupancies write zero, or nothing.
    for occupancy in ("  0.00", "      "):
        assert len(pdb(pdb_line(" CA ", "ALA", 0.0, occupancy=occupancy, symbol="C"))) == 1


def test_models_of_a_pdb_file_are_frames():
    lines = [["MODEL 1", pdb_line("CL  ", " CL", 1.0 * k), "ENDMDL"] for k in range(3)]
    assert pdb(*lines[0], *lines[1], *lines[2]).positions[0, 0] == 2.0
    assert len(read_structures(["x.pdb@:"])) == 3
