"""The command kappa: files, exit codes, phono3py reads what it writes, kills cost nothing."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.io import write
from test_phonon_command import killed_and_restarted, result_of, without_paths

from dpa3sim.cli.main import main

pytest.importorskip("phono3py")
# Small enough for a test; what it conducts means little.
QUICK = ["--supercell", "3,3,3", "--supercell-fc2", "3,3,3", "--mesh", "3,3,3", "--no-relax"]
RANDOM = ["--displacements", "random", "--snapshots", "6"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of silicon."""
    folder = tmp_path_factory.mktemp("done")
    write(folder / "Si.vasp", bulk("Si", a=5.46), format="vasp")
    before = Path.cwd()
    os.chdir(folder)
    try:
        arguments = ["kappa", "Si.vasp", *QUICK, *RANDOM, "--temperatures", "300,600"]
        assert main([*arguments, "--transport", "wigner"]) == 0
    finally:
        os.chdir(before)
    return folder / "Si.kappa"


def test_files(done):
    names = {path.name for path in done.iterdir()}
    assert names >= {
        "band.yaml",
        "config.resolved.yaml",
        "fc2.hdf5",
        "fc3.hdf5",
        "kappa-m333.hdf5",
        "kappa.csv",
        "kappa.png",
        "kappa_cumulative.csv",
        "kappa_spectrum.csv",
        "phono3py.yaml",
        "phono3py_params.yaml",
        "result.json",
        "structure_primitive.vasp",
        "structure_relaxed.vasp",
    }
    assert matplotlib.image.imread(done / "kappa.png").std() > 0.05
    result = result_of(done)
    assert result["protocol"] == "kappa"
    assert result["transport"] == "wigner"
    with open(done / "kappa.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, tensor in zip(rows, result["thermal_conductivity_tensor_W_per_m_K"], strict=True):
        assert float(row["kappa_zz_W_per_m_K"]) == pytest.approx(tensor[2][2])
    with open(done / "kappa_cumulative.csv", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    first = result["thermal_conductivity_W_per_m_K"][0]
    assert float(last["kappa_up_to_W_per_m_K"]) == pytest.approx(first)
    assert yaml.safe_load((done / "config.resolved.yaml").read_text())["mesh"] == "3,3,3"


def test_phono3py_reads_them(done, monkeypatch):
    """Its own commands conduct the same heat, from force constants and from forces."""
    from phono3py import load

    monkeypatch.chdir(done)
    ph3 = load("phono3py_params.yaml", fc3_filename="fc3.hdf5", fc2_filename="fc2.hdf5")
    assert ph3.displacements.shape == ph3.forces.shape == (6, 54, 3)
    ph3.mesh_numbers = [3, 3, 3]
    ph3.init_phph_interaction(average_degenerate_weights=True, symmetrize_tetrahedra=True)
    ph3.run_thermal_conductivity(
        temperatures=[300.0], is_isotope=True, transport_type="SMM19", write_kappa=False
    )
    found = ph3.thermal_conductivity.kappa[0, 0, :3].mean()
    stored = result_of(done)["thermal_conductivity_W_per_m_K"][0]
    assert found == pytest.approx(stored, rel=0.01)
    shown = subprocess.run(
        [Path(sys.executable).with_name("phono3py-kaccum"), "kappa-m333.hdf5"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert len(shown.splitlines()) > 20


def test_done_is_done(done, monkeypatch, capsys):
    monkeypatch.chdir(done.parent)
    arguments = ["kappa", "Si.vasp", *QUICK, *RANDOM, "--temperatures", "300,600"]
    assert main([*arguments, "--transport", "wigner"]) == 0
    out = capsys.readouterr().out
    assert "already done" in out
    assert "third order: 6 random displacements of 0.03 Å in 54 atoms" in out
    assert "kappa at 300 K" in out
    assert "coherences" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "coarse"], "mesh = 'coarse' is neither a length"),
        (["--temperatures", "hot"], "temperatures = 'hot' is not a list of positive numbers"),
        (["--born", "nowhere"], "nowhere"),
        (["--supercell", "0,1,1"], "determinant must be positive"),
    ],
)
def test_bad_options(capsys, arguments, message):
    write("Si.vasp", bulk("Si"), format="vasp")
    assert main(["kappa", "Si.vasp", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("Si.kappa").exists()


@pytest.mark.slow
def test_an_unstable_crystal(capsys):
    write("Ti.vasp", bulk("Ti", "bcc", a=3.25, cubic=True), format="vasp")
    arguments = ["kappa", "Ti.vasp", "--supercell-fc2", "2,2,2", "--no-plot"]
    assert main(arguments) == 4
    assert "dynamically unstable" in capsys.readouterr().err
    assert main([*arguments, "--imaginary", "report"]) == 0
    assert "no thermal conductivity" in capsys.readouterr().out
    assert result_of("Ti.kappa")["thermal_conductivity_W_per_m_K"] is None


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", "kappa", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_at_random_moments(monkeypatch):
    """The same result, to the last bit, and nothing evaluated twice."""
    monkeypatch.setattr("test_phonon_command.start", start)
    write("Si.vasp", bulk("Si", a=5.44), format="vasp")
    options = ["--supercell", "2,2,2", "--supercell-fc2", "2,2,2", "--mesh", "5,5,5", "--no-plot"]
    options += ["--displacements", "random"]
    began = time.monotonic()
    process = start("Si.vasp", *options, "--out", "whole")
    assert process.wait(600) == 0, process.stderr.read()
    process.stderr.close()
    taken = time.monotonic() - began
    whole = result_of("whole")
    counted = json.loads(Path("whole/provenance.json").read_text())["sessions"][0]["evaluations"]
    rng, kills, number = random.Random(5), 10, 0
    while kills > 0:
        out, number = Path(f"killed{number}"), number + 1
        arguments = ["Si.vasp", *options, "--out", str(out)]
        began = time.monotonic()
        killed = killed_and_restarted(arguments, rng, taken, kills)
        kills -= killed
        if not killed:  # the machine has less to do than before
            taken = time.monotonic() - began
        assert without_paths(result_of(out)) == without_paths(whole)
        for name in ("fc2.hdf5", "fc3.hdf5"):
            assert np.array_equal(_content(f"whole/{name}"), _content(out / name))
        last = json.loads((out / "provenance.json").read_text())["sessions"][-1]["evaluations"]
        assert last["asked"] == counted["asked"]
        assert last["computed"] + last["found"] == last["asked"]
        assert last["computed"] <= counted["computed"]


def _content(path):
    import h5py

    with h5py.File(path) as file:
        return file["fc3" if "fc3" in str(path) else "force_constants"][:]
