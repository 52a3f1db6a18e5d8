"""`dpa3sim distill` in its run directory: files, kills, what continues, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from distill_support import COMMAND, MODEL, TEACHER, result, water

from dpa3sim import Potential
from dpa3sim.checkpoints import read_model
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, INTERRUPTED, NOT_CONVERGED
from dpa3sim.run import distilling
from dpa3sim.train.trainer import Trainer

QUIET = [*COMMAND, "--quiet"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    water()
    return tmp_path


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


def test_kills_compute_nothing_twice_and_change_nothing(monkeypatch):
    # Every frame of the student's dynamics counts as bad: there is something to add.
    command = [*QUIET, "--target", "1"]
    assert main([*command, "--out", "whole"]) == NOT_CONVERGED
    with monkeypatch.context() as patch:
        killer = Killer(patch)
        for _ in range(5):
            assert main(command) == INTERRUPTED
            assert not Path("water.distill/result.json").exists()
        assert main(command) == NOT_CONVERGED
        assert killer.begun == {*Killer.STAGES}
        # The last three evaluations are those of the speed.
        assert len(killer.by_teacher) == len(set(killer.by_teacher))
        assert killer.steps == 6 + 4
        # Continued without anything to do, and then with another round.
        before = len(killer.by_teacher)
        assert main(command) == NOT_CONVERGED
        assert (len(killer.by_teacher), killer.steps) == (before, 10)
    whole, killed = result("whole"), result()
    for key in ("held_out", "own_dynamics", "nve", "rounds", "excursions", "reasons"):
        assert whole[key] == killed[key], key
    assert killed["excursions"][0]["frames_added"] == 2
    assert killed["rounds"][1]["frames"] == killed["rounds"][0]["frames"] + 2
    texts = [Path(x, "frames.extxyz").read_text() for x in ("whole", "water.distill")]
    assert texts[0] == texts[1]
    one, other = (read_model(Path(x, "best.safetensors")) for x in ("whole", "water.distill"))
    for name, array in one.weights.items():
        np.testing.assert_array_equal(array, other.weights[name])
    # The student is now good enough.
    assert main([*QUIET, "--target", "100000"]) == DONE
    assert result()["converged"]


def test_what_a_newcomer_gets(capsys):
    water(periodic=True)
    arguments = [word for word in COMMAND if word != "--no-plot"]
    assert main([*arguments, "--target", "100000"]) == DONE
    printed = capsys.readouterr().out
    assert "times the teacher's" in printed
    assert "its own dynamics  600 K: forces RMSE" in printed
    found = result()
    assert found["reasons"] == ["the target is reached"]
    assert [row["temperature_K"] for row in found["held_out"]] == [300.0, 600.0]
    assert [row["temperature_K"] for row in found["own_dynamics"]] == [300.0, 600.0]
    assert found["units"]["forces_rmse_eV_per_A"] == "eV/Å"
    speed = found["speed"]
    assert speed["ratio"] == pytest.approx(speed["teacher_s"] / speed["student_s"])
    assert {path.name for path in Path("water.distill").iterdir()} == {
        *("best.safetensors", "frames.extxyz", "held_out.extxyz", "lcurve.csv", "result.json"),
        *("config.resolved.yaml", "provenance.json", "run.log"),
        *(f"{name}.{kind}" for name in ("lcurve", "parity") for kind in ("png", "svg")),
    }
    # The student works as every model does, and says how certain it is.
    student = Potential("water.distill/best.safetensors", uncertainty="model")
    assert student.model.truncate == "none"
    assert student.model.origin["teacher"] == "model"
    frames = read("water.distill/held_out.extxyz", ":")
    assert all(out.uncertainty is not None for out in student.evaluate(frames))
    command = ["sp", "water.xyz", "--model", "water.distill/best.safetensors", "--quiet"]
    assert main(command) == DONE
    # The same command again, and with its own config.
    assert main([*arguments, "--target", "100000"]) == DONE
    assert "already done" in capsys.readouterr().out
    config = ["--config", "water.distill/config.resolved.yaml"]
    assert main(["distill", "water.xyz", *config, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["speed"] == speed
    assert main([*QUIET, "--seed", "3"]) == BAD_INPUT  # another distillation


def test_time_is_over_and_continues(capsys):
    assert main([*COMMAND, "--max-hours", "0"]) == NOT_CONVERGED
    assert "the same command continues" in capsys.readouterr().out
    found = result()
    assert found["reasons"] == ["max_hours is over"]
    assert found["rounds"] == []
    assert found["speed"]["ratio"] > 0
    Potential("water.distill/best.safetensors")
    assert main([*QUIET, "--target", "100000"]) == DONE
    assert result()["rounds"][0]["steps"] == 6


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
