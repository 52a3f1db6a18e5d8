"""The commands of property protocols: files, exit codes, and resuming after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import read, write

from dpa3sim.cli.main import main

ALWAYS = {
    "config.resolved.yaml",
    "provenance.json",
    "result.json",
    "run.log",
    "structure_relaxed.extxyz",
    "structure_relaxed.vasp",
}
OWN = {
    "eos": {"eos.png", "eos.svg", "volumes.csv", "volumes.extxyz"},
    "elastic": {"youngs_modulus.png", "youngs_modulus.svg"},
}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result_of(directory):
    return json.loads((Path(directory) / "result.json").read_text())


@pytest.mark.parametrize("command", OWN)
def test_run_directory_is_complete_and_the_command_resumes(capsys, command):
    write("Cu.vasp", bulk("Cu", cubic=True), format="vasp")
    assert main([command, "Cu.vasp"]) == 0
    out = capsys.readouterr().out
    assert "float64 on" in out
    assert "relax: step 0" in out
    run = Path(f"Cu.{command}")
    assert {p.name for p in run.iterdir()} == ALWAYS | OWN[command]
    result = result_of(run)
    assert result["converged"] is True
    assert result["dtype"] == "float64"
    assert result["units"]["conventional_lengths_A"] == "Å"
    assert len(read(run / "structure_relaxed.vasp")) == 4
    session = json.loads((run / "provenance.json").read_text())["sessions"][0]
    assert session["exit_code"] == 0
    assert session["evaluations"]["computed"] > 5
    assert session["evaluations"]["batches"] < 12

    before = (run / "result.json").stat().st_mtime_ns
    assert main([command, "Cu.vasp"]) == 0
    assert f"already done in Cu.{command}" in capsys.readouterr().out
    assert (run / "result.json").stat().st_mtime_ns == before
    assert main([command, "Cu.vasp", "--fmax", "1e-3"]) == 2
    assert "fmax" in capsys.readouterr().err

    config = str(run / "config.resolved.yaml")
    assert main([command, "Cu.vasp", "--config", config, "--out", "again", "--no-plot"]) == 0
    again = result_of("again")
    for key in ("elastic_tensor_GPa", "bulk_modulus_GPa", "settings"):
        assert again.get(key) == result.get(key)


def test_eos_files(capsys):
    write("MgO.cif", bulk("MgO", "rocksalt", 4.24), format="cif")
    arguments = ["eos", "MgO.cif", "--points", "6", "--no-plot"]
    assert main(arguments) == 0
    assert "birch-murnaghan" in capsys.readouterr().out
    table = np.loadtxt("MgO.eos/volumes.csv", delimiter=",", skiprows=1)
    result = result_of("MgO.eos")
    np.testing.assert_allclose(table[:, 0], result["volumes_per_atom_A3"])
    np.testing.assert_allclose(table[:, 2], result["pressures_GPa"], rtol=1e-6)
    frames = read("MgO.eos/volumes.extxyz", index=":")
    assert len(frames) == 6
    assert frames[0].get_potential_energy() / 2 == pytest.approx(table[0, 1])
    assert result["units"]["energy_per_formula_unit_eV"] == "eV/formula unit"
    assert not Path("MgO.eos/eos.png").exists()


def test_elastic_prints_and_returns_the_tensor(capsys):
    write("Si.vasp", bulk("Si"), format="vasp")
    assert main(["elastic", "Si.vasp", "--json", "--no-plot"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result == result_of("Si.elastic")
    assert result["elastic_tensor_ieee_GPa"][3][3] == pytest.approx(73, rel=0.02)
    assert result["units"]["debye_temperature_K"] == "K"
    assert main(["elastic", "Si.vasp"]) == 0
    out = capsys.readouterr().out
    assert "Laue class m-3m" in out
    assert "mechanically stable" in out


def test_a_precision_that_is_asked_for(capsys):
    write("Cu.vasp", bulk("Cu"), format="vasp")
    arguments = ["elastic", "Cu.vasp", "--dtype", "float32", "--fmax", "1e-3", "--smax", "0.05"]
    assert main([*arguments, "--no-plot"]) == 0
    assert "float32 on" in capsys.readouterr().out
    result = result_of("Cu.elastic")
    assert result["dtype"] == "float32"
    assert any("computed in float32" in warning for warning in result["warnings"])
    assert yaml.safe_load(Path("Cu.elastic/config.resolved.yaml").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("command", OWN)
def test_not_converged_is_exit_code_3_and_more_steps_continue(capsys, command):
    write("Cu.vasp", bulk("Cu", a=3.5), format="vasp")
    arguments = [command, "Cu.vasp", "--no-plot"]
    assert main([*arguments, "--steps", "2"]) == 3
    assert "did not converge in 2 steps" in capsys.readouterr().err
    assert not Path(f"Cu.{command}/result.json").exists()
    assert main(arguments) == 0
    sessions = json.loads(Path(f"Cu.{command}/provenance.json").read_text())["sessions"]
    assert [s["exit_code"] for s in sessions] == [3, 0]
    assert sessions[1]["evaluations"]["found"] >= 3


def test_a_minimum_outside_the_volumes_is_exit_code_3(capsys):
    write("Cu.vasp", bulk("Cu", a=3.3), format="vasp")
    assert main(["eos", "Cu.vasp", "--no-relax", "--points", "6"]) == 3
    assert "outside the volumes" in capsys.readouterr().out
    assert result_of("Cu.eos")["converged"] is False
    assert Path("Cu.eos/eos.png").exists()


def slab():
    atoms = fcc111("Cu", (1, 1, 3), vacuum=8)
    atoms.pbc = True
    return atoms


def nonsense(name):
    if name == "empty":
        Path("x.vasp").write_text("")
    elif name == "text":
        Path("x.vasp").write_text("It was a dark and stormy night.\n" * 9)
    elif name == "no atoms":
        write("x.extxyz", Atoms(cell=[3, 3, 3], pbc=True), format="extxyz")
        return "x.extxyz"
    elif name == "unknown element":
        Path("x.extxyz").write_text(
            '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nXx 0 0 0\n'
        )
        return "x.extxyz"
    elif name == "NaN":
        Path("x.extxyz").write_text(
            '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nCu nan 0 0\n'
        )
        return "x.extxyz"
    elif name == "atom":
        write("x.xyz", Atoms("Cu"), format="xyz")
        return "x.xyz"
    elif name == "molecule":
        write("x.xyz", molecule("H2O"), format="xyz")
        return "x.xyz"
    else:
        write("x.vasp", slab(), format="vasp")
    return "x.vasp"


@pytest.mark.parametrize("command", OWN)
@pytest.mark.parametrize(
    "name",
    ["empty", "text", "no atoms", "unknown element", "NaN", "atom", "molecule", "slab"],
)
def test_nonsense_is_one_line_and_exit_code_2(capsys, command, name):
    file = nonsense(name)
    assert main([command, file]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("dpa3sim: error: x.")
    assert "\n" not in error
    assert not Path(f"x.{command}").exists()


# -- killed and started again ---------------------------------------------------------------------

DRIVER = """
import os, signal, sys
from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.run import store

store.COMMIT_SECONDS = 0.0  # so that even a short run has saved something when it is killed
store.CPU_CHUNK_ATOMS = 16
kill_at, original, count = int(sys.argv[1]), Potential.evaluate_each, 0

def evaluate_each(self, structures):
    global count
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    with open("asked.txt", "a") as file:
        for structure in structures:
            print(hash((structure.positions.tobytes(), structure.cell.tobytes())), file=file)
    return original(self, structures)

Potential.evaluate_each = evaluate_each
sys.exit(main(sys.argv[2:]))
"""


def drive(kill_at, command):
    environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    arguments = [command, "Si.vasp", "--no-plot", "--quiet"]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(kill_at), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def kill_and_resume(workplace, monkeypatch, command, kills, seed):
    """Kill before a random batch, start again, until it is done; compare with no kill."""
    results, asked = {}, {}
    draw = random.Random(seed)
    for name in ("undisturbed", "killed"):
        folder = workplace / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        write("Si.vasp", bulk("Si", a=5.4), format="vasp")
        done = 0
        while name == "killed" and done < kills:
            process = drive(draw.randint(1, 3), command)
            if process.returncode == 0:  # fewer batches than kills were left
                break
            assert process.returncode == -signal.SIGKILL
            done += 1
        else:
            process = drive(0, command)
            assert process.returncode == 0, process.stderr
        assert name == "undisturbed" or done >= min(kills, 3)
        results[name] = result_of(f"Si.{command}")
        asked[name] = Path("asked.txt").read_text().split()
    assert results["killed"] == results["undisturbed"]
    assert len(set(asked["killed"])) == len(asked["killed"])  # nothing twice
    assert set(asked["killed"]) == set(asked["undisturbed"])


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(workplace, monkeypatch):
    kill_and_resume(workplace, monkeypatch, "elastic", kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("command", OWN)
@pytest.mark.parametrize("seed", range(4))
def test_killed_often(workplace, monkeypatch, command, seed):
    kill_and_resume(workplace, monkeypatch, command, kills=20, seed=seed)


@pytest.mark.slow
def test_killed_at_any_moment(workplace, monkeypatch):
    """By the clock, 20 times, also while results are written."""
    results = {}
    draw = random.Random(7)
    for name in ("undisturbed", "killed"):
        folder = workplace / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        write("Ti.vasp", bulk("Ti", a=2.9, c=4.6), format="vasp")
        command = [sys.executable, "-m", "dpa3sim", "elastic", "Ti.vasp", "--all-strains"]
        kills = 0
        while name == "killed" and kills < 20 and not Path("Ti.elastic/result.json").exists():
            process = subprocess.Popen([*command, "--quiet"], start_new_session=True)
            try:
                process.wait(timeout=draw.uniform(1.5, 9.0))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
        assert subprocess.run([*command, "--quiet"]).returncode == 0
        results[name] = result_of("Ti.elastic")
    assert results["killed"] == results["undisturbed"]
