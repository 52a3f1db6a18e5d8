"""Trainings in their run directories, from the command line."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from training_support import teacher, water

from dpa3sim import Potential
from dpa3sim.checkpoints import read_model
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, INTERRUPTED, NOT_CONVERGED

MODEL = [
    *("--nlayers", "2", "--n-dim", "16", "--e-dim", "8", "--a-dim", "8", "--neuron", "16 16"),
    *("--e-rcut", "4", "--e-rcut-smth", "3.5", "--e-sel", "40"),
    *("--a-rcut", "3", "--a-rcut-smth", "2.5", "--a-sel", "20"),
]
RUN = [
    *("--batch-size", "2", "--steps", "12", "--report-every", "2", "--validate-every", "4"),
    *("--save-every", "3", "--outlier-sigma", "0"),
]
SMALL = [*MODEL, *RUN]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with frames to train on and to validate with."""
    folder = tmp_path_factory.mktemp("data")
    for name, number, seed in (("train", 12, 1), ("valid", 4, 2)):
        frames = water(number, seed)
        for atoms, out in zip(frames, teacher().evaluate(frames), strict=True):
            stress = -(out.virial + out.virial.T) / 2 / atoms.get_volume()
            atoms.calc = SinglePointCalculator(
                atoms, energy=out.energy, forces=out.forces, stress=stress
            )
        write(folder / f"{name}.xyz", frames)
    return folder


@pytest.fixture
def files(data, tmp_path, monkeypatch):
    """The arguments for these data, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return [str(data / "train.xyz"), "--validation", str(data / "valid.xyz")]


def result(folder="train.train"):
    return json.loads(open(f"{folder}/result.json").read())


def test_what_a_newcomer_gets(files, data, tmp_path, capsys):
    assert main(["train", *files, *SMALL]) == DONE
    printed = capsys.readouterr().out
    assert "12 training frames (energies in 12, forces in 12, virials in 12), 4 to" in printed
    assert "all 12 steps done" in printed
    found = result()
    assert found["converged"]
    assert found["steps"] == 12
    assert found["best_step"] in (4, 8, 12)
    assert found["units"]["rmse_energy_per_atom_eV"] == "eV/atom"
    folder = tmp_path / "train.train"
    assert {"best.safetensors", "best.pt", "last.safetensors", "lcurve.csv", "lcurve.png"} <= {
        path.name for path in folder.iterdir()
    }
    # The errors in the result are those of the file that was written.
    potential = Potential(folder / "best.safetensors")
    frames = read(data / "valid.xyz", ":")
    errors = [
        out.forces - atoms.get_forces()
        for out, atoms in zip(potential.evaluate(frames), frames, strict=True)
    ]
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert found["validation"]["Default"]["rmse_forces_eV_per_A"] == pytest.approx(rmse, rel=1e-4)
    again = read_model(folder / "best.pt")
    assert again.config == potential.model.config
    for name, array in potential.model.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)

    assert main(["train", *files, *SMALL]) == DONE
    assert "already done" in capsys.readouterr().out
    assert main(["train", *files, *SMALL, "--steps", "14"]) == DONE
    assert result()["steps"] == 14


def test_a_file_of_options(files, data, tmp_path, capsys):
    assert main(["train", *files, *SMALL, "--out", "a/run"]) == DONE
    options = yaml.safe_load((tmp_path / "a/run/config.resolved.yaml").read_text())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", "again.yaml", "--out", "b/run"]) == DONE
    for name in ("best.safetensors", "last.safetensors", "lcurve.csv"):
        assert (tmp_path / "a/run" / name).read_bytes() == (tmp_path / "b/run" / name).read_bytes()


def test_other_options_are_another_training(files, capsys):
    assert main(["train", *files, *SMALL]) == DONE
    assert main(["train", *files, *SMALL, "--learning-rate", "0.01"]) == BAD_INPUT
    assert "holds a different calculation (learning_rate" in capsys.readouterr().err
    assert main(["train", *files, *SMALL, "--learning-rate", "0.01", "--force"]) == DONE


def test_limited_time(files):
    assert main(["train", *files, *SMALL, "--max-hours", "1e-9"]) == NOT_CONVERGED
    found = result()
    assert found["steps"] < 12
    assert found["reasons"] == ["max_hours is over"]
    assert main(["train", *files, *SMALL]) == DONE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no training data"),
        (["nothing.xyz"], "nothing.xyz"),
        (["{train}", "--validation", "T={train}"], "has a task 'T' that data does not have"),
        (["{train}", "T={train}"], "has no task, but others have"),
        (["{train}", "--type-map", "H"], "unknown element 'O'"),
        (["{train}", "--type-map", "H Q"], "'Q' is not an element"),
        (["{train}", "--e-sel", "many"], "e_sel"),
        (["{train}", "--a-rcut", "9"], "a_rcut = 9.0 must not exceed e_rcut"),
        (["{train}", "--activation", "wiggle"], "activation"),
        (["{train}", "--batch-size", "auto:0"], "batch_size"),
        (["{train}", "--start-pref-v", "0"], "start_pref_v"),
        (["{train}", "--device", "cuda:99"], "cuda:99"),
        (["{train}", "--task-weights", "A"], "task_weights"),
        (["--input", "none.json"], "none.json"),
    ],
)
def test_bad_input_is_one_line(arguments, message, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [x.replace("{train}", str(data / "train.xyz")) for x in arguments]
    assert main(["train", "--outlier-sigma", "0", *given]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_two_tasks(files, data, tmp_path, capsys):
    """Data sets with an offset: each head has its own energies of the elements."""
    frames = read(data / "train.xyz", ":")
    for atoms in frames:
        energy = atoms.get_potential_energy() - 7.0 * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=atoms.get_forces())
    write(tmp_path / "other.xyz", frames)
    given = [f"A={data / 'train.xyz'}", "B=other.xyz", *SMALL, "--out", "both"]
    assert main(["train", *given]) == DONE
    assert set(result("both")["validation"]) == {"A", "B"}
    models = [Potential(tmp_path / f"both/best.{task}.safetensors") for task in "AB"]
    energies = [model.evaluate(frames[:1])[0].energy / len(frames[0]) for model in models]
    assert energies[0] - energies[1] == pytest.approx(7.0, abs=0.1)
    joint = [read_model(tmp_path / "both/best.pt", head=head) for head in "AB"]
    for model, one in zip(joint, models, strict=True):
        for name, array in one.model.weights.items():
            np.testing.assert_array_equal(model.weights[name], array)


def start(arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dpa3sim", "train", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(condition, process, limit=120.0):
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_saves_and_the_same_command_continues(files, tmp_path):
    many = [*files, *SMALL, "--steps", "100000", "--decay-steps", "10"]
    process = start(many, tmp_path)
    wait_for((tmp_path / "train.train/state.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == INTERRUPTED, output
    found = result(tmp_path / "train.train")
    assert not found["converged"]
    assert found["reasons"] == ["interrupted"]


@pytest.mark.slow
def test_the_command_within_torchrun(files, tmp_path):
    """One process writes and reports; another time, all find that it is done."""
    launcher = [*("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), "-m"]
    command = [sys.executable, *launcher, "dpa3sim", "train", *files, *SMALL]
    for expected in ("all 12 steps done", "already done"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == DONE, done.stderr
        assert done.stdout.count(expected) == 1
        assert done.stdout.count("best model") == 1
    alone = [*files, *SMALL, "--batch-size", "4", "--out", "alone"]
    assert main(["train", *alone]) == DONE
    rows = [(tmp_path / x / "lcurve.csv").read_text() for x in ("train.train", "alone")]
    both = [np.genfromtxt(io.StringIO(text), delimiter=",", names=True)["loss"] for text in rows]
    np.testing.assert_allclose(*both, rtol=1e-3)
    assert result()["session_frames"] == result("alone")["session_frames"]


def kill_again_and_again(files, tmp_path, kills, steps):
    """Train with SIGKILLs at random moments, and without; the files are the same."""
    given = [*files, *SMALL, "--steps", str(steps)]
    straight = start([*given, "--out", "straight/run"], tmp_path)
    assert straight.wait(timeout=600) == DONE, straight.stdout.read()
    rng, folder = np.random.default_rng(0), tmp_path / "killed/run"
    for number in range(kills):
        process = start([*given, "--out", "killed/run"], tmp_path)
        wait_for(lambda: (folder / "lcurve.csv").exists(), process)
        time.sleep(rng.uniform(0.0, 2.0) + (0.5 if number % 3 == 0 else 0.0))
        process.kill()
        process.wait()
    last = start([*given, "--out", "killed/run"], tmp_path)
    assert last.wait(timeout=600) == DONE, last.stdout.read()
    for name in ("best.safetensors", "last.safetensors", "lcurve.csv", "best.pt"):
        assert (folder / name).read_bytes() == (tmp_path / "straight/run" / name).read_bytes(), name


@pytest.mark.slow
def test_kills(files, tmp_path):
    kill_again_and_again(files, tmp_path, 1, 40)


@pytest.mark.slow
def test_twenty_kills(files, tmp_path):
    kill_again_and_again(files, tmp_path, 20, 400)
