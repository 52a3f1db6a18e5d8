"""`dpa3sim distill` in its run directory: files, kills, what continues, bad input."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from distill_support import COMMAND, MODEL, TEACHER, result, water

from dpa3sim import Potential
from dpa3sim.checkpoints import read_model
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, INTERRUPTED, NOT_CONVERGED
from dpa3sim.distill.rules import ALL_ROUNDS, NO_GAIN
from dpa3sim.run import distilling
from dpa3sim.train.trainer import Trainer

# Nothing is good enough for this target: every round has frames to add.
STRICT = [*COMMAND, "--target", "1"]
QUIET = [*COMMAND, "--quiet", "--no-plot"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    water()
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed distillation, what it printed, and the pictures it drew."""
    path, printed, drawn = tmp_path_factory.mktemp("whole"), io.StringIO(), []
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(path)
        patch.setattr(
            "dpa3sim.report.plots.training.save", lambda figure, folder, name: drawn.append(name)
        )
        water()
        assert main(STRICT) == NOT_CONVERGED
    return path / "water.distill", printed.getvalue(), drawn


class Killer:
    """Interrupts each stage once, and writes down what is computed."""

    STAGES = ("held_out", "first_set", "hottest", "everywhere")

    def __init__(self, monkeypatch):
        self.by_teacher, self.steps, self.left, self.begun = [], 0, None, set()
        self.kill_training = True
        for name in self.STAGES:
            monkeypatch.setattr(distilling, name, self.interrupting(name))
        evaluate, step = Potential.evaluate_each, Trainer._step

        def evaluate_each(potential, structures):
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    self.left = None
                    raise KeyboardInterrupt
            if str(potential.model.path) == TEACHER:
                self.by_teacher += [(x.positions.tobytes(), x.cell.tobytes()) for x in structures]
            return evaluate(potential, structures)

        def one_step(trainer):
            if self.kill_training and self.steps == 3:
                self.kill_training = False
                raise KeyboardInterrupt
            self.steps += 1
            return step(trainer)

        monkeypatch.setattr(Potential, "evaluate_each", evaluate_each)
        monkeypatch.setattr(Trainer, "_step", one_step)

    def interrupting(self, name):
        original = getattr(distilling, name)

        def stage(*arguments):
            if name not in self.begun:
                self.begun.add(name)
                self.left = 5
            return original(*arguments)

        return stage


def test_what_a_newcomer_gets(whole, tmp_path, capsys):
    folder, printed, drawn = whole
    assert "times the teacher's" in printed
    assert "its own dynamics  600 K: forces RMSE" in printed
    assert drawn == ["lcurve", "parity"]
    found = result(folder)
    assert found["reasons"][0] in (ALL_ROUNDS, NO_GAIN)
    assert "a larger --size" in found["warnings"][0]
    assert [row["temperature_K"] for row in found["held_out"]] == [300.0, 600.0]
    assert [row["temperature_K"] for row in found["own_dynamics"]] == [300.0, 600.0]
    assert found["units"]["forces_rmse_eV_per_A"] == "eV/Å"
    speed = found["speed"]
    assert speed["ratio"] == pytest.approx(speed["teacher_s"] / speed["student_s"])
    # The student works as every model does, and says how certain it is.
    model = str(folder / "best.safetensors")
    student = Potential(model, uncertainty="model")
    assert student.model.truncate == "none"
    assert student.model.origin["teacher"] == "model"
    frames = read(folder / "held_out.extxyz", ":")
    assert all(out.uncertainty is not None for out in student.evaluate(frames))
    assert main(["sp", "water.xyz", "--model", model, "--quiet"]) == DONE
    # It goes on where it was, until it is good enough; then nothing is left to do.
    shutil.copytree(folder, "water.distill")
    assert main([*QUIET, "--target", "100000"]) == DONE
    assert result()["speed"] == speed
    assert {path.name for path in Path("water.distill").iterdir()} == {
        *("best.safetensors", "frames.extxyz", "held_out.extxyz", "lcurve.csv", "result.json"),
        *("config.resolved.yaml", "provenance.json", "run.log"),
    }
    config = ["--config", "water.distill/config.resolved.yaml"]
    capsys.readouterr()
    assert main(["distill", "water.xyz", *config, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["speed"] == speed
    for other in (["--seed", "3"], ["--target", "1"]):
        assert main([*QUIET, "--target", "100000", *other]) == BAD_INPUT
        assert "choose another --out" in capsys.readouterr().err


def test_kills_compute_nothing_twice_and_change_nothing(whole, monkeypatch):
    killer = Killer(monkeypatch)
    monkeypatch.setattr(distilling, "time_in_turn", lambda *arguments: ([0.2], [0.1]))
    command = [*STRICT, "--quiet", "--no-plot", "--no-covariance"]
    for _ in range(3):  # twice while sampling, and while training
        assert main(command) == INTERRUPTED
        assert not Path("water.distill/result.json").exists()
    # A limit of time ends the first training early, and there is a student already.
    killer.begun.add("everywhere")
    assert main([*command, "--max-hours", "0"]) == NOT_CONVERGED
    early = result()
    assert early["reasons"] == ["max_hours is over"]
    assert early["rounds"] == []
    Potential("water.distill/best.safetensors")
    killer.begun.remove("everywhere")
    for _ in range(2):
        assert main(command) == INTERRUPTED
    assert main(command) == NOT_CONVERGED
    assert killer.begun == {*Killer.STAGES}
    assert len(killer.by_teacher) == len(set(killer.by_teacher))
    assert killer.steps == 6 + 4
    before = len(killer.by_teacher)
    assert main(command) == NOT_CONVERGED
    assert (len(killer.by_teacher), killer.steps) == (before, 10)
    one, other = whole[0], Path("water.distill")
    found, expected = result(other), result(one)
    for key in ("held_out", "own_dynamics", "nve", "rounds", "excursions", "reasons"):
        assert found[key] == expected[key], key
    assert found["speed"]["ratio"] == 2
    assert found["excursions"][0]["frames_added"] == 2
    assert found["rounds"][1]["frames"] == found["rounds"][0]["frames"] + 2
    assert (one / "frames.extxyz").read_text() == (other / "frames.extxyz").read_text()
    weights = [read_model(x / "best.safetensors").weights for x in (one, other)]
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no structures: name one or more"),
        (["missing.xyz"], "missing.xyz: no such file"),
        (["water.xyz", "--size", "large"], "'large' is not one of tiny, small, medium"),
        (["water.xyz", "--target", "-1"], "option target = -1.0 must be at least 0"),
        (["water.xyz", "--temperatures", "hot"], "temperatures: 'hot' is not a number"),
        (["water.xyz", "--pressures", "1 high"], "pressures: 'high' is not a number"),
        (["water.xyz", "--weights", "dimer=1"], "did you mean 'dimers'"),
        (["water.xyz", "--nlayers", "0"], "option nlayers = 0 must be at least 1"),
        (["water.xyz", "--a-rcut", "9"], "a_rcut"),
        (["water.xyz", "--nlayer", "2"], "did you mean '--nlayers'"),
        (["copper.xyz"], "Cu"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    atoms = read("water.xyz")
    atoms.symbols[0] = "Cu"
    write("copper.xyz", atoms)
    assert main(["distill", *arguments, "--quiet", *MODEL]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().glob("*.distill"))


def test_the_plan_computes_and_writes_little(capsys):
    assert main(["plan", *COMMAND, "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert {stage["name"] for stage in found["stages"]} == {
        *("dynamics to train with", "held-out dynamics", "labels"),
    }
    assert found["training"]["steps_most"] == 6 + 4
    assert found["training"]["step_s"] > 0
    assert [path.name for path in Path().iterdir()] == ["water.xyz"]
