"""Reading of training data: every format gives the same frames, and bad ones are told."""

import gzip
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from tests_support import ENVIRONMENT, TESTS

from dpa3sim.common.errors import InputError
from dpa3sim.common.units import GPA
from dpa3sim.structures.system import System
from dpa3sim.train.data import deepmd
from dpa3sim.train.data.frames import Frame, Frames
from dpa3sim.train.data.reading import read_frames
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.train.data.statistics import composition_fit, counts

SKIP = DataSettings(skip_bad=True)
WATER = "DPA3SIM_WATER"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*sources, settings=None, **options):
    frames, rejected = read_frames(sources, settings or DataSettings(), **options)
    assert rejected == ()
    return frames


def refused(*sources, settings=None, **options):
    """The message, which is one line."""
    with pytest.raises(InputError) as caught:
        read_frames(sources, settings or DataSettings(), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def random_frame(rng, n, periodic=True, virial=True, symbols=(1, 8), origin="made"):
    """Atoms on a grid of 1.5 Å, moved by up to 0.2 Å, with random labels."""
    side = int(np.ceil(n ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n]
    half = rng.normal(size=(3, 3))
    return Frame(
        system=System(
            numbers=rng.choice(symbols, n),
            positions=1.5 * grid + rng.uniform(-0.2, 0.2, (n, 3)),
            cell=np.eye(3) * 1.5 * side if periodic else np.zeros((3, 3)),
            pbc=np.full(3, periodic),
        ),
        energy=float(rng.normal(-5 * n, 0.1)),
        forces=rng.normal(size=(n, 3)),
        virial=half + half.T if virial and periodic else None,
        atomic_energies=None,
        weight=1.0,
        origin=origin,
    )


def assert_same(found, expected, atol=0.0):
    """Compare all but the origins."""
    assert len(found.system) == len(expected.system)
    for name in ("numbers", "positions", "cell", "pbc", "fparam", "aparam", "charge_spin"):
        values = [getattr(frame.system, name) for frame in (found, expected)]
        assert_close(*values, atol)
    for name in ("energy", "forces", "virial", "atomic_energies", "weight"):
        assert_close(getattr(found, name), getattr(expected, name), atol)


def assert_close(found, expected, atol):
    assert (found is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# -- many frames as arrays ------------------------------------------------------------------------


def mixed_frames(rng):
    """All that may be missing is missing somewhere."""
    frames = [random_frame(rng, n, n % 2 == 0) for n in (1, 2, 5, 8, 3)]
    frames[1] = replace(frames[1], energy=None, origin="a.xyz, frame 7")
    frames[2] = replace(frames[2], forces=None, weight=0.5, origin="a.xyz, frame 9")
    extra = {"fparam": np.array([1.0, 2.0]), "charge_spin": np.array([-1.0, 2.0])}
    frames[3] = replace(
        frames[3],
        system=replace(frames[3].system, aparam=rng.normal(size=(8, 2)), **extra),
        atomic_energies=rng.normal(size=8),
        origin="b, frame x",
    )
    return frames


def test_packed_frames_are_the_frames():
    frames = mixed_frames(np.random.default_rng(0))
    packed = Frames.from_frames(iter(frames))
    assert len(packed) == 5
    for found, expected in zip(packed, frames, strict=True):
        assert_same(found, expected)
        assert found.origin == expected.origin
    assert packed[-1].origin == packed[4].origin
    assert packed.sizes.tolist() == [1, 2, 5, 8, 3]
    assert packed.has_energy.tolist() == [True, False, True, True, True]
    assert packed.has_forces.tolist() == [True, True, False, True, True]
    assert packed.has_virial.tolist() == [False, True, False, True, False]
    with pytest.raises(IndexError):
        packed[5]


def test_selecting_and_joining():
    frames = mixed_frames(np.random.default_rng(1))
    packed = Frames.from_frames(frames)
    chosen = packed.select([3, 0, 3])
    for found, k in zip(chosen, (3, 0, 3), strict=True):
        assert_same(found, frames[k])
        assert found.origin == frames[k].origin
    again = Frames.join([packed.select([0, 1]), packed.select([2, 3, 4])])
    assert again.sha256 == packed.sha256
    assert [f.origin for f in again] == [f.origin for f in packed]
    # More frames than are packed at once.
    many = [replace(frames[k % 5], origin=f"c, frame {k}") for k in range(2500)]
    packed = Frames.from_frames(many)
    for k in (0, 1023, 1024, 2499):
        assert_same(packed[k], many[k])
        assert packed[k].origin == many[k].origin
    assert packed.files == ("c",)


def test_hash_is_of_what_training_reads():
    frames = mixed_frames(np.random.default_rng(2))
    packed = Frames.from_frames(frames)
    moved = Frames.from_frames([replace(frame, origin="elsewhere") for frame in frames])
    assert moved.sha256 == packed.sha256
    assert packed.select([1, 0, 2, 3, 4]).sha256 != packed.sha256
    for change in ({"energy": -3.0}, {"weight": 2.0}, {"forces": None}):
        others = [replace(frames[0], **change), *frames[1:]]
        assert Frames.from_frames(others).sha256 != packed.sha256


def test_extra_inputs_of_different_sizes_are_refused():
    frames = mixed_frames(np.random.default_rng(3))
    other = replace(frames[0], system=replace(frames[0].system, fparam=np.zeros(3)))
    with pytest.raises(InputError, match="2 and others 3 values of fparam"):
        Frames.from_frames([*frames, other])
    with pytest.raises(InputError, match="there are no frames"):
        Frames.from_frames([])


# -- extended XYZ ---------------------------------------------------------------------------------


def copper(strain=0.02):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    atoms.set_cell(atoms.cell[:] * (1 + strain), scale_atoms=True)
    atoms.calc = EMT()
    return atoms


def with_results(atoms):
    """A copy with energy, forces and stress, as files hold them."""
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.any():
        results["stress"] = atoms.get_stress()
    final = atoms.copy()
    final.calc = SinglePointCalculator(final, **results)
    return final


def test_virial_is_the_derivative_of_the_energy():
    """W = -dE/dstrain, from the stress that ASE writes."""
    atoms = with_results(copper())
    write("Cu.xyz", atoms)
    (frame,) = read("Cu.xyz")
    assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-7)
    for a, b in ((0, 0), (1, 2), (2, 0)):
        energies = []
        for sign in (1, -1):
            strained, strain = copper(), np.eye(3)
            strain[a, b] += sign * 1e-5
            strained.set_cell(strained.cell[:] @ strain.T, scale_atoms=True)
            energies.append(strained.get_potential_energy())
        derivative = -(energies[0] - energies[1]) / 2e-5
        assert frame.virial[a, b] == pytest.approx(derivative, abs=1e-4)


def xyz_text(info, columns="species:S:1:pos:R:3:forces:R:3", rows=None, periodic=True):
    lattice = 'Lattice="4 0 0 0 4 0 0 0 4" ' if periodic else ""
    rows = rows or ["O 0 0 0 .1 .2 .3", "H 1 0 0 0 0 -.1"]
    return "\n".join([str(len(rows)), f"{lattice}Properties={columns} {info}", *rows]) + "\n"


def xyz_frame(*args, settings=None, **options):
    Path("x.xyz").write_text(xyz_text(*args, **options))
    (frame,) = read("x.xyz", settings=settings)
    return frame


NINE = "1 2 3 2 4 5 3 5 6"
FULL = np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]]) / 100
STRESS = " ".join(f"0.0{x}" for x in NINE.split())
STRESS_SIX = "0.01 0.04 0.06 0.05 0.03 0.02"


@pytest.mark.parametrize(
    ("info", "virial"),
    [
        (f'energy=-1 stress="{STRESS}"', -64 * FULL),
        (f'energy=-1 stress="{STRESS_SIX}"', -64 * FULL),
        (f'energy=-1 REF_stress="{STRESS}" stress="{STRESS_SIX}"', -64 * FULL),
        (f'energy=-1 REF_stress="{STRESS_SIX}"', -64 * FULL),
        (f'energy=-1 virial="{NINE}"', 100 * FULL),
        (f'energy=-1 virials="{NINE}"', 100 * FULL),
        (f'energy=-1 REF_virials="{NINE}" virial="0 0 0 0 0 0 0 0 0"', 100 * FULL),
        (f'energy=-1 dft_virial="{NINE}"', 100 * FULL),
        ('energy=-1 virials="_JSON [[1, 2, 3], [2, 4, 5], [3, 5, 6]]"', 100 * FULL),
        ("energy=-1", None),
    ],
)
def test_names_of_stress_and_virial(info, virial):
    assert_close(xyz_frame(info).virial, virial, 1e-12)


@pytest.mark.parametrize(
    ("info", "energy"),
    [
        ("energy=-1 REF_energy=-2", -2),
        ("energy=-1 dft_energy=-2 free_energy=-3", -1),
        ("total_energy=-4 dft_energy=-2", -4),
        ("dft_energy=-2 free_energy=-3", -2),
        ("free_energy=-3", -3),
        ("other=3", None),
    ],
)
def test_names_of_the_energy(info, energy):
    assert xyz_frame(info).energy == energy


@pytest.mark.parametrize("name", ["REF_forces", "forces", "force", "dft_forces", "dft_force"])
def test_names_of_the_forces(name):
    frame = xyz_frame("energy=-1", f"species:S:1:pos:R:3:{name}:R:3")
    np.testing.assert_array_equal(frame.forces, [[0.1, 0.2, 0.3], [0, 0, -0.1]])


def test_reference_forces_come_before_plain_ones():
    rows = ["O 0 0 0 9 9 9 1 2 3", "H 1 0 0 9 9 9 4 5 6"]
    frame = xyz_frame("energy=-1", "species:S:1:pos:R:3:forces:R:3:REF_forces:R:3", rows)
    np.testing.assert_array_equal(frame.forces, [[1, 2, 3], [4, 5, 6]])


def test_names_that_the_user_gives():
    settings = DataSettings(energy_key="E_pbe", forces_key="F_pbe", virial_key="W")
    rows = "species:S:1:pos:R:3:F_pbe:R:3"
    frame = xyz_frame(f'energy=-1 E_pbe=-7 W="{NINE}"', rows, settings=settings)
    assert frame.energy == -7
    np.testing.assert_allclose(frame.virial, 100 * FULL)
    np.testing.assert_array_equal(frame.forces[0], [0.1, 0.2, 0.3])
    stress = DataSettings(stress_key="S")
    assert_close(xyz_frame(f'energy=-1 S="{STRESS}"', settings=stress).virial, -64 * FULL, 1e-12)


def test_an_absent_name_is_refused_with_those_that_are_there():
    Path("x.xyz").write_text(xyz_text("E_pbe=-1 comment=none"))
    message = refused("x.xyz", settings=DataSettings(energy_key="E_pbee"))
    assert message.startswith("x.xyz: no frame has 'E_pbee' (--energy-key)")
    assert "E_pbe, forces" in message
    assert "comment" not in message
    # In some frames is enough: the others have no energy.
    Path("x.xyz").write_text(xyz_text("E=-1") + xyz_text("other=-1"))
    frames = read("x.xyz", settings=DataSettings(energy_key="E"))
    assert frames.has_energy.tolist() == [True, False]


def test_a_frame_without_known_labels_names_what_it_has():
    Path("x.xyz").write_text(xyz_text("E_dft=-1", "species:S:1:pos:R:3", ["O 0 0 0"]))
    message = refused("x.xyz")
    assert "x.xyz, frame 0: it has no energy, forces, stress or virial" in message
    assert "E_dft" in message


def test_weights_and_extra_inputs():
    frame = xyz_frame('energy=-1 config_weight=0.25 fparam="1 2" charge=-1 spin=2')
    assert frame.weight == 0.25
    assert frame.system.fparam.tolist() == [1, 2]
    assert frame.system.charge_spin.tolist() == [-1, 2]
    rows = ["O 0 0 0 1 2", "H 1 0 0 3 4"]
    frame = xyz_frame("energy=-1", "species:S:1:pos:R:3:aparam:R:2", rows)
    assert frame.system.aparam.tolist() == [[1, 2], [3, 4]]


def test_heavy_hydrogen_is_hydrogen_and_single_atoms_are_molecules():
    frame = xyz_frame("energy=-1", "species:S:1:pos:R:3", ["D 0 0 0", "T 1 0 0", "O 0 1 0"])
    assert frame.system.numbers.tolist() == [1, 1, 8]
    info = "config_type=IsolatedAtom energy=-13.6"
    frame = xyz_frame(info, "species:S:1:pos:R:3", ["H 0 0 0"], periodic=False)
    assert (frame.energy, len(frame.system), frame.system.pbc.any()) == (-13.6, 1, False)


def test_compressed_files_and_patterns():
    text = xyz_text("energy=-1")
    Path("a.xyz").write_text(text)
    Path("b.extxyz.gz").write_bytes(gzip.compress((text * 2).encode()))
    frames = read("*xyz*")
    assert [f.origin for f in frames] == [
        "a.xyz, frame 0",
        "b.extxyz.gz, frame 0",
        "b.extxyz.gz, frame 1",
    ]
    assert frames.select([0]).sha256 == frames.select([2]).sha256


ROW = "species:S:1:pos:R:3"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (xyz_text("energy=nan"), "its energy is NaN"),
        (xyz_text("energy=-1", rows=["O 0 0 0 1 2 inf"]), "its forces are NaN or infinite"),
        (xyz_text("energy=-1", rows=["O nan 0 0 1 2 3"]), "not finite"),
        (xyz_text("energy=abc"), "energy = 'abc' is not numeric"),
        (xyz_text("energy=-1", rows=["Xx 0 0 0 1 2 3"]), "'Xx' is not an element"),
        (xyz_text("energy=-1", rows=["X 0 0 0 1 2 3"]), "atomic number 0"),
        (xyz_text("energy=-1", "Z:I:1:pos:R:3", ["119 0 0 0"]), "atomic number 119"),
        (xyz_text("energy=-1", ROW, ["O 0 0 0", "H 3.95 0 0"]), "atoms 0 and 1 overlap"),
        (xyz_text("energy=-1", "species:S:1:pos:R:3:forces:R:2", ["O 0 0 0 1 2"]), "(1, 2)"),
        (xyz_text('energy=-1 stress="1 2 3"'), "stress has 3 numbers instead of 9 or 6"),
        (xyz_text('energy=-1 virial="1 2 3 4 5 6 7 8 9"'), "virial is not symmetric"),
        (xyz_text('energy=-1 stress="0 .1 0 .2 0 0 0 0 0"'), "stress is not symmetric"),
        (xyz_text(f'energy=-1 stress="{STRESS}"', periodic=False), "not periodic in three"),
        (xyz_text(f'energy=-1 pbc="T T F" stress="{STRESS}"'), "not periodic in three"),
        (xyz_text(f'energy=-1 stress="{STRESS}" virial="{NINE}"'), "contradict each other"),
        (
            xyz_text("energy=-1 config_weight=-2"),
            "config_weight = -2.0 must be a number, at least 0",
        ),
        (xyz_text("energy=-1 fparam=nan"), "its fparam is NaN"),
        (xyz_text('energy=-1 charge_spin="1 2 3"'), "charge_spin has 3 numbers"),
        (xyz_text("energy=-1 fparam=abc"), "fparam = 'abc' is not numeric"),
        (xyz_text("energy=-1").replace("4 0 0 0 4 0 0 0 4", "4 0 0 0 4 0 0 4 0"), "singular"),
        (xyz_text("energy=-1", ROW, ["O 0 0 zero"]), "cannot be read"),
        ("0\nenergy=-1\n", "no atoms"),
    ],
)
def test_bad_frames_are_named(text, reason):
    """Refused with a line, or listed while those around them are read."""
    good = xyz_text("energy=-1")
    Path("x.xyz").write_text(good + text + good + text)
    message = refused("x.xyz")
    assert message.startswith("2 bad frames, the first: x.xyz, frame 1: ")
    assert message.endswith("--skip-bad leaves such frames out")
    assert reason in message
    frames, rejected = read_frames(["x.xyz"], SKIP)
    assert [f.origin for f in frames] == ["x.xyz, frame 0", "x.xyz, frame 2"]
    assert [r.origin for r in rejected] == ["x.xyz, frame 1", "x.xyz, frame 3"]
    Path("x.xyz").write_text(text)
    assert "no frame can be used; the first of 1: x.xyz, frame 0" in refused("x.xyz", settings=SKIP)


def test_a_stress_of_the_wrong_sign_is_told():
    virial = " ".join(str(x) for x in (64 * FULL).reshape(-1))
    Path("x.xyz").write_text(xyz_text(f'energy=-1 stress="{STRESS}" virial="{virial}"'))
    assert "its sign is wrong" in refused("x.xyz")
    virial = " ".join(f"{x:.4f}" for x in (-64 * FULL).reshape(-1))
    assert_close(
        xyz_frame(f'energy=-1 stress="{STRESS}" virial="{virial}"').virial, -64 * FULL, 1e-4
    )


def test_stresses_in_other_units_are_an_error_of_the_file():
    """Skipping only the largest of them would leave the smaller ones, which are just as wrong."""
    texts = [xyz_text(f'energy=-1 stress="{x} 0 0 0 {x} 0 0 0 {x}"') for x in (0.3, 0.9, 1.2, 5)]
    Path("x.xyz").write_text("".join(texts))
    message = refused("x.xyz", settings=SKIP)
    assert message.startswith("x.xyz: half of the stresses have a component beyond 1.05 eV/Å^3")
    # A megabar in one frame of several is possible, and 8 in one of them is that frame's error.
    Path("x.xyz").write_text("".join(texts[:1] * 3 + texts[1:2]))
    assert max(np.trace(f.virial) for f in read("x.xyz")) < 0
    nan = xyz_text('energy=-1 stress="nan 0 0 0 0 0 0 0 0"')
    Path("x.xyz").write_text("".join([*texts, nan]))
    assert refused("x.xyz", settings=SKIP) == message
    Path("x.xyz").write_text("".join(texts[:1] * 3 + texts[3:]))
    frames, (rejected,) = read_frames(["x.xyz"], SKIP)
    assert len(frames) == 3
    assert f"{5 / GPA:.0f} GPa; it looks like GPa or kbar" in rejected.reason


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (xyz_text("energy=-1")[:-8], "it cannot be read"),
        ("2\nenergy=-1\nO 0 0 0\n", "the file ends after 2 of 3 lines"),
        ("H 0 0 0\n", "'H' is not a number of atoms"),
        ("99999999999\nenergy=-1\nO 0 0 0\n", "'99999999999' is not a number of atoms"),
        ("²\nenergy=-1\nO 0 0 0\n", "'²' is not a number of atoms"),
    ],
)
def test_a_file_that_was_cut_off(end, reason):
    Path("x.xyz").write_text(xyz_text("energy=-1") * 2 + end)
    frames, rejected = read_frames(["x.xyz"], SKIP)
    assert len(frames) == 2
    assert rejected[0].origin == "x.xyz, frame 2"
    assert reason in str(rejected[0])
    assert "x.xyz, frame 2" in refused("x.xyz")


def test_elements_of_a_model():
    Path("x.xyz").write_text(xyz_text("energy=-1"))
    assert len(read("x.xyz", type_map=["H", "O"])) == 1
    message = refused("x.xyz", type_map=["C", "H"])
    assert "unknown element 'O' (atom 0); the model knows C, H" in message


# -- other files with names -----------------------------------------------------------------------


def test_trajectories_and_databases_give_the_same():
    structures = [with_results(copper(strain)) for strain in (0.0, 0.01, 0.02)]
    water = molecule("H2O")
    water.calc = EMT()
    structures.append(with_results(water))
    write("a.xyz", structures)
    write("b.traj", structures)
    with connect("c.db") as database:
        for atoms in structures:
            database.write(atoms)
    expected = read("a.xyz")
    for name in ("b.traj", "c.db"):
        for found, frame in zip(read(name), expected, strict=True):
            assert_same(found, frame, 1e-7)
    assert [f.origin for f in read("c.db")] == [f"c.db, frame {k}" for k in (1, 2, 3, 4)]


def test_labels_in_the_keys_and_data_of_a_database():
    atoms = copper()
    atoms.calc = None
    with connect("c.db") as database:
        database.write(atoms, E_pbe=-3.5, data={"F_pbe": np.ones((4, 3))})
    (frame,) = read("c.db", settings=DataSettings(energy_key="E_pbe", forces_key="F_pbe"))
    assert frame.energy == -3.5
    np.testing.assert_array_equal(frame.forces, np.ones((4, 3)))
    assert "E_pbe" in refused("c.db")


def test_a_screening():
    from dpa3sim.screen.database import DONE, Database, Outcome, to_json
    from dpa3sim.structures.sources import Entry

    folder = Path("run")
    folder.mkdir()
    structures = [with_results(copper(0.01)), with_results(copper(0.02))]
    slab = copper()
    slab.pbc = (True, True, False)
    structures.append(with_results(slab))
    write("in.xyz", [*structures, structures[0]])
    with Database(folder / "results.sqlite", create=True) as database:
        entries = [(k, Entry(f"in@{k}", f"in-{k}", atoms)) for k, atoms in enumerate(structures)]
        database.register([*entries, (3, Entry("in@3", "in-3", structures[0]))])
        for number, atoms in zip(sorted(database.waiting()), structures, strict=False):
            database.finish(number, Outcome(DONE, 0, 1.0, result="{}", structure=to_json(atoms)))
    for source in ("run", "run/results.sqlite"):
        frames = read(source)
        assert len(frames) == 3  # the last one is still to be computed
        for frame, atoms in zip(frames, structures, strict=True):
            assert frame.energy == atoms.get_potential_energy()
            np.testing.assert_array_equal(frame.forces, atoms.get_forces())
        # The stress of a slab depends on its vacuum.
        assert frames.has_virial.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.xyz", None, "none.xyz: no such file"),
        ("empty.xyz", b"", "empty.xyz: the file is empty"),
        ("a.db", b"SQLite format 3\0" + b"x" * 500, "a.db: neither an ASE database"),
        ("a.h5", b"x" * 500, "a.h5: not a readable HDF5 file"),
        ("a.traj", b"x" * 500, "a.traj"),
        ("no-*.xyz", None, "no-*.xyz: no file has a matching name"),
        ("file.h5#/group", None, "no such file"),
        ("folder", "mkdir", "folder: has neither systems of deepmd-kit"),
        ("a.xyz.gz", b"\x1f\x8b" + b"x" * 50, "a.xyz.gz: cannot be decompressed"),
    ],
)
def test_sources_that_cannot_be_read(name, content, reason):
    if content == "mkdir":
        Path(name).mkdir()
    elif content is not None:
        Path(name).write_bytes(content)
    assert reason in refused(name)


# -- deepmd-kit's data ----------------------------------------------------------------------------


def save(folder, frames, names="H O", extra=None):
    """Frames of equal composition as a set of a system, as deepmd-kit reads it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first, f = frames[0].system, len(frames)
    types = np.where(first.numbers == 1, 0, 1)
    (folder.parent / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    if names:
        (folder.parent / "type_map.raw").write_text(names)
    if not first.pbc.any():
        (folder.parent / "nopbc").write_text("")
    arrays = {
        "coord": [x.system.positions for x in frames],
        "box": [x.system.cell for x in frames] if first.pbc.any() else None,
        "energy": [x.energy for x in frames],
        "force": [x.forces for x in frames],
        "virial": None if frames[0].virial is None else [x.virial for x in frames],
    }
    for name, values in (arrays | (extra or {})).items():
        if values is not None:
            array = np.array(values)
            np.save(folder / f"{name}.npy", array.reshape(f, -1) if array.ndim > 1 else array)


def to_hdf5(folder, file, group):
    """The same names in a group."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_dir():
            continue
        name = f"{group}/{path.relative_to(folder)}"
        if path.suffix == ".npy":
            file[name] = np.load(path)
        elif path.name == "type.raw":
            file[name] = np.array([int(word) for word in path.read_text().split()])
        else:
            file[name] = np.array(path.read_text().split() or [""], dtype="S")


def equal_frames(rng, count, n=6, **options):
    """Frames of one composition."""
    frames = [random_frame(rng, n, **options) for _ in range(count)]
    numbers = frames[0].system.numbers
    return [replace(f, system=replace(f.system, numbers=numbers)) for f in frames]


def test_numpy_folders_and_hdf5(monkeypatch):
    monkeypatch.setattr(deepmd, "_CHUNK", 2)
    rng = np.random.default_rng(6)
    crystals = equal_frames(rng, 3) + equal_frames(rng, 2, virial=False)
    crystals = [
        replace(f, system=replace(f.system, numbers=crystals[0].system.numbers)) for f in crystals
    ]
    molecules = equal_frames(rng, 4, n=3, periodic=False)
    save("data/a/set.000", crystals[:3])
    save("data/a/set.001", crystals[3:])  # a flag for each set: these have no virials
    save("data/b/c/set.000", molecules)
    with h5py.File("all.h5", "w") as file:
        to_hdf5("data/a", file, "first")
        to_hdf5("data/b/c", file, "second/c")
    frames = read("data")
    for found, expected in zip(frames, crystals + molecules, strict=True):
        assert_same(found, expected)
    assert frames.has_virial.tolist() == [True] * 3 + [False] * 6
    assert frames[2].origin == "data/a/set.000, frame 2"
    assert frames[4].origin == "data/a/set.001, frame 1"
    assert read("data/a", "data/b/c").sha256 == frames.sha256
    assert read("all.h5").sha256 == frames.sha256
    assert read("all.h5#/first", "all.h5#second").sha256 == frames.sha256
    assert read("all.h5#/first")[4].origin == "all.h5#/first/set.001, frame 1"
    assert "has no group 'third'" in refused("all.h5#third")
    assert "no group with type.raw" in refused("all.h5#/first/set.000")


def test_mixed_types_and_extra_arrays():
    """Frames with empty slots are those without, and lose nothing else."""
    rng = np.random.default_rng(7)
    sizes, slots = (2, 5, 4), 6
    frames = [random_frame(rng, n) for n in sizes]
    types = np.full((3, slots), -1)
    arrays = {name: np.zeros((3, slots, 3)) for name in ("coord", "force")}
    energies, aparam = np.zeros((3, slots)), np.zeros((3, slots, 2))
    expected = []
    for k, frame in enumerate(frames):
        n = len(frame.system)
        types[k, :n] = np.where(frame.system.numbers == 1, 0, 1)
        arrays["coord"][k, :n], arrays["force"][k, :n] = frame.system.positions, frame.forces
        energies[k, :n], aparam[k, :n] = rng.normal(size=n), rng.normal(size=(n, 2))
        system = replace(frame.system, fparam=np.array([k, 1.0]), aparam=aparam[k, :n])
        expected.append(replace(frame, system=system, atomic_energies=energies[k, :n]))
    extra = {
        "coord": arrays["coord"],
        "force": arrays["force"],
        "real_atom_types": types,
        "atom_ener": energies,
        "aparam": aparam,
        "fparam": [[k, 1.0] for k in range(3)],
    }
    save("mixed/set.000", frames, extra=extra)
    Path("mixed/type.raw").write_text("0\n" * slots)
    for found, frame in zip(read("mixed"), expected, strict=True):
        assert_same(found, frame)
    types[0, 0] = -2
    np.save("mixed/set.000/real_atom_types.npy", types)
    assert "has the type -2" in refused("mixed")
    types[0, 0] = 2
    np.save("mixed/set.000/real_atom_types.npy", types)
    assert "has the type 2, but names 2 types" in refused("mixed")
    np.save("mixed/set.000/real_atom_types.npy", types / 4)
    assert "has the type -0.25" in refused("mixed")


def test_a_single_frame_and_single_precision():
    rng = np.random.default_rng(8)
    (frame,) = equal_frames(rng, 1)
    save("a/set.000", [frame])
    for path in Path("a/set.000").glob("*.npy"):
        np.save(path, np.load(path).reshape(-1).astype(np.float32))
    (found,) = read("a")
    assert_same(found, frame, 1e-5)
    np.save("a/set.000/energy.npy", np.float64(frame.energy))
    assert read("a")[0].energy == frame.energy


def test_elements_of_types():
    rng = np.random.default_rng(9)
    frames = equal_frames(rng, 2)
    save("a/set.000", frames, names=None)
    assert "has no type_map.raw" in refused("a")
    for found, frame in zip(read("a", type_map=["H", "O"]), frames, strict=True):
        assert_same(found, frame)
    Path("a/type_map.raw").write_text("D\nO\nfoo\n")  # nobody uses the last name
    assert read("a").sha256 == read("a", type_map=["H", "O"]).sha256
    Path("a/type_map.raw").write_text("H foo")
    assert "unknown element 'foo'" in refused("a")
    Path("a/type_map.raw").write_text("H")
    assert "has the type 1, but names 1 types" in refused("a")
    for text in ("", "0 1 x", "0 -1 0 0 0 0"):
        Path("a/type.raw").write_text(text)
        assert "a/type.raw" in refused("a")


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("force", np.zeros((3, 18)), "force.npy: has the shape (3, 18)"),
        ("force", np.zeros((2, 15)), "force.npy: has the shape (2, 15)"),
        ("energy", np.zeros(3), "energy.npy: has the shape (3,)"),
        ("box", np.zeros((2, 6)), "box.npy: has the shape (2, 6)"),
        ("virial", np.zeros((2, 3)), "virial.npy: has the shape (2, 3)"),
        ("coord", np.zeros((2, 17)), "coord.npy: has the shape (2, 17)"),
        ("aparam", np.zeros((2, 7)), "aparam.npy: has the shape (2, 7)"),
        ("energy", np.array(["a", "b"]), "is not an array of numbers"),
        ("energy", np.array([1, None]), "energy.npy: not an array of numbers"),
        ("virial", np.arange(18.0).reshape(2, 9), "virial is not symmetric"),
        ("energy", np.array([np.nan, 1]), "its energy is NaN"),
        ("coord", None, "coord.npy: is absent"),
        ("box", None, "box.npy: is absent, and so is the file nopbc"),
        ("energy", b"\x93NUMPY\x01\x00garbage", "energy.npy: not an array of numbers"),
    ],
)
def test_arrays_of_deepmd_that_do_not_fit(name, array, reason):
    save("a/set.000", equal_frames(np.random.default_rng(10), 2))
    path = Path(f"a/set.000/{name}.npy")
    if array is None:
        path.unlink()
    elif isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array, allow_pickle=True)
    message = refused("a")
    assert reason in message
    assert "a/set.000" in message


def test_systems_without_sets():
    save("a/set.000", equal_frames(np.random.default_rng(11), 2))
    Path("a/set.000").rename("a/other")
    assert "a: has no folders set.*" in refused("a")


# -- energies -------------------------------------------------------------------------------------


def energy_set(rng, count=40, noise=0.002):
    """Frames of many compositions whose energies are nearly sums of those of their elements."""
    frames = []
    for k in range(count):
        frame = random_frame(rng, int(rng.integers(2, 12)), origin=f"e.xyz, frame {k}")
        numbers, n = frame.system.numbers, len(frame.system)
        energy = -3.0 * (numbers == 1).sum() - 430 * (numbers == 8).sum() + noise * n * rng.normal()
        frames.append(replace(frame, energy=float(energy)))
    return frames


def save_xyz(path, frames):
    structures = []
    for frame in frames:
        s = frame.system
        atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)
        atoms.info["energy"] = frame.energy
        structures.append(atoms)
    write(path, structures, format="extxyz")


def test_composition_fit_has_the_smallest_norm():
    rng = np.random.default_rng(12)
    composition = rng.integers(0, 9, (30, 4)).astype(float)
    composition[:, 2] = 0
    exact = np.array([-3.0, -400.0, 0.0, 7.5])
    np.testing.assert_allclose(composition_fit(composition, composition @ exact), exact, atol=1e-9)
    # Water alone: of all sums that fit, that with E_H = 2 E_O has the smallest norm.
    water = np.array([[2.0, 1.0]]) * np.arange(1, 6)[:, None]
    h, o = composition_fit(water, water @ [-3, -400])
    assert h == pytest.approx(2 * o)
    assert 2 * h + o == pytest.approx(-406)


def test_counts_of_elements():
    frames = Frames.from_frames(mixed_frames(np.random.default_rng(13)))
    found = counts(frames, ["O", "C", "H"])
    for row, frame in zip(found, frames, strict=True):
        numbers = frame.system.numbers
        assert row.tolist() == [(numbers == z).sum() for z in (8, 6, 1)]
    with pytest.raises(InputError, match="atoms of O"):
        counts(frames, ["H", "D"])


@pytest.mark.parametrize("size", [0.1, 1000.0])
def test_strange_energies(size):
    """Also those that are so far away that they would spoil the fit."""
    frames = energy_set(np.random.default_rng(14))
    for k in (7, 23):
        n = len(frames[k].system)
        frames[k] = replace(frames[k], energy=frames[k].energy + size * n)
    save_xyz("e.xyz", frames)
    message = refused("e.xyz")
    assert message.startswith("2 bad frames, the first: e.xyz, frame 7: its energy differs by +")
    assert "--outlier-sigma" in message
    kept, rejected = read_frames(["e.xyz"], SKIP)
    assert [r.origin for r in rejected] == ["e.xyz, frame 7", "e.xyz, frame 23"]
    assert len(kept) == 38
    assert len(read("e.xyz", settings=DataSettings(outlier_sigma=0.0))) == 40


def test_no_strange_energies_among_few_or_exact_ones():
    rng = np.random.default_rng(15)
    exact = energy_set(rng, noise=0.0)
    save_xyz("e.xyz", exact)
    assert len(read("e.xyz")) == 40
    few = energy_set(rng, count=19)
    few[3] = replace(few[3], energy=1000.0)
    save_xyz("f.xyz", few)
    assert len(read("f.xyz")) == 19
    # Digits that a file does not have cannot be strange.
    same = [replace(exact[0], energy=exact[0].energy + 1e-7 * (k == 5)) for k in range(30)]
    save_xyz("h.xyz", same)
    assert len(read("h.xyz")) == 30


def test_isolated_atoms_are_not_strange():
    """They have no bonds, in a vacuum or in a large box; a crystal with one atom in a cell has."""
    rng = np.random.default_rng(18)
    atoms = [random_frame(rng, 1, symbols=(z,), periodic=False) for z in (1, 8)]
    atoms = [replace(a, energy=e) for a, e in zip(atoms, (-1.0, -420.0), strict=True)]
    box = System(np.array([8]), np.zeros((1, 3)), np.eye(3) * 9, np.full(3, True))
    atoms.append(replace(atoms[1], system=box))
    save_xyz("g.xyz", energy_set(rng) + atoms)
    assert len(read("g.xyz")) == 43
    crystal = replace(atoms[1], system=replace(box, cell=np.eye(3) * 3))
    save_xyz("g.xyz", [*energy_set(rng), crystal])
    assert "g.xyz, frame 40: its energy differs" in refused("g.xyz")


# -- real data, and much of it --------------------------------------------------------------------


def water_folder():
    """Liquid water in deepmd-kit's format; skips the test where it is absent."""
    given = os.environ.get(WATER)
    folder = Path(given) if given else TESTS.parent.parent / "shared/data/water"
    if not (folder / "data_0").is_dir():
        pytest.skip(f"{folder}: no folders data_0 to data_3; set {WATER}")
    return folder


def test_water():
    folder = water_folder()
    frames = read(folder / "data_0", folder / "data_3")
    assert set(frames.sizes) == {192}
    assert frames.has_energy.all()
    assert frames.has_forces.all()
    assert not frames.has_virial.any()
    numbers = frames.numbers.reshape(-1, 192)
    assert ((numbers == 8).sum(axis=1) == 64).all()
    # Forces balance (independent ones of this size would add up to 17 eV/Å), 1 g/cm^3.
    net = frames.forces.reshape(-1, 192, 3).sum(axis=1)
    assert np.abs(net).max() < 1
    density = 64 * 18.015 * 1.66054 / np.linalg.det(frames.cells)
    assert (np.abs(density - 1) < 0.1).all()


MEMORY = """
import resource, sys
import vesin
from dpa3sim.train.data.reading import read_frames
from dpa3sim.train.data.settings import DataSettings
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
frames, _ = read_frames([sys.argv[1]], DataSettings())
print(len(frames), (peak() - before) / 1024)
"""


@pytest.mark.slow
def test_memory_of_many_frames(tmp_path):
    """10,000 frames of 50 atoms are 24 MB of positions and forces; 250 MB more are plenty."""
    rng = np.random.default_rng(16)
    frames = equal_frames(rng, 100, n=50)
    save(tmp_path / "big/set.000", frames * 100)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "big")]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    count, mebibytes = run.stdout.split()
    assert int(count) == 10_000
    assert float(mebibytes) < 250
