"""Structure files that claim more than they hold, or are not what they seem."""

import gzip
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLengths
from ase.io import write

from dpa3sim.common.errors import InputError
from dpa3sim.structures.reading import read_structure, read_structures

POSCAR = "Si\n1.0\n4 0 0\n0 4 0\n0 0 4\nSi\n{}\nDirect\n0 0 0\n0.25 0.25 0.25\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.xyz", "1000000000000\n\nH 0 0 0\n"),
        ("x.extxyz", "1000000000000\n\nH 0 0 0\n"),
        ("x.extxyz", "1\n\nH 0 0 0\n1000000000000\n\nH 0 0 0\n"),
        ("x.extxyz", "1\nProperties=species:S:1:pos:R:3:x:R:1000000000\nH 0 0 0\n"),
        ("x.extxyz", "1\nProperties=species:S:1:pos:R:3:x:R:1_000_000_000\nH 0 0 0\n"),
        ("x.xyz", "1_000_000_000_000\n\nH 0 0 0\n"),
        ("POSCAR", POSCAR.format("1000000000000")),
        ("POSCAR", POSCAR.format("1000000000 2")),
        ("POSCAR", POSCAR.format("1_000_000_000")),
        ("x.dat", "1000000000000\n\nH 0 0 0\n"),
        ("x.json", "[" * 100_000),
        ("x.json", '{"1": {"numbers": {"__ndarray__": [[10000000000000], "int64", [1]]}}}'),
    ],
)
def test_counts_that_cannot_be_true(name, text, tmp_path):
    """Readers would loop, or fill the memory, for hours."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match="not a structure that ASE can read"):
        read_structure(str(path))


def test_deep_files_after_a_library_has_raised_the_limit(tmp_path):
    """As symfc does, which comes with phonopy: Python would crash."""
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(100_000)
        with pytest.raises(InputError, match="not a structure that ASE can read"):
            read_structure(str(path))
        assert sys.getrecursionlimit() == 100_000
    finally:
        sys.setrecursionlimit(before)


def test_compressed_files(tmp_path):
    path = tmp_path / "POSCAR.gz"
    path.write_bytes(gzip.compress(POSCAR.format(2).encode()))
    assert len(read_structure(str(path)).atoms) == 2
    path.write_bytes(gzip.compress(b"0" * (70 << 20)))
    with pytest.raises(InputError, match="expands to more than 100 times"):
        read_structure(str(path))
    path.write_bytes(gzip.compress(POSCAR.format(2).encode())[:-10])
    with pytest.raises(InputError, match="cannot be decompressed"):
        read_structure(str(path))


@pytest.mark.parametrize("number", [2, 7, -3])
def test_constraints_of_atoms_that_are_not_there(tmp_path, number):
    path, atoms = tmp_path / "x.traj", bulk("Si")
    atoms.set_constraint([FixBondLengths([[0, 1]]), FixAtoms([0, -1])])
    write(path, atoms)
    assert len(read_structure(str(path)).atoms.constraints) == 2
    atoms.set_constraint([FixAtoms([number])])
    write(path, atoms)
    with pytest.raises(InputError, match="atoms that do not exist"):
        read_structure(str(path))


def test_compressed_files_of_many_frames(tmp_path, monkeypatch):
    """Readers of frames go back after each; a compressed file begins anew each time."""
    path, again = tmp_path / "x.extxyz", []
    write(path, [bulk("Cu", a=3.6 + 0.001 * k) for k in range(100)])
    packed = tmp_path / "x.extxyz.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda r: (again.append(r), rewind(r)))
    frames = read_structures([f"{packed}@:"])
    assert [f.atoms for f in frames] == [f.atoms for f in read_structures([f"{path}@:"])]
    assert len(frames) == 100
    assert len(again) < 10


@pytest.mark.parametrize("coding", ["latin-1", "utf-8", "utf-8-sig"])
def test_letters_of_comments_do_not_matter(coding, tmp_path):
    path = tmp_path / "POSCAR"
    path.write_bytes(POSCAR.format(2).replace("Si\n1.0", "für Å\n1.0").encode(coding))
    assert len(read_structure(str(path)).atoms) == 2


def test_a_database_that_computes_for_ever(tmp_path):
    path = tmp_path / "x.db"
    write(path, bulk("Si"))
    assert len(read_structure(str(path)).atoms) == 2
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE systems RENAME TO s")
        database.execute(
            "CREATE VIEW systems AS WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i FROM n) "
            "SELECT s.* FROM s, n"
        )
        database.commit()
    with pytest.raises(InputError, match="views or triggers"):
        read_structure(str(path))


@pytest.mark.parametrize("name", ["/dev/zero", "x" * 300, "y@" * 200, "a\0b"])
def test_names_of_no_file(name):
    (error,) = read_structures([name])
    assert isinstance(error, InputError)


@pytest.mark.parametrize("share", ["0.5", "0.98", "1.2", "-1", "much"])
def test_occupancies_that_are_not_one(share, tmp_path):
    path = tmp_path / "x.cif"
    write(path, bulk("Cu"))
    text = path.read_text()
    assert text.rstrip().endswith("1.0000")
    path.write_text(text.rstrip().removesuffix("1.0000") + share + "\n")
    with pytest.raises(InputError, match="partially occupied"):
        read_structure(str(path))


def test_elements_that_are_none(tmp_path):
    path = tmp_path / "x.xsf"
    for number in (119, -1):
        path.write_text(f"ATOMS\n {number} 0.0 0.0 0.0\n")
        with pytest.raises(InputError, match=f"atomic number {number}|not a structure"):
            read_structure(str(path))


def test_a_name_with_an_at_sign_is_a_name(tmp_path):
    path = tmp_path / "a@1"
    path.write_text(POSCAR.format(2))
    np.testing.assert_allclose(read_structure(str(path)).atoms.cell.lengths(), 4.0)
