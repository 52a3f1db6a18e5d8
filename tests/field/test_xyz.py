"""xyz in the dialects that people have: i-PI's, GPUMD's, plain ones with and without a cell."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from ase.units import Bohr

from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structure, read_structures

SILICON = bulk("Si", cubic=True)


def file(tmp_path, comment, rows, name="x.xyz"):
    path = tmp_path / name
    path.write_text(f"{len(rows)}\n{comment}\n" + "\n".join(rows) + "\n")
    return str(path)


def rows_of(atoms, scale=1.0):
    return [
        f"{s} {x} {y} {z}"
        for s, (x, y, z) in zip(atoms.get_chemical_symbols(), atoms.positions * scale, strict=True)
    ]


@pytest.mark.parametrize(
    ("units", "positions", "cell"),
    [
        ("positions{angstrom} cell{angstrom}", 1.0, 1.0),
        ("cell{angstrom} Traj: positions{angstrom} Step: 3 Bead: 0", 1.0, 1.0),
        ("positions{angstrom} cell{atomic_unit}", 1.0, 1 / Bohr),
        ("positions{atomic_unit} cell{angstrom}", 1 / Bohr, 1.0),
        ("positions{angstrom}", 1.0, 1 / Bohr),
        ("", 1 / Bohr, 1 / Bohr),
        ("x_centroid{angstrom} cell{angstrom}", 1.0, 1.0),
        ("positions{nanometer} cell{nanometer}", 0.1, 0.1),
    ],
)
@pytest.mark.parametrize("kind", ["abcABC", "H", "GENH"])
def test_comments_of_ipi(tmp_path, units, positions, cell, kind):
    """With the units that they state, which are bohr where they state none."""
    if kind == "abcABC":
        numbers = [*SILICON.cell.lengths() * cell, 90.0, 90.0, 90.0]
    else:
        numbers = (SILICON.cell[:] * cell).ravel()
    comment = f"# CELL({kind}): {' '.join(f'{n:.10f}' for n in numbers)} {units}"
    atoms = read_structure(file(tmp_path, comment, rows_of(SILICON, positions))).atoms
    assert atoms.pbc.all()
    np.testing.assert_allclose(atoms.cell[:], SILICON.cell[:], rtol=2e-7)
    np.testing.assert_allclose(atoms.positions, SILICON.positions, rtol=2e-7)


def test_triangular_cells_of_ipi_are_columns_general_ones_rows(tmp_path):
    vectors = np.array([[4.0, 0, 0], [1.0, 5.0, 0], [0.5, 0.7, 6.0]])
    tail = "positions{angstrom} cell{angstrom}"
    for kind, matrix in (("H", vectors.T), ("GENH", vectors)):
        comment = f"# CELL[{kind}]: {' '.join(map(str, matrix.ravel()))} {tail}"
        atoms = read_structure(file(tmp_path, comment, ["Si 0 0 0"])).atoms
        np.testing.assert_allclose(atoms.cell[:], vectors)


@pytest.mark.parametrize(
    "comment",
    [
        "# CELL(abcABC): 5 5 5 90 90 90 positions{furlong} cell{angstrom}",
        "# CELL(abcABC): 5 5 5 90 90 90 positions{angstrom} cell{parsecs}",
        "# CELL(abcABC): 5 5 5 90 90 positions{angstrom}",
        "# CELL(abcABC): 5 5 5 10 90 150 positions{angstrom}",
        "# CELL(abcABC): 5 5 5 90 90 90 velocities{m/s} cell{angstrom}",
        "# CELL(abcABC): 5 5 5 90 90 90 forces{ev/ang} cell{angstrom}",
        "# CELL(other): 5 5 5 90 90 90 positions{angstrom}",
    ],
)
def test_comments_of_ipi_that_are_not_understood(tmp_path, comment):
    with pytest.raises(InputError):
        read_structure(file(tmp_path, comment, ["Si 0 0 0"]))


def test_files_that_ipi_writes(tmp_path):
    """By its own code."""
    from ipi.engine.atoms import Atoms
    from ipi.engine.cell import Cell
    from ipi.utils.io import print_file

    beads, cell = Atoms(8), Cell((SILICON.cell[:] / Bohr).T)
    beads.q[:] = SILICON.positions.ravel() / Bohr
    beads.names[:] = "Si"
    path = tmp_path / "i.xyz"
    with path.open("w") as out:
        print_file(
            "xyz",
            beads,
            cell,
            out,
            title="Step: 0  Bead: 0  positions{angstrom}  cell{angstrom}",
            key="positions",
            dimension="length",
            units="angstrom",
            cell_units="angstrom",
        )
    atoms = read_structure(str(path)).atoms
    np.testing.assert_allclose(atoms.get_volume(), SILICON.get_volume(), rtol=1e-4)
    np.testing.assert_allclose(atoms.positions, SILICON.positions, atol=1e-4)


@pytest.mark.parametrize(
    "spelled",
    [
        'lattice="{}" properties=species:S:1:pos:R:3',
        'LATTICE="{}" Properties=species:S:1:pos:R:3',
        'lattice = "{}" properties=Species:S:1:Pos:R:3',
        'pbc="T T T" lattice="{}"',
        'energy=-3.2 Lattice="{}" config=x',
        "lattice='{}'",
    ],
)
def test_spellings_of_extended_comments(tmp_path, spelled):
    comment = spelled.format(" ".join(map(str, SILICON.cell[:].ravel())))
    atoms = read_structure(file(tmp_path, comment, rows_of(SILICON))).atoms
    assert atoms.pbc.all()
    np.testing.assert_allclose(atoms.cell[:], SILICON.cell[:])
    assert str(atoms.symbols) == "Si8"


@pytest.mark.parametrize(
    "comment",
    [
        "cell 5.43 5.43 5.43 90 90 90",
        "Cell: 5.43 5.43 5.43",
        "5.43 5.43 5.43",
        "5.43 0 0 0 5.43 0 0 0 5.43",
        "  5.43   5.43   5.43  90.0 90.0 90.0",
        "box = 5.43, 5.43, 5.43",
        "a=5.43 b=5.43 c=5.43 alpha=90 beta=90 gamma=90",
        "abc 5.43 5.43 5.43",
        "MD frame 3, boxsize 12.3 12.3 12.3",
        "lattice_vector 5 0 0 0 5 0 0 0 5",
        "CRYST1 5.43 5.43 5.43 90 90 90",
        "Tv 5.43 5.43 5.43",
        'pbc="T T T"',
        'unit_cell="5.43 5.43 5.43"',
        'cell="5.43 0 0 0 5.43 0 0 0 5.43" energy=1',
        "Lattice: 5.43 0 0 0 5.43 0 0 0 5.43",
        'Lattice="5.43 5.43 5.43"',
        "jmolscript: load {1 1 1} unitcell {5.43 5.43 5.43 90 90 90}",
    ],
)
def test_cells_that_are_not_understood_make_no_cluster(tmp_path, comment):
    with pytest.raises(InputError):
        read_structure(file(tmp_path, comment, rows_of(SILICON)))


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "methane",
        "a fuel cell molecule, 3 atoms",
        "energy=-3.4 charge=0",
        "step 100, E = -12.3",
        "gdb 1 157.7118 157.70997 157.70699 0.0 13.21 -0.3877 0.1171 0.5048 35.3641",
        'pbc="F F F"',
        "i =        0, time =        0.000, E =       -17.164",
        "-40.5184",
        "frame 1 2",
        "box of water",
    ],
)
def test_comments_of_clusters(tmp_path, comment):
    path = file(tmp_path, comment, ["C 0 0 0", "H 0.6 0.6 0.6", "H -0.6 -0.6 0.6"])
    atoms = read_structure(path).atoms
    assert not atoms.pbc.any()
    assert str(atoms.symbols) == "CH2"


def test_vectors_below_the_atoms(tmp_path):
    """ADF's way to give a cell."""
    rows = [*rows_of(SILICON), "VEC1 5.43 0 0", "VEC2 0 5.43 0", "VEC3 0 0 5.43"]
    path = tmp_path / "x.xyz"
    path.write_text("8\nsilicon\n" + "\n".join(rows) + "\n")
    assert read_structure(str(path)).atoms.cell.volume == pytest.approx(5.43**3)


@pytest.mark.parametrize("name", ["mass", "masses", "Mass", "MASSES"])
def test_columns_of_masses(tmp_path, name):
    comment = f'Lattice="6 0 0 0 6 0 0 0 6" Properties=species:S:1:pos:R:3:{name}:R:1'
    path = file(tmp_path, comment, ["H 0 0 0 2.014", "O 1 0 0 17.999"])
    np.testing.assert_allclose(read_structure(path).atoms.get_masses(), [2.014, 17.999])
    for wrong in ("0.0", "-1", "nan"):
        path = file(tmp_path, comment, [f"H 0 0 0 {wrong}", "O 1 0 0 17.999"])
        with pytest.raises(InputError, match="mass"):
            read_structure(path)


@pytest.mark.parametrize(("symbol", "mass"), [("D", 2.014), ("T", 3.016), ("d", 2.014)])
def test_isotopes(tmp_path, symbol, mass):
    path = file(tmp_path, "water", ["O 0 0 0", f"{symbol} 0.96 0 0", "H -0.24 0.93 0"])
    atoms = read_structure(path).atoms
    assert atoms.numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(atoms.get_masses(), [15.999, mass, 1.008], atol=1e-3)


def test_frames_of_every_kind(tmp_path):
    path = tmp_path / "x.extxyz"
    write(path, [SILICON, SILICON * 2])
    path.write_text(path.read_text() + "\n\n1\nA plain one\nHe 0 0 0\n")
    assert [len(s.atoms) for s in read_structures([f"{path}@:"])] == [8, 64, 1]
    assert len(read_structure(str(path)).atoms) == 1
    assert len(read_structure(f"{path}@1").atoms) == 64


def test_unknown_elements_are_named(tmp_path):
    with pytest.raises(InputError, match="Xq"):
        read_structure(file(tmp_path, "", ["Xq 0 0 0"]))


def test_the_same_as_ase_bit_for_bit(tmp_path):
    """What ASE writes, with constraints, results and arrays."""
    from ase.constraints import FixAtoms
    from ase.io import read

    atoms = SILICON.copy()
    atoms.rattle(0.1, seed=3)
    atoms.set_constraint(FixAtoms([0, 3]))
    atoms.info["note"] = 'with "quotes" and = signs'
    atoms.set_array("tag_of_mine", np.arange(8))
    path = tmp_path / "x.extxyz"
    write(path, atoms)
    found, expected = read_structure(str(path)).atoms, read(path)
    assert found == expected
    assert found.info == expected.info
    assert (found.arrays["tag_of_mine"] == np.arange(8)).all()
    assert str(found.constraints) == str(expected.constraints)


@pytest.mark.parametrize(
    ("rows", "symbols"),
    [
        (["Fe1 0 0 0", "Fe_up 0 0 3"], "Fe2"),
        (["O_w 0 0 0", "H-1 0 0 1"], "OH"),
        (["fe2 0 0 0", "CL3 0 0 3"], "FeCl"),
        (["H1 0.0D+00 0 0", "Cl 0 0 1.27d0"], "HCl"),
    ],
)
def test_labels_and_exponents_of_other_programs(tmp_path, rows, symbols):
    atoms = read_structure(file(tmp_path, "", rows)).atoms
    assert str(atoms.symbols) == symbols


def test_labels_in_a_column_of_an_extended_frame(tmp_path):
    comment = 'Lattice="5 0 0 0 5 0 0 0 5" Properties=id:I:1:species:S:1:pos:R:3'
    atoms = read_structure(file(tmp_path, comment, ["1 Fe1 0 0 0", "2 Fe2 2.5 2.5 2.5"])).atoms
    assert str(atoms.symbols) == "Fe2"
    np.testing.assert_allclose(atoms.positions[1], 2.5)


def test_numbers_of_types_are_not_elements(tmp_path):
    """The xyz dump of LAMMPS has types, other files have atomic numbers in the same place."""
    path = file(tmp_path, "Atoms. Timestep: 0", ["1 0 0 0", "2 0 0 0.96"])
    with pytest.raises(InputError, match="--elements O,H"):
        read_structure(path)
    assert str(read_structure(path, ReadingSettings(elements="O,H")).atoms.symbols) == "OH"
    with pytest.raises(InputError, match="names 1 elements"):
        read_structure(path, ReadingSettings(elements="O"))


def test_a_symbol_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="'Qq' is not an element"):
        read_structure(file(tmp_path, "", ["Qq 0 0 0"]))


@pytest.mark.parametrize("stress", ["1 2 3 4 5 6", "none", "[[1, 2], [3, 4]]"])
def test_results_in_another_form_are_no_obstacle(tmp_path, stress):
    comment = (
        f'stress="{stress}" dipole=none energy=low '
        'Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3'
    )
    atoms = read_structure(file(tmp_path, comment, ["Fe 0 0 0"])).atoms
    assert atoms.get_volume() == pytest.approx(125)


@pytest.mark.parametrize(
    "comment",
    ["Al fcc 4.05 0 0 0 4.05 0 0 0 4.05", "Ar crystal 5.3 5.3 5.3 90.0 90.0 90.0 bulk"],
)
def test_a_cell_among_words_is_not_passed_over(tmp_path, comment):
    with pytest.raises(InputError, match="seems to give a cell"):
        read_structure(file(tmp_path, comment, ["Al 0 0 0"]))


@pytest.mark.parametrize(
    "comment",
    ["E -1.0 step 3 grad 0.1 0.2 0.3 time 5.0", "E -1.0 -2.0 3 4 5 6", "F 0 0 0.1 0 0 0 0.2 0 0"],
)
def test_other_numbers_among_words_are_no_cell(tmp_path, comment):
    assert not read_structure(file(tmp_path, comment, ["Al 0 0 0"])).atoms.pbc.any()
