"""Inputs of pw.x: Bravais lattices, units of length, labels, fixed coordinates."""

from pathlib import Path

import numpy as np
import pytest
from ase.units import Bohr

from dpa3sim.common.errors import InputError
from dpa3sim.structures.reading import read_structure

A, B, C = 8.0, 9.0, 12.0
AB, AC, BC = 0.1, 0.2, 0.3


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pw(
    system, positions="ATOMIC_POSITIONS crystal\n Si 0 0 0\n", cell="", species="Si 28.1 Si.UPF"
):
    Path("pw.in").write_text(
        f"&control\n calculation = 'scf', outdir = './a=b/'\n/\n"
        f"&system\n {system}\n ecutwfc = 30\n/\n"
        f"&electrons\n/\nATOMIC_SPECIES\n {species}\n{positions}{cell}K_POINTS gamma\n"
    )
    return read_structure("pw.in").atoms


def both(ibrav, names):
    """The same lattice by celldm and by A, B, C."""
    values = {
        "b": f"celldm(2) = {B / A}", "c": f"celldm(3) = {C / A}",
        "4": f"celldm(4) = {AB}", "5": f"celldm(5) = {AC}",
        "14": f"celldm(4) = {BC}, celldm(5) = {AC}, celldm(6) = {AB}",
    }  # fmt: skip
    lengths = {
        "b": f"B = {B * Bohr}", "c": f"C = {C * Bohr}", "4": f"cosAB = {AB}", "5": f"cosAC = {AC}",
        "14": f"cosBC = {BC}, cosAC = {AC}, cosAB = {AB}",
    }  # fmt: skip
    first = [f"ibrav = {ibrav}", f"celldm(1) = {A}"] + [values[n] for n in names]
    second = [f"ibrav = {ibrav}", f"A = {A * Bohr}"] + [lengths[n] for n in names]
    end = ["nat = 1", "ntyp = 1"]
    return pw(", ".join(first + end)), pw(", ".join(second + end))


def angle(cosine):
    return np.degrees(np.arccos(cosine))


# The conventional cell that ASE recognizes in the vectors: its type, lengths and angles.
@pytest.mark.parametrize(
    ("ibrav", "names", "kind", "expected"),
    [
        (1, "", "CUB", {"a": A}),
        (2, "", "FCC", {"a": A}),
        (3, "", "BCC", {"a": A}),
        (-3, "", "BCC", {"a": A}),
        (4, "c", "HEX", {"a": A, "c": C}),
        (5, "4", "RHL", {"a": A, "alpha": angle(AB)}),
        (-5, "4", "RHL", {"a": A, "alpha": angle(AB)}),
        (6, "c", "TET", {"a": A, "c": C}),
        (7, "c", "BCT", {"a": A, "c": C}),
        (8, "bc", "ORC", {"a": A, "b": B, "c": C}),
        (9, "bc", "ORCC", {"a": A, "b": B, "c": C}),
        (-9, "bc", "ORCC", {"a": A, "b": B, "c": C}),
        (91, "bc", "ORCC", {"a": B, "b": C, "c": A}),
        (10, "bc", "ORCF", {"a": A, "b": B, "c": C}),
        (11, "bc", "ORCI", {"a": A, "b": B, "c": C}),
    ],
)
def test_lattices(ibrav, names, kind, expected):
    for atoms in both(ibrav, names):
        lattice = atoms.cell.get_bravais_lattice()
        assert lattice.name == kind
        found = lattice.vars()
        for name, value in expected.items():
            scale = 1.0 if name == "alpha" else Bohr
            assert found[name] == pytest.approx(value * scale), name
        assert np.linalg.det(atoms.cell[:]) > 0


@pytest.mark.parametrize(
    ("ibrav", "names", "lengths", "cosines"),
    [
        (12, ["b", "c", "4"], (A, B, C), (0, 0, AB)),
        (-12, ["b", "c", "5"], (A, B, C), (0, AC, 0)),
        (14, ["b", "c", "14"], (A, B, C), (BC, AC, AB)),
    ],
)
def test_oblique_lattices(ibrav, names, lengths, cosines):
    for atoms in both(ibrav, names):
        np.testing.assert_allclose(atoms.cell.lengths(), np.multiply(lengths, Bohr))
        np.testing.assert_allclose(np.cos(np.radians(atoms.cell.angles())), cosines, atol=1e-12)


@pytest.mark.parametrize(
    ("ibrav", "names", "matrix", "cosines"),
    [
        # Conventional vectors in the primitive ones.
        (13, ["b", "c", "4"], [[1, 0, 1], [0, 1, 0], [-1, 0, 1]], (0, 0, AB)),
        (-13, ["b", "c", "5"], [[1, -1, 0], [1, 1, 0], [0, 0, 1]], (0, AC, 0)),
    ],
)
def test_centred_monoclinic_lattices(ibrav, names, matrix, cosines):
    for atoms in both(ibrav, names):
        conventional = np.array(matrix) @ atoms.cell[:]
        lengths = np.linalg.norm(conventional, axis=1)
        np.testing.assert_allclose(lengths, np.array([A, B, C]) * Bohr)
        unit = conventional / lengths[:, None]
        found = (unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1])
        np.testing.assert_allclose(found, cosines, atol=1e-12)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("ibrav = 4, celldm(1) = 8", r"celldm\(3\)"),
        ("ibrav = 2", r"celldm\(1\) or A"),
        ("ibrav = 77, celldm(1) = 8", "ibrav = 77"),
        ("ibrav = 5, celldm(1) = 8, celldm(4) = -0.6", "impossible"),
        ("ibrav = 2, celldm(1) = 8, A = 5.4", "both"),
        ("ibrav = 14, A=5, B=5, C=5, cosAB=-0.9, cosAC=-0.9, cosBC=-0.9", "no cell"),
        ("ibrav = 0", "CELL_PARAMETERS"),
    ],
)
def test_incomplete_lattices(system, message):
    with pytest.raises(InputError, match=message):
        pw(system + ", nat = 1, ntyp = 1")


VECTORS = " 0 0.5 0.5\n 0.5 0 0.5\n 0.5 0.5 0\n"


@pytest.mark.parametrize(
    ("system", "title", "edge"),
    [
        ("celldm(1) = 10.2d0", "CELL_PARAMETERS {alat}", 10.2 * Bohr),
        ("celldm = 10.2", "CELL_PARAMETERS", 10.2 * Bohr),
        ("A = 5.4", "cell_parameters (alat= 10.2045)", 5.4),
        ("", "CELL_PARAMETERS bohr", Bohr),
        ("", "CELL_PARAMETERS", Bohr),
        ("", "CELL_PARAMETERS (angstrom)", 1.0),
    ],
)
def test_units_of_the_cell(system, title, edge):
    vectors = VECTORS if system else VECTORS.replace("0.5", "5")
    atoms = pw(f"ibrav = 0, nat = 1, ntyp = 1, {system}", cell=f"{title}\n{vectors}")
    edge *= 1 if system else 10
    assert atoms.get_volume() == pytest.approx(edge**3 / 4)


@pytest.mark.parametrize(
    ("unit", "x"),
    [("", "0.25"), ("{alat}", "1/4"), ("bohr", "2.0d0"), ("(angstrom)", f"{2 * Bohr}"),
     ("crystal", "(1+1)/8"), ("  crystal", "2^2*0.0625")],
)  # fmt: skip
def test_units_of_positions(unit, x):
    atoms = pw(
        "ibrav = 1, celldm(1) = 8, nat = 1, ntyp = 1", f"ATOMIC_POSITIONS {unit}\nSi {x} 0 0\n"
    )
    np.testing.assert_allclose(atoms.positions, [[2 * Bohr, 0, 0]])


@pytest.mark.parametrize(
    ("label", "species", "symbol"),
    [("Fe1", "Fe1 55.8 Fe.UPF", "Fe"), ("FE", "FE 55.8 a.UPF", "Fe"), ("C_h", "C_h 12 C.UPF", "C"),
     ("Ca", "Ca 12.01 C.pbe.UPF", "C"), ("Ca", "Ca 40.08 Ca.UPF", "Ca"),
     ("o-1", "o-1 16 O.UPF", "O")],
)  # fmt: skip
def test_labels(label, species, symbol):
    system = "ibrav = 1, celldm(1) = 8, nat = 1, ntyp = 1"
    atoms = pw(system, f"ATOMIC_POSITIONS bohr\n{label} 0 0 0\n", species=species)
    assert atoms.get_chemical_symbols() == [symbol]


def test_fixed_coordinates_and_comments():
    atoms = pw(
        "ibrav = 1 ! cubic\n celldm(1) = 8, ! bohr\n NAT = 3\n ntyp=1",
        "ATOMIC_POSITIONS bohr ! cartesian\n# first\n"
        "Si 0 0 0 0 0 0\n\nSi 1 0 0 1 1 0 ! z\nSi 2 0 0\n",
    )
    fixed = np.zeros((3, 3), dtype=bool)
    for constraint in atoms.constraints:
        moved = np.ones((3, 3))
        constraint.adjust_forces(atoms, moved)
        fixed |= moved == 0
    np.testing.assert_array_equal(fixed, [[1, 1, 1], [0, 0, 1], [0, 0, 0]])
