"""CIF as people have it: operations, settings, formulas, elements, occupancies, faults of text."""

import gemmi
import numpy as np
import pytest
import spglib
from ase.geometry import cellpar_to_cell

from dpa3sim.common.errors import InputError
from dpa3sim.structures import cif

CELLS = {
    "triclinic": (5.1, 6.3, 7.7, 81.0, 97.0, 104.0),
    "monoclinic": (5.1, 6.3, 7.7, 90.0, 104.0, 90.0),
    "orthorhombic": (5.1, 6.3, 7.7, 90.0, 90.0, 90.0),
    "tetragonal": (6.3, 6.3, 7.7, 90.0, 90.0, 90.0),
    "trigonal": (8.3, 8.3, 9.7, 90.0, 90.0, 120.0),
    "hexagonal": (8.3, 8.3, 9.7, 90.0, 90.0, 120.0),
    "cubic": (11.3, 11.3, 11.3, 90.0, 90.0, 90.0),
}
RHOMBOHEDRAL = (7.7, 7.7, 7.7, 63.0, 63.0, 63.0)
CUBE = (4.2, 4.2, 4.2, 90, 90, 90)


def text(cell, sites, *, operations=None, formula=None, units=None, tags=(), columns=None):
    """A CIF; ``sites`` are (label, x, y, z, ...), further ``columns`` by their names."""
    lines = ["data_x"]
    names = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"]
    lines += [f"_cell_{n} {v}" for n, v in zip(names, cell, strict=True)]
    lines += list(tags)
    if formula:
        lines.append(f"_chemical_formula_sum '{formula}'")
    if units:
        lines.append(f"_cell_formula_units_Z {units}")
    if operations:
        lines += ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{o}'" for o in operations)]
    lines += ["loop_", "_atom_site_label"]
    lines += [f"_atom_site_fract_{x}" for x in "xyz"]
    lines += [f"_atom_site_{c}" for c in columns or ()]
    lines += [" ".join(map(str, site)) for site in sites]
    return "\n".join(lines) + "\n"


def one(content):
    (frame,) = list(cif.frames(content))
    if isinstance(frame, InputError):
        raise frame
    return frame


def group_number(atoms):
    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    return spglib.get_symmetry_dataset(cell, symprec=1e-4).number


def cell_of(group):
    system = group.crystal_system_str()
    if group.ext == "R":
        return RHOMBOHEDRAL
    cell = list(CELLS[system])
    if system == "monoclinic":
        axis = group.monoclinic_unique_axis()
        cell[3:] = [104.0 if x == axis else 90.0 for x in "abc"]
    return tuple(cell)


def large(cell):
    """A cell in which images of generic points are far apart."""
    return (*(3 * x for x in cell[:3]), *cell[3:])


# Generic points, so that the structure has the symmetry of its group and no more.
GENERIC = [("Si1", 0.0832, 0.2147, 0.3091), ("O1", 0.2713, 0.0921, 0.1449)]


@pytest.mark.parametrize("how", ["operations", "name", "hall"])
def test_every_setting_of_every_space_group(how):
    """560 settings: as many atoms as the group has operations, and the group that spglib finds."""
    count = 0
    for group in gemmi.spacegroup_table():
        cell = cell_of(group)
        operations = [op.triplet() for op in group.operations()]
        tags, listed = [], None
        if how == "operations":
            listed = operations
        elif how == "name":
            tags = [f"_symmetry_space_group_name_H-M '{group.xhm()}'"]
        else:
            tags = ["_space_group_name_Hall", f";{group.hall}", ";"]
        content = text(large(cell), GENERIC, operations=listed, tags=tags)
        frame = one(content)
        assert len(frame.atoms) == 2 * len(operations), group.xhm()
        if count % 7 == 0:  # each takes some milliseconds
            assert group_number(frame.atoms) == group.number, group.xhm()
        count += 1
    assert count > 500


@pytest.mark.parametrize(
    ("name", "number", "cell"),
    [
        ("P6(3)/mmc", 194, CELLS["hexagonal"]),
        ("P 6_3/m m c", 194, CELLS["hexagonal"]),
        ("P63/mmc", 194, CELLS["hexagonal"]),
        ("Fm3m", 225, CELLS["cubic"]),
        ("F m -3 m", 225, CELLS["cubic"]),
        ("fm-3m", 225, CELLS["cubic"]),
        ("F M -3 M", 225, CELLS["cubic"]),
        ("P2(1)/c", 14, CELLS["monoclinic"]),
        ("P 21/n", 14, CELLS["monoclinic"]),
        ("P b n m", 62, CELLS["orthorhombic"]),
        ("R -3 m", 166, CELLS["trigonal"]),
        ("R -3 m", 166, RHOMBOHEDRAL),
        ("R -3 m RS", 166, RHOMBOHEDRAL),
        ("R -3 m HR", 166, CELLS["trigonal"]),
        ("R-3m:H", 166, CELLS["trigonal"]),
        ("R-3mR", 166, RHOMBOHEDRAL),
        ("R -3 m {hexagonal axes}", 166, CELLS["trigonal"]),
        ("F 4/m -3 2/m", 225, CELLS["cubic"]),
        ("P 63/m 2/m 2/c", 194, CELLS["hexagonal"]),
        ("P 21/n 21/m 21/a", 62, CELLS["orthorhombic"]),
        ("F 41/d -3 2/m {origin @ centre 2}", 227, CELLS["cubic"]),
    ],
)
def test_names_as_people_write_them(name, number, cell):
    tag = f"_symmetry_space_group_name_H-M '{name}'"
    assert group_number(one(text(large(cell), GENERIC, tags=[tag])).atoms) == number


@pytest.mark.parametrize("number", [14, 62, 166, 194, 225])
def test_a_number_alone(number):
    group = gemmi.find_spacegroup_by_number(number)
    tag = f"_space_group_IT_number {number}"
    frame = one(text(large(cell_of(group)), GENERIC, tags=[tag]))
    assert group_number(frame.atoms) == number


def test_hexagonal_axes_of_a_file_that_says_trigonal():
    """By its number; the cell shows which axes."""
    tags = ["_space_group_crystal_system trigonal", "_space_group_IT_number 166"]
    sites = [("Bi1", 0, 0, 0.234)]
    hexagonal = one(text((4.55, 4.55, 11.86, 90, 90, 120), sites, tags=tags)).atoms
    assert len(hexagonal) == 6
    primitive = one(
        text((4.75, 4.75, 4.75, 57.2, 57.2, 57.2), [("Bi1", 0.234, 0.234, 0.234)], tags=tags)
    ).atoms
    assert len(primitive) == 2
    for atoms in (hexagonal, primitive):
        assert group_number(atoms) == 166


def test_operations_that_do_not_fit_the_cell():
    hexagonal = [op.triplet() for op in gemmi.SpaceGroup("R -3 m:H").operations()]
    with pytest.raises(InputError, match="do not fit"):
        one(text(RHOMBOHEDRAL, GENERIC, operations=hexagonal))
    with pytest.raises(InputError, match="does not fit"):
        one(text(CELLS["orthorhombic"], GENERIC, tags=["_space_group_IT_number 225"]))


def test_operations_rule_over_names():
    operations = [op.triplet() for op in gemmi.SpaceGroup("P m -3 m").operations()]
    sites = [("Cs1", 0, 0, 0), ("Cl1", 0.5, 0.5, 0.5)]
    for tag in (
        "_symmetry_space_group_name_H-M 'P Unknown Name'",
        "_symmetry_space_group_name_H-M 'F m -3 m'",
        "_space_group_IT_number 1",
    ):
        frame = one(text(CUBE, sites, operations=operations, tags=[tag]))
        assert str(frame.atoms.symbols) == "CsCl"
        known = "Unknown" not in tag
        assert any("operations were used" in w for w in frame.warnings) == known


@pytest.mark.parametrize(
    "spelled",
    [
        lambda o: o,
        lambda o: o.upper().replace(",", ", "),
        lambda o: o.replace("+1/2", "+0.5"),
        lambda o: o.replace("+1/2", "+.50"),
        lambda o: ",".join(
            "1/2" + p.replace("+1/2", "") if p.startswith(("-", "+")) and "+1/2" in p else p
            for p in o.split(",")
        ),
    ],
)
def test_spellings_of_operations(spelled):
    operations = [op.triplet() for op in gemmi.SpaceGroup("F m -3 m").operations()]
    sites = [("Na1", 0, 0, 0), ("Cl1", 0.5, 0, 0)]
    atoms = one(
        text((5.64, 5.64, 5.64, 90, 90, 90), sites, operations=[spelled(o) for o in operations])
    ).atoms
    assert str(atoms.symbols) == "Na4Cl4"
    assert group_number(atoms) == 225


def test_thirds_as_decimals():
    operations = [op.triplet() for op in gemmi.SpaceGroup("R -3 m:H").operations()]
    for third, two in (("0.33333", "0.66667"), ("0.333", "0.667"), (".3333", ".6667")):
        listed = [o.replace("+1/3", f"+{third}").replace("+2/3", f"+{two}") for o in operations]
        atoms = one(
            text((4.55, 4.55, 11.86, 90, 90, 120), [("Bi1", 0, 0, 0.234)], operations=listed)
        ).atoms
        assert len(atoms) == 6
        assert group_number(atoms) == 166


def test_unquoted_operations_with_spaces():
    content = text(CUBE, [("Cs1", 0, 0, 0), ("Cl1", 0.5, 0.5, 0.5)], operations=["x,y,z"])
    content = content.replace("'x,y,z'", "x, y, z\n-x, -y, -z")
    assert len(one(content).atoms) == 2


def test_incomplete_operations_are_completed():
    """Generators, whose group is one only; the user is told."""
    sites = [("Na1", 0, 0, 0), ("Cl1", 0.5, 0, 0)]
    listed = ["x,y,z", "x,y+1/2,z+1/2", "x+1/2,y,z+1/2"]
    frame = one(text((5.64, 5.64, 5.64, 90, 90, 90), sites, operations=listed))
    assert str(frame.atoms.symbols) == "Na4Cl4"
    assert any("not all" in w for w in frame.warnings)


@pytest.mark.parametrize("bad", ["x,y", "x,y,q", "x+y/0,y,z", "2x,y,z", "x,x,z", "", "x,y,z+1/0"])
def test_operations_that_are_none(bad):
    with pytest.raises(InputError, match="not a symmetry operation"):
        one(text(CUBE, GENERIC, operations=["x,y,z", bad or "hello"]))


# -- origins --------------------------------------------------------------------------------------


def test_two_origins_that_differ():
    """Diamond at 0 0 0 has 8 atoms with the first origin, 16 others with the second."""
    diamond = (3.567, 3.567, 3.567, 90, 90, 90)
    tags = ["_symmetry_space_group_name_H-M 'F d -3 m'"]
    with pytest.raises(InputError, match="settings"):
        one(text(diamond, [("C1", 0, 0, 0)], tags=tags))
    first = one(text(diamond, [("C1", 0, 0, 0)], tags=tags, formula="C", units=8)).atoms
    assert len(first) == 8
    second = one(
        text(diamond, [("C1", 0.125, 0.125, 0.125)], tags=tags, formula="C", units=8)
    ).atoms
    assert len(second) == 8
    for atoms in (first, second):
        assert group_number(atoms) == 227
        assert atoms.get_all_distances(mic=True)[0, 1:].min() == pytest.approx(1.5445, abs=1e-3)
    named = one(
        text(diamond, [("C1", 0, 0, 0)], tags=["_symmetry_space_group_name_H-M 'F d -3 m:2'"])
    ).atoms
    assert len(named) == 16
    icsd = one(
        text(diamond, [("C1", 0, 0, 0)], tags=["_symmetry_space_group_name_H-M 'F d -3 m S'"])
    ).atoms
    assert len(icsd) == 8
    code = [*tags, "_space_group.IT_coordinate_system_code 1"]
    assert len(one(text(diamond, [("C1", 0, 0, 0)], tags=code)).atoms) == 8


def test_two_origins_that_are_the_same_crystal():
    """P n -3 m of a general position: both origins give the same, shifted."""
    tags = ["_symmetry_space_group_name_H-M 'P 4/n m m'"]
    cell = (4.0, 4.0, 6.0, 90, 90, 90)
    # A position whose images do not depend on the origin: none is refused without reason.
    with pytest.raises(InputError, match="settings"):
        one(text(cell, [("Pb1", 0, 0.5, 0.237), ("O1", 0, 0, 0)], tags=tags))


# -- formulas -------------------------------------------------------------------------------------

ROCK_SALT = [("Na1", 0, 0, 0), ("Cl1", 0.5, 0.5, 0.5)]
FM3M = ["_symmetry_space_group_name_H-M 'F m -3 m'"]
NACL = (5.64, 5.64, 5.64, 90, 90, 90)


@pytest.mark.parametrize(
    ("formula", "units"),
    [
        ("Na Cl", 4),
        ("Na Cl", None),
        ("Na4 Cl4", None),
        ("Na4 Cl4", 4),
        ("Cl1 Na1", 4),
        ("NaCl", 4),
        ("CL NA", 4),
        ("Na1 Cl1", "?"),
    ],
)
def test_formulas_that_agree(formula, units):
    frame = one(text(NACL, ROCK_SALT, tags=FM3M, formula=formula, units=units))
    assert str(frame.atoms.symbols) == "Na4Cl4"
    assert not frame.warnings


@pytest.mark.parametrize(
    ("formula", "units"), [("Na Cl O3", 4), ("Na Cl", 2), ("Na2 Cl", None), ("K Cl", 4)]
)
def test_formulas_that_contradict(formula, units):
    with pytest.raises(InputError, match=r"formula is|does not begin with an element"):
        one(text(NACL, ROCK_SALT, tags=FM3M, formula=formula, units=units))


def test_a_part_of_the_cell_is_refused():
    """Only the identity is listed, but the formula says that there are four units."""
    with pytest.raises(InputError, match=r"Z = 4.*ClNa"):
        one(text(NACL, ROCK_SALT, operations=["x,y,z"], formula="Na Cl", units=4))
    frame = one(text(NACL, ROCK_SALT))
    assert any("no symmetry" in w for w in frame.warnings)


def test_too_few_hydrogens_are_a_warning_too_many_are_not():
    sites = [("O1", 0.1, 0.2, 0.3), ("H1", 0.2, 0.2, 0.3)]
    cell = (6, 6, 6, 90, 90, 90)
    frame = one(text(cell, sites, operations=["x,y,z"], formula="H2 O", units=1))
    assert any("hydrogen" in w for w in frame.warnings)
    with pytest.raises(InputError, match=r"of the formula \(O\)"):
        one(text(cell, sites, operations=["x,y,z"], formula="O", units=1))
    with pytest.raises(InputError, match="formula is"):
        one(text(cell, sites, operations=["x,y,z"], formula="H O2", units=1))


def test_heavy_water_has_the_formula_of_water():
    sites = [("O1", 0.1, 0.2, 0.3), ("D1", 0.25, 0.2, 0.3), ("D2", 0.1, 0.35, 0.3)]
    for formula in ("D2 O", "H2 O"):
        frame = one(text((6, 6, 6, 90, 90, 90), sites, operations=["x,y,z"], formula=formula))
        assert frame.atoms.get_chemical_formula() == "H2O"
        assert not frame.warnings
        np.testing.assert_allclose(frame.atoms.get_masses()[1:], 2.014, atol=1e-3)
        assert frame.atoms.get_masses()[0] == pytest.approx(15.999, abs=1e-3)


# -- special positions ----------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
@pytest.mark.parametrize("length", [3.2, 12.0])
def test_rounded_special_positions(digits, length):
    """One atom for each, exactly on its place, in small cells and in large ones."""
    if digits == 2 and length > 10:
        pytest.skip("0.33 of 12 Å is no rounding any more")
    third, two = f"{1 / 3:.{digits}f}", f"{2 / 3:.{digits}f}"
    operations = [op.triplet() for op in gemmi.SpaceGroup("P 63/m m c").operations()]
    content = text(
        (length, length, 1.6 * length, 90, 90, 120),
        [("Mg1", third, two, 0.25)],
        operations=operations,
        formula="Mg",
        units=2,
    )
    atoms = one(content).atoms
    assert len(atoms) == 2
    expected = {(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.75)}
    for place in atoms.get_scaled_positions():
        assert min(np.abs(np.subtract(place, e)).max() for e in expected) < 1e-9


def test_atoms_on_top_of_each_other_are_refused():
    content = text(NACL, [("Na1", 0, 0, 0), ("K1", 0.01, 0, 0)], operations=["x,y,z"])
    with pytest.raises(InputError, match=r"Na1 and K1 are 0\.06 Å apart"):
        one(content)
    # Too far from a mirror to be on it, too near to be two atoms.
    content = text(NACL, [("Na1", 0, 0, 0.035)], operations=["x,y,z", "x,y,-z"])
    with pytest.raises(InputError, match="apart"):
        one(content)


def test_a_site_that_repeats_another_counts_once():
    operations = [op.triplet() for op in gemmi.SpaceGroup("F m -3 m").operations()]
    sites = [("Na1", 0, 0, 0), ("Na2", 0.5, 0.5, 0), ("Cl1", 0.5, 0, 0)]
    frame = one(text(NACL, sites, operations=operations, formula="Na Cl", units=4))
    assert str(frame.atoms.symbols) == "Na4Cl4"
    assert any("Na2 repeats" in w for w in frame.warnings)


# -- elements -------------------------------------------------------------------------------------


def element(label, kind=None, formula=None):
    columns = ["type_symbol"] if kind else None
    site = (label, 0.1, 0.2, 0.3, kind) if kind else (label, 0.1, 0.2, 0.3)
    content = text(
        (9, 9, 9, 90, 90, 90), [site], operations=["x,y,z"], formula=formula, columns=columns
    )
    return one(content).atoms.symbols[0]


@pytest.mark.parametrize(
    ("kind", "symbol"),
    [
        ("CA", "Ca"),
        ("ca", "Ca"),
        ("FE2+", "Fe"),
        ("Si4+", "Si"),
        ("O2-", "O"),
        ("Fe+3", "Fe"),
        ("O1-", "O"),
        ("Cl", "Cl"),
        ("D", "H"),
        ("Cs1+", "Cs"),
        ("CO", "Co"),
        ("Siva", "Si"),
        ("Cval", "C"),
    ],
)
def test_types(kind, symbol):
    assert element("A1", kind) == symbol


@pytest.mark.parametrize(
    ("label", "symbol"),
    [
        ("Ca1", "Ca"),
        ("CaM1", "Ca"),
        ("O1A", "O"),
        ("O", "O"),
        ("Si_2", "Si"),
        ("SiT", "Si"),
        ("H12", "H"),
        ("O1'", "O"),
        ("D1", "H"),
        ("Oa", "O"),
        ("W1", "W"),
        ("O(1)", "O"),
    ],
)
def test_labels(label, symbol):
    assert element(label) == symbol


@pytest.mark.parametrize(
    ("label", "formula", "symbol"),
    [
        ("CA1", "Ca", "Ca"),
        ("CA1", "C", "C"),
        ("CL1", "Cl", "Cl"),
        ("CO3", "Co", "Co"),
        ("OW1", "O", "O"),
        ("W1", "W", "W"),
        ("NB", "N", "N"),
    ],
)
def test_labels_that_the_formula_decides(label, formula, symbol):
    assert element(label, formula=formula) == symbol


@pytest.mark.parametrize("label", ["CA1", "NB1", "CO1", "SC"])
def test_labels_in_capitals_are_not_guessed(label):
    with pytest.raises(InputError, match=f"{label} can mean"):
        element(label)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("Wat1", None),
        ("OH", None),
        ("OH1", None),
        ("NH4", None),
        ("T1", None),
        ("M1", None),
        ("X", None),
        ("1", None),
        ("Wat", "Wat"),
        ("A", "OH"),
        ("A", "NH4"),
        ("A", "M"),
        ("Cation1", None),
    ],
)
def test_labels_of_no_element_are_named(label, kind):
    with pytest.raises(InputError, match=label):
        element(label, kind)


def test_oxygen_of_a_group_whose_hydrogen_is_there():
    sites = [("Na1", 0, 0, 0), ("OH1", 0.5, 0.5, 0.2), ("H1", 0.5, 0.5, 0.37)]
    cell = (5, 5, 5.5, 90, 90, 90)
    frame = one(text(cell, sites, operations=["x,y,z"], formula="H Na O", units=1))
    assert frame.atoms.get_chemical_formula() == "HNaO"
    with pytest.raises(InputError, match="OH1"):
        one(text(cell, sites[:2], operations=["x,y,z"], formula="H Na O", units=1))


# -- occupancies, magnetic and modulated structures, text -----------------------------------------


@pytest.mark.parametrize(
    ("share", "count"),
    [(".", 2), ("?", 2), ("1", 2), ("1.000(3)", 2), ("1.0", 2), ("0", 1), ("0.0", 1)],
)
def test_occupancies(share, count):
    sites = [("Na1", 0, 0, 0, share), ("Cl1", 0.5, 0.5, 0.5, 1)]
    frame = one(text(CUBE, sites, operations=["x,y,z"], columns=["occupancy"]))
    assert len(frame.atoms) == count


@pytest.mark.parametrize("share", ["0.5", "0.97", "1.5", "-1", "half"])
def test_partial_occupancies(share):
    sites = [("Na1", 0, 0, 0, share), ("Cl1", 0.5, 0.5, 0.5, 1)]
    with pytest.raises(InputError, match="partially occupied"):
        one(text(CUBE, sites, operations=["x,y,z"], columns=["occupancy"]))


MAGNETIC = """\
data_mno
_cell_length_a 8.89
_cell_length_b 8.89
_cell_length_c 8.89
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_magn.name_BNS "C_c2/c"
loop_
_space_group_symop_magn_operation.id
_space_group_symop_magn_operation.xyz
1 x,y,z,+1
2 -x,-y,-z,+1
{}
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Mn1 Mn 0 0 0
loop_
_atom_site_moment.label
_atom_site_moment.crystalaxis_x
Mn1 5.0
"""
CENTRINGS = """\
loop_
_space_group_symop_magn_centering.id
_space_group_symop_magn_centering.xyz
1 x,y,z,+1
2 x+1/2,y+1/2,z,+1
3 x+1/2,y,z,-1
4 x,y+1/2,z,-1"""


def test_magnetic_structures_have_all_their_atoms():
    assert len(one(MAGNETIC.format(CENTRINGS)).atoms) == 4
    assert len(one(MAGNETIC.format("")).atoms) == 1
    without = (
        "\n".join(
            line
            for line in MAGNETIC.format("").splitlines()
            if "operation" not in line and not line.endswith(",+1")
        )
        .replace("loop_\n\nloop_", "loop_")
        .replace('"C_c2/c"\nloop_\n\n', '"C_c2/c"\n')
    )
    with pytest.raises(InputError, match="magnetic"):
        one(without)


def test_modulated_structures_are_refused():
    with pytest.raises(InputError, match="modulated"):
        one(text(CUBE, GENERIC, tags=["_cell_modulation_dimension 1"]))


def test_faults_of_text():
    """Values of several words without quotes, no data_ line, fractions, deviations, dots."""
    content = text(NACL, [("Na1", "0", "0.0(1)", "."), ("Cl1", "1/2", ".5", "0.500(2)")], tags=FM3M)
    content = content.replace("0.0(1) .", "0.0(1) 0").replace("data_x\n", "")
    content = content.replace("'F m -3 m'", "F m -3 m").replace("5.64\n", "5.640(3)\n")
    atoms = one("_chemical_name_common Table salt of the sea\n" + content).atoms
    assert str(atoms.symbols) == "Na4Cl4"


def test_other_letters():
    content = text(NACL, ROCK_SALT, tags=[*FM3M, "_publ_author 'Müller, Å. ‑ 2'"])
    content = content.replace("data_x", "data_Na₁Cl")
    assert str(one(content).atoms.symbols) == "Na4Cl4"


def test_sites_without_coordinates_are_told():
    sites = [("O1", 0.1, 0.2, 0.3), ("H1", "?", "?", "?")]
    frame = one(text(CUBE, sites, operations=["x,y,z"], formula="H2 O", units=1))
    assert len(frame.atoms) == 1
    assert any("H1" in w for w in frame.warnings)
    assert any("hydrogen" in w for w in frame.warnings)


def test_a_volume_that_is_another():
    frame = one(text(NACL, ROCK_SALT, tags=[*FM3M, "_cell_volume 1794"]))
    assert any("1794" in w for w in frame.warnings)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("_cell_length_a 4.2", "_cell_length_a 0", "impossible"),
        ("_cell_length_a 4.2", "_cell_length_a many", "not a number"),
        ("_cell_length_a 4.2", "", "_cell_length_a is missing"),
        ("_cell_angle_gamma 90", "_cell_angle_gamma 181", "impossible"),
        ("_atom_site_fract_z", "_atom_site_nothing_z", "no coordinates"),
        ("0.5 0.5", "0.5 nowhere", "not a number"),
    ],
)
def test_what_is_missing_is_named(old, new, words):
    content = text(CUBE, [("Cs1", 0, 0, 0), ("Cl1", 0.5, 0.5, 0.5)], operations=["x,y,z"])
    assert old in content
    with pytest.raises(InputError, match=words):
        one(content.replace(old, new, 1))


def test_blocks_are_frames():
    good = text(NACL, ROCK_SALT, tags=FM3M)
    bad = text(NACL, [("Wat1", 0, 0, 0)], tags=FM3M).replace("data_x", "data_bad")
    frames = list(cif.frames("data_global\n_audit_author_name 'A'\n" + good + bad + good))
    assert [isinstance(f, InputError) for f in frames] == [False, True, False]
    assert "data_bad" in str(frames[1])


def test_a_wide_cell_is_as_it_was():
    """Positions in Å of a triclinic cell, by hand."""
    cell = (5.1, 6.3, 7.7, 81.0, 97.0, 104.0)
    atoms = one(text(cell, [("Si1", 0.1, 0.2, 0.3)], operations=["x,y,z"])).atoms
    np.testing.assert_allclose(atoms.cell[:], cellpar_to_cell(cell), atol=1e-12)
    np.testing.assert_allclose(atoms.positions[0], [0.1, 0.2, 0.3] @ cellpar_to_cell(cell))


DISORDER = """data_x
_cell_length_a 9
_cell_length_b 9
_cell_length_c 9
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_disorder_assembly
_atom_site_disorder_group
C1 C 0 0 0 . .
O1 O 0.13 0 0 A 1
O2 O 0 0.13 0 {} {}
"""


@pytest.mark.parametrize(("assembly", "group"), [("A", "2"), ("A", "-1")])
def test_alternatives_of_a_disordered_structure_are_refused(assembly, group):
    """Files of databases may leave out the occupancies, and list the atoms of all alternatives."""
    with pytest.raises(InputError, match="sites O1 and O2 belong to alternative groups"):
        one(DISORDER.format(assembly, group))


@pytest.mark.parametrize(("assembly", "group"), [("A", "1"), ("B", "2"), (".", "."), ("?", "0")])
def test_one_alternative_is_an_ordered_structure(assembly, group):
    assert str(one(DISORDER.format(assembly, group)).atoms.symbols) == "CO2"


def test_a_label_of_a_water_molecule_is_not_hydrogen():
    with pytest.raises(InputError, match="H2O is a group of atoms"):
        element("H2O")
    # The second hydrogen on an oxygen, as the formula tells.
    assert element("H2O", formula="H") == "H"
    with pytest.raises(InputError):
        element("H2O", formula="H2 O")
