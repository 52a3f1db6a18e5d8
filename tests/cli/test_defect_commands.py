"""The commands ``neb``, ``vacancy`` and ``surface``: files, exit codes, resuming, bad input."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import read, write
from tests_support import ENVIRONMENT

from dpa3sim.cli.main import main

COMMON = {
    "config.resolved.yaml",
    "provenance.json",
    "result.json",
    "run.log",
}
# Small enough for a test: eight atoms are far from a result.
VACANCY = ["vacancy", "Cu.vasp", "--supercell", "2,2,2", "--sizes", "1", "--rattle", "0"]
SURFACE = ["surface", "Cu.vasp", "--miller", "1,1,1", "--thickness", "4", "--sizes", "2"]
NEB = ["neb", "initial.xyz", "final.xyz", "--images", "3", "--optimizer", "FIRE"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("Cu.vasp", bulk("Cu", a=3.6), format="vasp")
    ammonia = molecule("NH3")
    write("initial.xyz", ammonia)
    ammonia.positions[:, 2] *= -1
    write("final.xyz", ammonia)
    return tmp_path


def result_of(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def evaluations_of(directory):
    """What the last session of a run asked for, found and computed."""
    provenance = json.loads((Path(directory) / "provenance.json").read_text())
    return provenance["sessions"][-1]["evaluations"]


def errors_of(capsys, *arguments):
    """Run a command that must fail for bad usage or input; its only line of error."""
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    return err


def test_neb_writes_numbered_images(capsys):
    assert main([*NEB, "--images", "9"]) == 0
    run = Path("initial.neb")
    names = sorted(path.name for path in run.glob("image-*"))
    assert names == [f"image-{n:02d}.extxyz" for n in range(11)]
    result = result_of(run)
    energies = [read(run / name).get_potential_energy() for name in names]
    np.testing.assert_allclose(energies, result["energies_eV"], atol=1e-6)
    assert len(read(run / "path.extxyz", index=":")) == 11
    files = {p.name for p in run.iterdir()} - set(names)
    assert files == COMMON | {
        "path.extxyz",
        "path.png",
        "path.svg",
        "saddle.extxyz",
        "saddle.vasp",
    }
    assert result["units"]["barrier_forward_eV"] == "eV"
    assert result["units"]["forces_along_path_eV_per_A"] == "eV/Å"
    out = capsys.readouterr().out
    assert "saddle point" in out
    assert "this is a molecule" in out


def test_vacancy_and_its_references(capsys):
    write("MgO.vasp", bulk("MgO", "rocksalt", a=4.25), format="vasp")
    write("Mg.cif", bulk("Mg"), format="cif")
    arguments = ["vacancy", "MgO.vasp", "--supercell", "2,2,2", "--sizes", "1", "--rattle", "0"]
    assert main([*arguments, "--reference", "Mg.cif"]) == 0
    result = result_of("MgO.vacancy")
    sites = {site["element"]: site for site in result["sites"]}
    assert sites["Mg"]["formation_energy_eV"] > 3
    assert sites["O"]["formation_energy_eV"] is None
    assert result["chemical_potentials"]["Mg"]["reference"] == "Mg.cif"
    assert result["units"]["elastic_dipole_eV"] == "eV"
    warnings = " ".join(result["warnings"])
    assert "no reference for O" in warnings
    assert "charged" in warnings
    names = {p.name for p in Path("MgO.vacancy").iterdir()}
    assert COMMON | {"vacancy.png", "vacancy.svg"} <= names
    assert {"vacancy-00-Mg.vasp", "vacancy-01-O.extxyz"} <= names
    assert " - mu" in capsys.readouterr().out
    # Another reference is another calculation.
    write("Mg.cif", bulk("Mg", a=3.3, c=5.3), format="cif")
    err = errors_of(capsys, *arguments, "--reference", "Mg.cif")
    assert "holds a different calculation" in err
    assert "no such file" in errors_of(capsys, *arguments, "--reference", "O2.xyz", "--out", "o")
    write("H2O.xyz", molecule("H2O"))
    err = errors_of(capsys, *arguments, "--reference", "H2O.xyz", "--out", "o")
    assert "must be of one element" in err
    assert not Path("o").exists()


def test_surface_of_repeated_indices():
    arguments = [*SURFACE[:2], "--miller", "1,1,1", "--miller=-1,0,0", *SURFACE[4:]]
    assert main([*arguments, "--json"]) == 0
    result = result_of("Cu.surface")
    assert [face["miller"] for face in result["surfaces"]] == [[1, 1, 1], [-1, 0, 0]]
    assert result["units"]["surface_energy_J_per_m2"] == "J/m^2"
    assert result["units"]["surface_energy_eV_per_A2"] == "eV/Å^2"
    assert result["units"]["area_A2"] == "Å^2"
    names = {p.name for p in Path("Cu.surface").iterdir()}
    assert {"surface.png", "surface.svg", "slab_1_1_1.vasp", "slab_-1_0_0.extxyz"} <= names
    slab = read("Cu.surface/slab_1_1_1.extxyz")
    assert slab.pbc.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(x, id=x[0], marks=[pytest.mark.slow] * (x != VACANCY))
        for x in (NEB, VACANCY, SURFACE)
    ],
)
def test_killed_and_continued(arguments):
    """Killed in the middle and started again: the same result, nothing computed twice."""
    assert main([*arguments, "--out", "undisturbed", "--no-plot", "--quiet"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", *arguments, "--out", "killed", "--no-plot"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
    )
    marks = {"neb": "neb: step 3", "vacancy": "vacancy: inequivalent", "surface": "surface: 1 cuts"}
    for line in process.stdout:
        if line.startswith(marks[arguments[0]]):
            break
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    assert not Path("killed/result.json").exists()
    with closing(sqlite3.connect("killed/evaluations.sqlite")) as database:
        (saved,) = database.execute("SELECT count(*) FROM evaluations").fetchone()
    assert main([*arguments, "--out", "killed", "--no-plot", "--quiet"]) == 0
    results = []
    for name in ("undisturbed", "killed"):
        result = result_of(name)
        del result["directory"]
        results.append(result)
    assert results[0] == results[1]
    computed = [evaluations_of(name)["computed"] for name in ("undisturbed", "killed")]
    assert computed[1] == computed[0] - saved


@pytest.mark.parametrize("command", ["vacancy", "surface", "neb"])
@pytest.mark.parametrize("content", [b"", b"no structure at all\n", bytes(range(256)) * 8])
def test_nonsense_files(command, content, capsys):
    Path("x.dat").write_bytes(content)
    structures = ["x.dat"] if command != "neb" else ["initial.xyz", "x.dat"]
    assert "x.dat" in errors_of(capsys, command, *structures)


@pytest.mark.parametrize(
    ("command", "atoms", "message"),
    [
        ("vacancy", molecule("H2O"), "vacancies need a crystal"),
        ("surface", fcc111("Cu", (1, 1, 3), vacuum=8), "surfaces need a crystal"),
        ("surface", Atoms("H", [[0, 0, float("nan")]]), "not finite"),
        ("vacancy", Atoms("X", cell=[3, 3, 3], pbc=True), "unknown element"),
    ],
)
def test_nonsense_structures(command, atoms, message, capsys):
    write("x.traj", atoms)
    assert message in errors_of(capsys, command, "x.traj")
    assert not Path(f"x.{command}").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neb", "initial.xyz"], "STRUCTURE"),
        (["neb", "initial.xyz", "Cu.vasp"], "the same atoms"),
        (["neb", "initial.xyz", "final.xyz", "--images", "0"], "at least 1"),
        (["vacancy", "Cu.vasp", "--supercell", "huge"], "is not one of"),
        (["vacancy", "Cu.vasp", "--supercel", "2,2,2"], "did you mean '--supercell'"),
        (["surface", "Cu.vasp", "--miller", "0,0,0"], "does not define a face"),
        (["surface", "Cu.vasp", "--miller", "1;1;1"], "three whole numbers"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    assert message in errors_of(capsys, *arguments)


def test_polar_faces_are_refused(capsys):
    write("MgO.vasp", bulk("MgO", "rocksalt", a=4.25), format="vasp")
    err = errors_of(capsys, "surface", "MgO.vasp", "--miller", "1,1,1")
    assert "(1 1 1): no slab of whole MgO units has two equal faces there: it is polar" in err
    assert not Path("MgO.surface").exists()


def test_not_converged_is_code_3(capsys):
    assert main([*NEB, "--no-relax", "--steps", "1", "--no-plot", "--quiet"]) == 3
    assert result_of("initial.neb")["converged"] is False
    assert main([*VACANCY, "--steps", "1", "--no-plot", "--quiet"]) == 3
