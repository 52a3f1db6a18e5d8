"""The command phonon: files, exit codes, phonopy reads what it writes, kills cost nothing."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import phonopy
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import read, write

from dpa3sim.cli.main import main

# Small enough to be quick; two supercells, so that there is more than one evaluation to save.
QUICK = ["--supercell", "2,1,1", "--mesh", "30"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def result_of(folder):
    return json.loads(Path(folder, "result.json").read_text())


def without_paths(result):
    return {k: v for k, v in result.items() if k not in ("directory", "structure")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of silicon."""
    folder = tmp_path_factory.mktemp("done")
    write(folder / "Si.vasp", bulk("Si", a=5.45, cubic=True), format="vasp")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["phonon", "Si.vasp", "--supercell", "max-atoms=64", "--mesh", "40"]) == 0
    finally:
        os.chdir(before)
    return folder / "Si.phonon"


def test_files(done):
    names = {path.name for path in done.iterdir()}
    assert names == {
        "FORCE_SETS",
        "band.yaml",
        "bands.png",
        "bands.svg",
        "config.resolved.yaml",
        "force_constants.hdf5",
        "phonopy.yaml",
        "projected_dos.dat",
        "provenance.json",
        "result.json",
        "run.log",
        "structure_primitive.extxyz",
        "structure_primitive.vasp",
        "structure_relaxed.extxyz",
        "structure_relaxed.vasp",
        "thermal_properties.csv",
        "thermal_properties.png",
        "thermal_properties.svg",
        "thermal_properties.yaml",
        "total_dos.dat",
    }
    result = result_of(done)
    assert result["protocol"] == "phonon"
    assert result["units"]["frequencies_gamma_THz"] == "THz"
    assert result["n_batches"] == 1
    session = json.loads((done / "provenance.json").read_text())["sessions"][-1]
    assert session["evaluations"]["batches"] >= 1
    for name in ("bands.png", "thermal_properties.png"):
        picture = matplotlib.image.imread(done / name)
        assert picture.std() > 0.05


def test_tables_hold_what_the_result_says(done):
    result = result_of(done)
    with (done / "thermal_properties.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["temperatures_K"]) == 101
    for name in ("free_energy_per_cell_kJ_per_mol", "heat_capacity_per_atom_J_per_K_mol"):
        assert [float(r[name]) for r in rows] == pytest.approx(result[name], rel=1e-8)
    bands = yaml.safe_load((done / "band.yaml").read_text())
    first = [band["frequency"] for band in bands["phonon"][0]["band"]]
    assert first == pytest.approx(result["frequencies_gamma_THz"], abs=1e-5)
    assert "group_velocity" in bands["phonon"][3]["band"][0]
    total = np.loadtxt(done / "total_dos.dat")
    projected = np.loadtxt(done / "projected_dos.dat")
    assert np.trapezoid(total[:, 1], total[:, 0]) == pytest.approx(6, rel=0.02)
    assert projected.shape[1] == 3


def test_phonopy_loads_what_is_written(done):
    ours = result_of(done)["frequencies_special_points_THz"]["X"]
    q = result_of(done)["special_points"]["X"]["primitive_cell"]
    forces = phonopy.load(done / "phonopy.yaml", force_sets_filename=done / "FORCE_SETS")
    constants = phonopy.load(
        done / "phonopy.yaml", force_constants_filename=done / "force_constants.hdf5"
    )
    np.testing.assert_allclose(constants.run_qpoints([q]).frequencies[0], ours, rtol=1e-6)
    np.testing.assert_allclose(forces.run_qpoints([q]).frequencies[0], ours, rtol=1e-4)
    assert len(forces.unitcell) == 2
    # In its folder phonopy finds the forces by itself.
    script = "import phonopy; print(phonopy.load('phonopy.yaml').force_constants.shape)"
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=done, capture_output=True, text=True, check=True
    )
    assert "64, 3, 3" in shown.stdout


def test_again_is_done_and_other_options_are_another_calculation(done, capsys, monkeypatch):
    monkeypatch.chdir(done.parent)
    arguments = ["phonon", "Si.vasp", "--supercell", "max-atoms=64", "--mesh", "40"]
    assert main(arguments) == 0
    assert "already done" in capsys.readouterr().out
    assert main([*arguments, "--distance", "0.02"]) == 2
    assert "distance" in capsys.readouterr().err


def test_json_is_the_result(capsys):
    write("Si.vasp", bulk("Si", a=5.46), format="vasp")
    assert main(["phonon", "Si.vasp", *QUICK, "--json", "--no-plot"]) == 0
    assert json.loads(capsys.readouterr().out) == result_of("Si.phonon")
    assert not list(Path("Si.phonon").glob("*.png"))


def test_analytic(capsys):
    write("Si.vasp", bulk("Si", a=5.46), format="vasp")
    assert main(["phonon", "Si.vasp", *QUICK, "--method", "analytic", "--no-plot"]) == 0
    assert not Path("Si.phonon/FORCE_SETS").exists()
    loaded = phonopy.load(
        "Si.phonon/phonopy.yaml", force_constants_filename="Si.phonon/force_constants.hdf5"
    )
    gamma = loaded.run_qpoints([[0, 0, 0]]).frequencies[0]
    assert gamma[3:] == pytest.approx([13.8] * 3, rel=0.02)
    assert "second derivatives" in capsys.readouterr().out


def test_unstable_crystals(capsys):
    """Reported by default, an error where that is asked for, with all files either way."""
    write("Ti.vasp", bulk("Ti", "bcc", a=3.25), format="vasp")
    arguments = ["phonon", "Ti.vasp", "--supercell", "2,2,2", "--mesh", "20", "--no-plot"]
    assert main([*arguments, "--out", "report"]) == 0
    assert "warning: dynamically unstable" in capsys.readouterr().out
    assert main([*arguments, "--imaginary", "error", "--out", "error"]) == 4
    assert Path("error/band.yaml").exists()
    assert main([*arguments, "--imaginary", "error", "--out", "error"]) == 4


@pytest.mark.slow
def test_following_an_imaginary_mode(capsys):
    write("Ti.vasp", bulk("Ti", "bcc", a=3.25), format="vasp")
    arguments = ["phonon", "Ti.vasp", "--supercell", "2,2,2", "--mesh", "20", "--no-plot"]
    loose = ["--fmax", "1e-3", "--smax", "0.02"]
    assert main([*arguments, *loose, "--imaginary", "follow", "--out", "follow"]) == 0
    child = read("follow/structure_child.vasp")
    assert len(child) == 2
    assert result_of("follow")["child_spacegroup"] == "P6_3/mmc (194)"
    assert "meV/atom lower" in capsys.readouterr().out


def test_born_file_is_part_of_the_calculation(capsys):
    write("MgO.vasp", bulk("MgO", "rocksalt", a=4.255), format="vasp")
    born = "14.4\n3.1 0 0 0 3.1 0 0 0 3.1\n{0} 0 0 0 {0} 0 0 0 {0}\n-{0} 0 0 0 -{0} 0 0 0 -{0}\n"
    Path("BORN").write_text(born.format("1.98"))
    arguments = ["phonon", "MgO.vasp", "--supercell", "2,1,1", "--mesh", "20", "--no-plot"]
    assert main([*arguments, "--born", "BORN"]) == 0
    assert result_of("MgO.phonon")["nac"]
    loaded = phonopy.load("MgO.phonon/phonopy.yaml", is_nac=True)
    assert loaded.nac_params["born"][0, 0, 0] == pytest.approx(1.98)
    Path("BORN").write_text(born.format("2.1"))
    assert main([*arguments, "--born", "BORN"]) == 2
    assert "born_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Path("x").write_bytes(b""), "empty"),
        (lambda: Path("x").write_text("just some text\nof no meaning\n"), "not a structure"),
        (lambda: Path("x").write_text("0\n\n"), "no "),
        (lambda: write("x", Atoms("X", cell=[3, 3, 3], pbc=True), format="traj"), "element"),
        (lambda: write("x", Atoms("H"), format="traj"), "a molecule"),
        (lambda: write("x", molecule("CO"), format="traj"), "a molecule"),
        (lambda: write("x", fcc111("Cu", (1, 1, 3), vacuum=9), format="traj"), "phonons need"),
        (
            lambda: write(
                "x", Atoms("Cu", [[np.nan, 0, 0]], cell=[2, 2, 2], pbc=True), format="traj"
            ),
            "finite",
        ),
    ],
)
def test_nonsense(make, message, capsys):
    make()
    assert main(["phonon", "x"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in Path.cwd().iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--supercell", "large"], "is not one of: auto"),
        (["--supercell", "max-atoms=1"], "max-atoms=1"),
        (["--method", "analytc"], "did you mean 'analytic'"),
        (["--imaginary", "ignore"], "is not one of"),
        (["--distance", "0"], "at least"),
        (["--born", "nowhere"], "nowhere: cannot be read"),
        (["--supercel", "auto"], "did you mean '--supercell'"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    write("Si.vasp", bulk("Si"), format="vasp")
    assert main(["phonon", "Si.vasp", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in Path.cwd().iterdir()] == ["Si.vasp"]


def test_relaxation_that_does_not_converge_ends_the_run(capsys):
    write("Si.vasp", bulk("Si", a=5.2), format="vasp")
    assert main(["phonon", "Si.vasp", *QUICK, "--steps", "1"]) == 3
    assert "did not converge" in capsys.readouterr().err


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", "phonon", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_and_restarted(arguments, rng, longest, kills):
    """Start and kill -9 at random moments until it ends by itself; how often it was killed."""
    killed = 0
    while True:
        process = start(*arguments)
        try:
            process.wait(rng.uniform(0.4, 1.0) * longest if killed < kills else 300)
            assert process.returncode == 0, process.stderr.read()
            return killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        finally:
            process.stderr.close()


def check_kills(atoms, options, kills):
    """Runs that are killed and restarted until they end, as many as it takes for ``kills``."""
    write("x.vasp", atoms, format="vasp")
    began = time.monotonic()
    process = start("x.vasp", *options, "--out", "whole")
    assert process.wait(300) == 0
    process.stderr.close()
    taken = time.monotonic() - began
    whole = json.loads(Path("whole/provenance.json").read_text())["sessions"][0]["evaluations"]
    rng, number = random.Random(7), 0
    while kills > 0:
        out, number = Path(f"killed{number}"), number + 1
        arguments = ["x.vasp", *options, "--out", str(out)]
        kills -= killed_and_restarted(arguments, rng, taken, kills)
        assert without_paths(result_of("whole")) == without_paths(result_of(out))
        assert Path("whole/FORCE_SETS").read_bytes() == (out / "FORCE_SETS").read_bytes()
        # What the last session computed and found is what the undisturbed one asked for.
        last = json.loads((out / "provenance.json").read_text())["sessions"][-1]["evaluations"]
        assert last["asked"] == whole["asked"]
        assert last["computed"] <= whole["computed"]
        assert last["computed"] + last["found"] == last["asked"]


@pytest.mark.slow
def test_a_few_kills():
    check_kills(bulk("Si", a=5.44), [*QUICK, "--no-plot"], 2)


@pytest.mark.slow
def test_twenty_kills():
    options = ["--supercell", "max-atoms=100", "--mesh", "40", "--no-plot"]
    check_kills(bulk("GaN", "wurtzite", a=3.18, c=5.2), options, 20)
