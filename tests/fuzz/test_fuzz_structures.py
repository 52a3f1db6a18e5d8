"""Structure files of any content and name: structures that can be used, or one clear line."""

from __future__ import annotations

import bz2
import gzip
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixScaled
from ase.io import write
from fuzz_support import (
    LONGEST_MESSAGE,
    assert_clear,
    edits,
    long,
    mutate,
    refused_or_fine,
    short,
    slow,
)
from hypothesis import strategies as st

from dpa3sim import Potential
from dpa3sim.common.errors import InputError
from dpa3sim.run.output import write_structure
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.inspection import describe
from dpa3sim.structures.reading import Source, read_structures

FOLDER = Path(tempfile.mkdtemp(prefix="dpa3sim-fuzz-"))
FORMATS = {
    "POSCAR": "vasp",
    "a.vasp": "vasp",
    "a.cif": "cif",
    "a.extxyz": "extxyz",
    "a.xyz": "xyz",
    "a.traj": "traj",
    "a.json": "json",
    "a.db": "db",
    "a.lmp": "lammps-data",
    "a.in": "aims",
    "a.gen": "gen",
    "a.pdb": "proteindatabank",
    "a.xsf": "xsf",
    "a.cfg": "cfg",
    "a.pwi": "espresso-in",
}
# Other names for the same content.
NAMES = [
    *FORMATS,
    *"a CONTCAR a.POSCAR a.mol a.sdf a.cube a.nc a.gro XDATCAR OUTCAR vasprun.xml a.xtd".split(),
    *"a.car a.res a.cell a.struct a.gpw a.xml a.lammpstrj a.bundle a.x_y a.gz CHGCAR".split(),
    *"a.vasp.xz a.xyz.bz2".split(),
]

# Of a file that grew to thousands of frames, all are read and so many computed.
MOST_USED = 20


@cache
def potential() -> Potential:
    return Potential()


@cache
def corpus() -> list[tuple[str, bytes]]:
    """Files that can be read, of all formats."""
    found = []
    slab = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    slab.set_constraint([FixAtoms([0]), FixScaled(1, (True, False, True))])
    slab.set_velocities(np.full((3, 3), 0.01))
    water = molecule("H2O")
    water.info.update(charge=0, spin=1, note='with "quotes"', values=np.arange(3))
    rutile = Atoms("TiO2", np.eye(3), cell=[4, 5, 6], pbc=(True, True, False))
    for number, atoms in enumerate([bulk("Si", cubic=True), slab, water, rutile]):
        for name, kind in FORMATS.items():
            path = FOLDER / f"{number}-{name}"
            try:
                images = [atoms, atoms] if kind in ("extxyz", "xyz", "traj") else atoms
                write(path, images, format=kind)
            except Exception:  # ASE cannot write every structure in every format
                path.unlink(missing_ok=True)
                continue
            found.append((name, path.read_bytes()))
            path.unlink()
    plain = dict(found)
    found += [(f"{n}.gz", gzip.compress(plain[n])) for n in ("POSCAR", "a.extxyz", "a.cif")]
    found.append(("a.vasp.bz2", bz2.compress(plain["a.vasp"])))
    found.append(("OUTCAR", b" vasp.6.4.1\n POSITION\n" * 3))
    return found


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """Name and content."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(NAMES)), draw(st.binary(max_size=300))
    name, content = draw(st.sampled_from(corpus()))
    if draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from(NAMES))
    return name, mutate(content, draw(edits))


def check_structures(example: tuple[str, bytes]) -> None:
    name, content = example
    path = FOLDER / name
    path.write_bytes(content)
    try:
        for argument in (str(path), f"{path}@:"):
            for source in read_structures([argument])[:MOST_USED]:
                if isinstance(source, InputError):
                    assert_clear(source)
                else:
                    use(source)
    finally:
        path.unlink()


def use(source: Source) -> None:
    """What commands do with a structure before, and after, they compute."""
    atoms = source.atoms
    assert len(source.sha256) == 64
    assert describe(atoms)
    with refused_or_fine():
        potential().check(atoms)
        if len(atoms) <= 16 and len(atoms) < 0.3 * max(abs(atoms.cell.volume), 1.0):
            potential().evaluate([atoms])
        write_structure(FOLDER, "out", atoms)


# -- readers of our own ---------------------------------------------------------------------------

FIELD = Path(__file__).resolve().parents[1] / "field"
DUMP = b"""ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
3
ITEM: BOX BOUNDS xy xz yz pp pp ff
-0.5 7.5 1.5
0 7.25 -0.5
0 8 0.25
ITEM: ATOMS id type element mass xs ys zs
3 2 H 1.008 0.1 0.2 0.3
1 1 O 15.999 0.2 0.2 0.3
2 2 H 1.008 0.3 0.2 0.3
"""
MAGNETIC = b"""data_mno
_cell_length_a 8.89(2)
_cell_length_b 8.89
_cell_length_c 8.89
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_chemical_formula_sum 'Mn O'
loop_
_space_group_symop_magn_operation.xyz
x,y,z,+1
-x,-y,-z,+1
loop_
_space_group_symop_magn_centering.xyz
x,y,z,+1
x+1/2,y+1/2,z,+1
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Mn1 Mn2+ 0 0 0 1.0
O1 O2- 1/2 .5 0.5(1) .
"""
NAMED = b"""data_x
_cell_length_a 3.567
_cell_length_b 3.567
_cell_length_c 3.567
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F d -3 m'
_symmetry_Int_Tables_number 227
_space_group_name_Hall 'F 4d 2 3 -1d'
_chemical_formula_sum C
_cell_formula_units_Z 8
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
C1 0 0 0
"""
POSCAR = b"""CaF2
-162.0
0.0 2.73 2.73
2.73 0.0 2.73
2.73 2.73 0.0
Ca_sv/12 F
1 2
Selective dynamics
Cartesian
0.00 0.00 0.00 T T T Ca
0.26 0.25 0.25 .FALSE. T T F
0.75 0.74 0.75 f f t F

0.1 0.2 0.3
0.1 0.2 0.3
0.1 0.2 0.3
"""
HOSTILE = (
    "nan inf -1 0 1e308 1e-308 99999999999 1_0 ٣ 1/0 ? . '' D T Xx 119 -x x,y x+1/999 F .TRUE. "
    "4 d0 1d3 Lattice= CELL(H): cell{parsec} # loop_ data_ ; _atom_site_label"
).split()


@cache
def own_corpus() -> list[tuple[str, bytes]]:
    """Files of people, and what exercises the rest of our readers."""
    found = [(p.name, p.read_bytes()) for p in sorted(FIELD.glob("*/*")) if p.is_file()]
    found += [("x.dump", DUMP), ("x.mcif", MAGNETIC), ("x.cif", NAMED), ("POSCAR", POSCAR)]
    return found


@st.composite
def words(draw: Any) -> tuple[str, bytes, str | None, str | None]:
    """Name, content with some words replaced, elements and format as options."""
    name, content = draw(st.sampled_from(own_corpus()))
    parts = re.split(rb"(\s+)", content)
    for _ in range(draw(st.integers(0, 4))):
        where = draw(st.integers(0, len(parts) - 1))
        other = draw(st.sampled_from(HOSTILE)).encode()
        parts[where] = draw(st.sampled_from([other, b"", parts[draw(st.integers(0, where))]]))
    content = b"".join(parts)
    if draw(st.integers(0, 2)) == 0:
        content = mutate(content, draw(edits))
    elements = draw(st.sampled_from([None, None, "O,H", "O H D", "Si"]))
    kind = draw(st.sampled_from([None, None, None, "cif", "vasp", "extxyz", "lammps-data", "dump"]))
    return name, content, elements, kind


def check_readers(example: tuple[str, bytes, str | None, str | None]) -> None:
    name, content, elements, kind = example
    path = FOLDER / name
    path.write_bytes(content)
    try:
        for argument in (str(path), f"{path}@:"):
            given = ReadingSettings(elements=elements, format=kind)
            for source in read_structures([argument], given)[:MOST_USED]:
                if isinstance(source, InputError):
                    assert_clear(source)
                else:
                    assert all(len(warning) < LONGEST_MESSAGE for warning in source.warnings)
                    use(source)
    finally:
        path.unlink()


test_structures = short(files(), 120)(check_structures)
test_readers = short(words(), 150)(check_readers)


@slow
def test_readers_for_long():
    long(check_readers, words())


@slow
def test_structures_for_long():
    long(check_structures, files())
