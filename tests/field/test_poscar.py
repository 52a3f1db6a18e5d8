"""POSCAR: flags in Fortran's words, labels of elements, VASP 4, scaling, isotopes."""

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixScaled
from ase.io import read, write

from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structure

HEAD = "CaF2\n1.0\n0 2.73 2.73\n2.73 0 2.73\n2.73 2.73 0\n"
PLACES = ["0 0 0", "0.25 0.25 0.25", "0.75 0.75 0.75"]


def poscar(tmp_path, rests, *, selective=True, species="Ca F\n", counts="1 2", name="POSCAR"):
    path = tmp_path / name
    rows = "".join(f"{p} {r}\n" for p, r in zip(PLACES, rests, strict=True))
    mode = "Selective dynamics\n" if selective else ""
    path.write_text(f"{HEAD}{species}{counts}\n{mode}Direct\n{rows}")
    return str(path)


def free(atoms):
    """Which coordinates may move, (n, 3) bool."""
    found = np.ones((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            found[constraint.index] = False
        else:
            assert isinstance(constraint, FixScaled)
            found[constraint.index] = ~np.asarray(constraint.mask)
    return found


@pytest.mark.parametrize("true", ["T", ".TRUE.", ".true.", "t", "True", ".T."])
@pytest.mark.parametrize("false", ["F", ".FALSE.", ".false.", "f", "False", ".F."])
def test_logicals_of_fortran(tmp_path, true, false):
    rests = [f"{true} {true} {true}", f"{false} {false} {false}", f"{true} {false} {true}"]
    atoms = read_structure(poscar(tmp_path, rests)).atoms
    expected = [[True] * 3, [False] * 3, [True, False, True]]
    assert free(atoms).tolist() == expected


@pytest.mark.parametrize(
    "rests",
    [
        ["Ca T T T", "F T T T", "F T T T"],
        ["T T T Ca", "T T T F", "T T T F"],
        ["Ca T T T", "F T F T", "F F F F"],
        ["T T T Ca", "T F T F", "F F F F"],
        ["T T T", "T F T", "F F F"],
        ["T T T ! Ca", "T F T # F", "F F F"],
        ["Ca1 T T T", "F1 T F T", "F2 F F F"],
    ],
)
def test_labels_are_no_flags(tmp_path, rests):
    last = [True] * 3 if "F T T T" in rests or "T T T F" in rests else [False] * 3
    middle = [True] * 3 if last[0] else [True, False, True]
    assert free(read_structure(poscar(tmp_path, rests)).atoms).tolist() == [
        [True] * 3,
        middle,
        last,
    ]


def test_flags_that_can_be_read_twice_are_refused(tmp_path):
    path = tmp_path / "POSCAR"
    path.write_text("F\n1.0\n4 0 0\n0 4 0\n0 0 4\nF\n1\nSelective\nDirect\n0 0 0 F T T F\n")
    with pytest.raises(InputError, match="selective dynamics"):
        read_structure(str(path))


@pytest.mark.parametrize(
    "rests",
    [
        ["T T", "T T T", "T T T"],
        ["T T T", "T T x", "T T T"],
        ["", "", ""],
        ["1 1 1", "1 1 1", "0 0 0"],
    ],
)
def test_flags_that_are_missing(tmp_path, rests):
    with pytest.raises(InputError, match="needs three flags"):
        read_structure(poscar(tmp_path, rests))


@pytest.mark.parametrize(
    "rests",
    [
        ["Ca", "F", "F"],
        ["Ca ", "F1", "F2"],
        ["", "", ""],
        ["T T T", "F F F", "F F F"],
        ["Ca 1.0", "F 2.0", "F 2.0"],
    ],
)
def test_without_selective_dynamics_nothing_is_fixed(tmp_path, rests):
    assert not read_structure(poscar(tmp_path, rests, selective=False)).atoms.constraints


def test_labels_that_contradict(tmp_path):
    for rests, selective in ((["Ca", "F", "O"], False), (["Ca T T T", "F T T T", "O T T T"], True)):
        with pytest.raises(
            InputError, match="atom 2 is F according to the line of elements, and O"
        ):
            read_structure(poscar(tmp_path, rests, selective=selective))


# -- elements -------------------------------------------------------------------------------------


def old(tmp_path, comment, counts="1 2", rests=("", "", "")):
    path = tmp_path / "POSCAR"
    rows = "".join(f"{p} {r}\n" for p, r in zip(PLACES, rests, strict=True))
    path.write_text(HEAD.replace("CaF2", comment, 1) + f"{counts}\nDirect\n{rows}")
    return str(path)


@pytest.mark.parametrize(
    "comment",
    ["Ca F", "Ca F fluorite", "CaF2", "Ca1F2", "CaF2_primitive", "Ca, F", "Ca1 F2", "  Ca   F  "],
)
def test_files_of_vasp_4(tmp_path, comment):
    assert str(read_structure(old(tmp_path, comment)).atoms.symbols) == "CaF2"


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "POSCAR",
        "fluorite",
        "unknown system",
        "CaF3",
        "NaCl bulk",
        "Ca",
        "PBE CONTCAR",
        "Ca F O",
        "Si O 2 x",
        "C I Fluorite",
    ],
)
def test_comments_that_name_no_elements_are_not_guessed(tmp_path, comment):
    if comment == "C I Fluorite":  # are elements
        assert str(read_structure(old(tmp_path, comment)).atoms.symbols) == "CI2"
        return
    if comment == "Si O 2 x":
        assert str(read_structure(old(tmp_path, comment)).atoms.symbols) == "SiO2"
        return
    with pytest.raises(InputError, match="--elements"):
        read_structure(old(tmp_path, comment))
    given = ReadingSettings(elements="Ca F")
    assert str(read_structure(old(tmp_path, comment), given).atoms.symbols) == "CaF2"


def test_elements_from_labels_and_from_a_potcar(tmp_path):
    path = old(tmp_path, "something", rests=("Ca", "F", "F"))
    assert str(read_structure(path).atoms.symbols) == "CaF2"
    path = old(tmp_path, "something")
    (tmp_path / "POTCAR").write_text(
        "   TITEL  = PAW_PBE Ca_sv 06Sep2000\n   TITEL  = PAW_PBE F 08\n"
    )
    assert str(read_structure(path).atoms.symbols) == "CaF2"


@pytest.mark.parametrize("species", ["Ca_sv F\n", "Ca_sv/6a2f546d F/1234\n", "Ca F ! comment\n"])
def test_species_of_vasp_6(tmp_path, species):
    path = poscar(tmp_path, ["", "", ""], selective=False, species=species)
    assert str(read_structure(path).atoms.symbols) == "CaF2"


@pytest.mark.parametrize(
    ("species", "counts"),
    [
        ("Ca F O\n", "1 2"),
        ("Ca\n", "1 2"),
        ("Ca Xx\n", "1 2"),
        ("Ca F\n", "1 -2"),
        ("Ca F\n", "1 x"),
    ],
)
def test_species_and_counts_that_do_not_fit(tmp_path, species, counts):
    with pytest.raises(InputError):
        read_structure(
            poscar(tmp_path, ["", "", ""], selective=False, species=species, counts=counts)
        )


def test_isotopes(tmp_path):
    path = poscar(tmp_path, ["", "", ""], selective=False, species="Li D\n")
    atoms = read_structure(path).atoms
    assert atoms.numbers.tolist() == [3, 1, 1]
    np.testing.assert_allclose(atoms.get_masses()[1:], 2.014, atol=1e-3)


# -- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "volume"),
    [
        ("1.0", 4.0**3),
        ("2.0", 8.0**3),
        ("-100.0", 100.0),
        ("1.0 2.0 0.5", 4.0**3),
        ("1.0d0", 4.0**3),
    ],
)
def test_scaling(tmp_path, scale, volume):
    path = tmp_path / "POSCAR"
    path.write_text(f"Po\n{scale}\n4 0 0\n0 4 0\n0 0 4\nPo\n1\nCartesian\n1 1 1\n")
    atoms = read_structure(str(path)).atoms
    assert atoms.get_volume() == pytest.approx(volume)
    np.testing.assert_allclose(atoms.get_scaled_positions()[0], 0.25)


@pytest.mark.parametrize("scale", ["0", "x", "1 2", "1 -2 3", ""])
def test_scaling_that_is_none(tmp_path, scale):
    path = tmp_path / "POSCAR"
    path.write_text(f"Po\n{scale}\n4 0 0\n0 4 0\n0 0 4\nPo\n1\nCartesian\n1 1 1\n")
    with pytest.raises(InputError):
        read_structure(str(path))


@pytest.mark.parametrize("direct", [True, False])
def test_the_same_as_ase_bit_for_bit(tmp_path, direct):
    atoms = bulk("GaN", "wurtzite", a=3.19, c=5.19) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint([FixAtoms([0, 3]), FixScaled(1, [True, False, True])])
    atoms.set_velocities(np.random.default_rng(0).normal(size=(8, 3)))
    path = tmp_path / "POSCAR"
    write(path, atoms, direct=direct)
    found, expected = read_structure(str(path)).atoms, read(path)
    assert (found.positions == expected.positions).all()
    assert (found.cell[:] == expected.cell[:]).all()
    assert (found.numbers == expected.numbers).all()
    assert (free(found) == free(expected)).all()
    np.testing.assert_allclose(found.get_velocities(), expected.get_velocities(), rtol=1e-12)
