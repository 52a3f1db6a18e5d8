"""Structure files of any content and name: structures that can be used, or one clear line."""

from __future__ import annotations

import bz2
import gzip
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixScaled
from ase.io import write
from fuzz_support import assert_clear, edits, long, mutate, refused_or_fine, short, slow
from hypothesis import strategies as st

from dpa3sim import Potential
from dpa3sim.cli.protocol import write_structure
from dpa3sim.errors import InputError
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


test_structures = short(files(), 300)(check_structures)


@slow
def test_structures_for_long():
    long(check_structures, files())
