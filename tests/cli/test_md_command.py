"""The command ``dpa3sim md``: what it writes, prints and returns, and how it continues."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import iread, read, write
from tests_support import DATA, ENVIRONMENT, TESTS

from dpa3sim.cli.main import main

MODEL = str(DATA / "models/dynamic/model.pt")
QUICK = ["--model", MODEL, "--steps", "30", "--interval", "5"]
FILES = {
    "checkpoint.npz",
    "config.resolved.yaml",
    "provenance.json",
    "result.json",
    "run.log",
    "structure_final.extxyz",
    "structure_final.vasp",
    "thermo.csv",
    "trajectory.extxyz",
}
INTEGRATORS = {
    "nve": ["--ensemble", "nve"],
    "langevin": ["--thermostat", "langevin"],
    "nose-hoover": ["--thermostat", "nose-hoover"],
    "bussi": ["--thermostat", "bussi"],
    "berendsen": ["--thermostat", "berendsen"],
    "mtk": ["--ensemble", "npt"],
    "mtk-full": ["--ensemble", "npt", "--barostat", "mtk-full"],
    "berendsen-npt": ["--ensemble", "npt", "--barostat", "berendsen"],
    "replicas": ["--replicas", "2"],
    "traj": ["--trajectory-format", "traj"],
}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, water):
    monkeypatch.chdir(tmp_path)
    write("water.extxyz", water)
    return tmp_path


def result_of(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def rows_of(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_run_directory_is_complete(capsys):
    assert main(["md", "water.extxyz", *QUICK, "--temperature", "200"]) == 0
    out = capsys.readouterr().out
    assert "md: step 30 of 30" in out
    assert "all 30 steps are done (0.015 ps)" in out
    run = Path("water.md")
    names = {p.name for p in run.iterdir()}
    assert names >= FILES
    assert names >= {f"{name}.{end}" for name in ("thermo", "rdf") for end in ("png", "svg")}
    result = result_of(run)
    assert result["complete"] is True
    assert result["seeds"] == [0]
    assert result["units"]["temperature_K"] == "K"
    assert result["units"]["drift_meV_per_atom_per_ps"] == "meV/atom/ps"
    rows = rows_of(run / "thermo.csv")
    assert [int(r["step"]) for r in rows] == list(range(0, 31, 5))
    frames = list(iread(run / "trajectory.extxyz", index=":"))
    assert [f.info["step"] for f in frames] == list(range(0, 31, 5))
    assert float(rows[-1]["kinetic_eV"]) == pytest.approx(frames[-1].get_kinetic_energy(), rel=1e-6)
    final = read(run / "structure_final.extxyz")
    np.testing.assert_allclose(final.positions, frames[-1].positions, atol=1e-7)
    assert final.get_forces().shape == (24, 3)


def test_the_same_command_is_done_and_more_steps_continue(capsys):
    for steps in ("12", "12", "30"):
        main(["md", "water.extxyz", *QUICK, "--steps", steps, "--no-plot"])
    out = capsys.readouterr().out
    assert "already done in water.md" in out
    assert "continuing after step 12" in out
    main(["md", "water.extxyz", *QUICK, "--no-plot", "--out", "whole"])
    for name in ("thermo.csv", "trajectory.extxyz"):
        assert (Path("whole") / name).read_bytes() == (Path("water.md") / name).read_bytes()
    assert result_of("water.md")["n_steps"] == 30


def test_other_averages_need_no_new_simulation(capsys):
    main(["md", "water.extxyz", *QUICK, "--no-plot"])
    before = Path("water.md/trajectory.extxyz").stat().st_mtime_ns
    assert main(["md", "water.extxyz", *QUICK, "--no-plot", "--equilibration", "15"]) == 0
    assert result_of("water.md")["equilibration_steps"] == 15
    assert Path("water.md/trajectory.extxyz").stat().st_mtime_ns == before
    assert main(["md", "water.extxyz", *QUICK, "--seed", "3"]) == 2
    assert "different calculation" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["extxyz", "traj"])
def test_replicas_have_files_of_their_own(form):
    arguments = ["md", "water.extxyz", *QUICK, "--replicas", "2", "--seed", "4", "--no-plot"]
    assert main([*arguments, "--trajectory-format", form]) == 0
    run = Path("water.md")
    result = result_of(run)
    assert [r["seed"] for r in result["replicas"]] == [4, 5]
    first, second = (read(run / f"trajectory_{k}.{form}", index=":") for k in range(2))
    assert len(first) == len(second) == 7
    assert not np.allclose(first[-1].positions, second[-1].positions)
    assert {p.name for p in run.glob("structure_final*")} == {
        f"structure_final_{k}.{end}" for k in range(2) for end in ("extxyz", "vasp")
    }
    assert len(rows_of(run / "thermo_1.csv")) == 7


def start(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", "md", "water.extxyz", "--model", MODEL, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    table = Path("water.md/thermo.csv")
    deadline = time.monotonic() + 120
    while not table.exists() or table.read_bytes().count(b"\n") < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state(kind):
    process = start("--steps", "100000", "--interval", "1")
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in out
    assert "Traceback" not in err
    with np.load("water.md/checkpoint.npz") as data:
        step = json.loads(data["_"].tobytes())["step"]
    # Nothing is lost: the last row is that of the state.
    assert int(rows_of("water.md/thermo.csv")[-1]["step"]) == step
    sessions = json.loads(Path("water.md/provenance.json").read_text())["sessions"]
    assert sessions[-1]["exit_code"] == 130


def test_time_limit_ends_with_the_truth(capsys):
    arguments = ["md", "water.extxyz", *QUICK, "--steps", "100000", "--no-plot"]
    assert main([*arguments, "--max-hours", "0.001"]) == 3
    result = result_of("water.md")
    assert result["complete"] is result["converged"] is False
    assert 0 < result["n_steps"] < 100000
    assert "stopped before the limit of 0.001 h" in result["reasons"][0]
    steps = result["n_steps"] + 5
    assert main(["md", "water.extxyz", *QUICK, "--steps", str(steps), "--no-plot"]) == 0
    assert result_of("water.md")["n_steps"] == steps


def test_an_explosion_has_exit_code_4_and_keeps_what_there_is(capsys):
    arguments = ["md", "water.extxyz", *QUICK, "--timestep", "40", "--temperature", "5000"]
    assert main([*arguments, "--ensemble", "nve", "--interval", "1", "--steps", "2000"]) == 4
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "step " in err
    assert len(rows_of("water.md/thermo.csv")) > 1
    assert not Path("water.md/result.json").exists()


def test_one_process_at_a_time(capsys):
    process = start("--steps", "100000", "--interval", "1")
    try:
        arguments = ["md", "water.extxyz", "--model", MODEL, "--steps", "100000", "--interval", "1"]
        assert main(arguments) == 2
        assert "another process is running" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()


def test_damaged_state_is_told(capsys):
    main(["md", "water.extxyz", *QUICK, "--no-plot"])
    more = ["md", "water.extxyz", *QUICK, "--steps", "40", "--no-plot"]
    with Path("water.md/trajectory.extxyz").open("r+b") as file:
        file.truncate(100)
    assert main(more) == 2
    assert "does not fit to checkpoint.npz" in capsys.readouterr().err
    Path("water.md/checkpoint.npz").write_bytes(b"nonsense")
    assert main(more) == 2
    assert "--force starts again" in capsys.readouterr().err
    assert main([*more, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timestep", "-1"], "timestep = -1 must be positive"),
        (["--thermostat", "langvin"], "did you mean 'langevin'"),
        (["--ensemble", "npt", "--thermostat", "langevin"], "goes with thermostat=nose-hoover"),
        (["--ensemble", "nve", "--temperature-end", "600"], "nothing controls the temperature"),
        (["--stepz", "5"], "unknown option --stepz; did you mean '--steps'"),
        (["--steps", "many"], "option --steps = 'many' must be a whole number"),
    ],
)
def test_bad_usage_is_one_line(arguments, message, capsys):
    assert main(["md", "water.extxyz", "--model", MODEL, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("water.md").exists()


def test_bad_structures_are_one_line(capsys):
    write("h2o.xyz", molecule("H2O"))
    write("atom.extxyz", Atoms("H", cell=[5] * 3, pbc=True))
    write("copper.vasp", bulk("Cu"))
    Path("empty.xyz").write_text("0\n\n")
    for name, options, message in (
        ("h2o.xyz", ["--ensemble", "npt"], "is a molecule"),
        ("atom.extxyz", [], "no degree of freedom"),
        ("copper.vasp", [], "unknown element 'Cu'"),
        ("empty.xyz", [], "no atoms"),
    ):
        assert main(["md", name, "--model", MODEL, *options]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1


def killed_often(folder, name, kills, steps):
    arguments = ["water.extxyz", "--model", MODEL, "--steps", str(steps), "--interval", "3"]
    arguments += ["--checkpoint", "7", *INTEGRATORS[name]]
    done = subprocess.run(
        [sys.executable, TESTS / "cli/md_kills.py", str(folder), str(kills), "1", *arguments],
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kills_leave_no_trace(tmp_path):
    out = killed_often(tmp_path, "langevin", 3, 40)
    assert int(out.split()[0]) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGRATORS)
def test_twenty_kills_leave_no_trace(name, tmp_path):
    out = killed_often(tmp_path, name, 20, 60)
    assert int(out.split()[0]) >= 20
