"""`dpa3sim sample` in its run directory: files, kills, failures, bad input."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from tests_support import DATA

from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.common.errors import (
    BAD_INPUT,
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    UNPHYSICAL,
    InputError,
)
from dpa3sim.run.sampling import LABELS, LabelFile
from dpa3sim.sample.labelling import Label

MODEL = ["--model", str(DATA / "models/dynamic/model.pt")]
SMALL = [
    *("--frames", "12", "--min-atoms", "3", "--rattle", "0.05", "--rattle-count", "4"),
    *("--md-time", "10", "--md-interval", "5", "--temperatures", "300"),
    *("--dimer-points", "3", "--swap-count", "2", "--quiet", *MODEL),
]
# A calculator that writes down what it computes, and can be told to fail or to be interrupted.
COUNTING = """\
import json, os
from ase.calculators.lj import LennardJones

class Counting(LennardJones):
    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        log = open("calls.txt").read().split() if os.path.exists("calls.txt") else []
        with open("calls.txt", "a") as file:
            file.write(str(hash(atoms.numbers.tobytes() + atoms.positions.tobytes())) + "\\n")
        if os.path.exists("stop") and len(log) == 4:
            os.remove("stop")
            raise KeyboardInterrupt
        if os.path.exists("fail") and len(atoms) == 1:
            raise ValueError("one atom")
        super().calculate(atoms, properties, system_changes)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("water.xyz", molecule("H2O"))
    Path("counting.py").write_text(COUNTING)
    return tmp_path


def result(folder="water.sample"):
    return json.loads(Path(folder, "result.json").read_text())


def calls():
    return Path("calls.txt").read_text().split()


COUNT = ["--label", "counting:Counting", "--label-options", "sigma=0.8", "epsilon=0.1"]
COUNT = [*COUNT[:3], "sigma=0.8 epsilon=0.1"]


def test_what_a_newcomer_gets(capsys):
    arguments = [word for word in SMALL if word != "--quiet"]
    assert main(["sample", "water.xyz", *arguments, "--label", "model"]) == DONE
    printed = capsys.readouterr().out
    assert "12 frames with labels of model" in printed
    found = result()
    assert found["frames"] == 12
    assert found["chosen_of_kinds"] == found["labelled_of_kinds"]
    assert found["chosen_of_kinds"]["atoms"] == 2
    assert set(found["chosen_of_kinds"]) <= set(found["candidates_of_kinds"])
    assert {path.name for path in Path("water.sample").iterdir()} == {
        *("frames.extxyz", "result.json", "config.resolved.yaml", "provenance.json", "run.log")
    }
    frames = read("water.sample/frames.extxyz", ":")
    assert Counter(a.info["config_type"] for a in frames) == found["chosen_of_kinds"]
    potential = Potential(MODEL[1])
    for atoms, out in zip(frames, potential.evaluate(frames), strict=True):
        assert atoms.get_potential_energy() == pytest.approx(out.energy, abs=1e-5)
        np.testing.assert_allclose(atoms.get_forces(), out.forces, atol=1e-5)
    assert main(["data", "info", "water.sample/frames.extxyz", "--outlier-sigma", "0"]) == DONE
    # The same command again, and with its own config.
    assert main(["sample", "water.xyz", *arguments, "--label", "model"]) == DONE
    assert "already done" in capsys.readouterr().out
    Path("water.sample").rename("first.sample")
    config = ["--config", "first.sample/config.resolved.yaml"]
    assert main(["sample", "water.xyz", *config, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["frames"] == 12
    texts = [Path(f"{name}.sample/frames.extxyz").read_text() for name in ("water", "first")]
    assert texts[0] == texts[1]
    assert main(["sample", "water.xyz", *SMALL, "--seed", "1"]) == BAD_INPUT  # another calculation


def test_frames_without_labels_and_inputs(capsys):
    weights = ["--weights", "all=2 atoms=0.5", "--write", "vasp", "--write", "espresso"]
    assert main(["sample", "water.xyz", *SMALL, *weights]) == DONE
    frames = read("water.sample/frames.extxyz", ":")
    assert len(frames) == 12
    assert all(atoms.calc is None for atoms in frames)
    for atoms in frames:
        expected = 0.5 if atoms.info["config_type"] == "atoms" else 2
        assert atoms.info["config_weight"] == expected
    assert len(list(Path("water.sample/vasp").iterdir())) == 12
    assert result()["labelled_of_kinds"] == {}
    # Results of other programs may be in there.
    capsys.readouterr()
    assert main(["sample", "water.xyz", *SMALL, *weights, "--force"]) == BAD_INPUT
    assert "water.sample/vasp: has inputs of another run" in capsys.readouterr().err


def test_a_kill_while_labelling_computes_nothing_twice(monkeypatch):
    Path("stop").touch()
    command = ["sample", "water.xyz", *SMALL, *COUNT]
    assert main(command) == INTERRUPTED
    assert len(calls()) == 5
    assert not Path("water.sample/result.json").exists()
    # A line that was being written.
    with Path("water.sample", LABELS).open("ab") as file:
        file.write(b"0123456789abcdef [7, {")
    # Neither the model nor the choice is asked again.
    with monkeypatch.context() as without:
        for name in ("features", "evaluate_each"):
            without.setattr(Potential, name, None)
        assert main(command) == DONE
    # The one that was interrupted was not computed.
    assert len(calls()) == 13
    assert len(set(calls())) == 12
    frames = read("water.sample/frames.extxyz", ":")
    assert len(frames) == 12
    assert main([*command[:2], *SMALL, *COUNT, "--out", "whole"]) == DONE
    assert Path("whole/frames.extxyz").read_text() == Path("water.sample/frames.extxyz").read_text()


def test_a_kill_during_dynamics_computes_no_step_twice(monkeypatch):
    computed, original = [], Potential.evaluate_each

    def evaluate_each(self, structures):
        if len(computed) == 8 and Path("stop").exists():
            Path("stop").unlink()
            raise KeyboardInterrupt
        computed.extend(s.positions.tobytes() for s in structures)
        return original(self, structures)

    monkeypatch.setattr(Potential, "evaluate_each", evaluate_each)
    Path("stop").touch()
    command = ["sample", "water.xyz", *SMALL]
    assert main(command) == INTERRUPTED
    assert len(computed) == 8
    assert main(command) == DONE
    assert len(computed) == len(set(computed)) == 21  # 20 steps of 0.5 fs, and their start


def test_failures_are_listed_and_tried_again(capsys):
    Path("fail").touch()
    command = ["sample", "water.xyz", *SMALL, *COUNT]
    assert main(command) == SOME_FAILED
    found = result()
    assert not found["converged"]
    assert [f["kind"] for f in found["failed_frames"]] == ["atoms", "atoms"]
    assert found["failed_frames"][0]["reason"] == "ValueError: one atom"
    assert found["labelled_of_kinds"].get("atoms") is None
    assert len(read("water.sample/frames.extxyz", ":")) == 10
    Path("fail").unlink()
    before = len(calls())
    assert main(command) == DONE
    assert len(calls()) == before + 2
    assert len(read("water.sample/frames.extxyz", ":")) == 12
    assert result()["converged"]


def test_all_failures(capsys):
    Path("fail").touch()
    assert main(["sample", "water.xyz", *SMALL, *COUNT, "--kinds", "atoms"]) == UNPHYSICAL


def test_pools_and_known_frames(capsys):
    assert main(["sample", "water.xyz", *SMALL, "--out", "first"]) == DONE
    pool = ["sample", "--from-files", "first/frames.extxyz", *SMALL, "--out"]
    assert main([*pool, "second", "--frames", "5"]) == DONE
    assert result("second")["chosen_of_kinds"] == {"pool": 5}
    assert main([*pool, "third", "--known", "second/frames.extxyz"]) == DONE
    assert result("third")["frames"] == 7
    assert "only 7 of 12 frames" in result("third")["warnings"][0]
    chosen = [
        {atoms.positions.tobytes() for atoms in read(f"{name}/frames.extxyz", ":")}
        for name in ("second", "third")
    ]
    assert not chosen[0] & chosen[1]
    capsys.readouterr()
    assert main([*pool, "fourth", "--known", "first/frames.extxyz"]) == BAD_INPUT
    assert "every candidate is like a known frame" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no structures: name some, or use --from-files FILE"),
        (["missing.xyz"], "missing.xyz: no such file"),
        (["water.xyz", "--known", "missing.xyz"], "missing.xyz: no such file"),
        (["water.xyz", "--kinds", "rattle"], "did you mean 'rattled'"),
        (["water.xyz", "--label", "nothing:Here"], "label = nothing:Here: ModuleNotFoundError"),
        (["water.xyz", "--label", "counting:Counting", "--label-options", "x"], "KEY=VALUE"),
        (["water.xyz", "--max-atoms", "2", "--min-atoms", "1"], "more than max_atoms = 2"),
        (["copper.xyz"], "copper.xyz: "),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    write("copper.xyz", read("water.xyz")[:1])
    text = Path("copper.xyz").read_text()
    Path("copper.xyz").write_text(text.replace("O ", "Cu", 1))
    assert main(["sample", *arguments, "--quiet", *MODEL]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "calls.txt" not in {path.name for path in Path().iterdir()}


def test_frames_that_a_training_refuses_are_told():
    Path("steep.py").write_text(
        "import numpy as np\n"
        "from ase.calculators.calculator import Calculator\n"
        "class Steep(Calculator):\n"
        "    implemented_properties = ('energy', 'forces')\n"
        "    def calculate(self, atoms, *others):\n"
        "        super().calculate(atoms, *others)\n"
        "        close = len(atoms) == 2 and atoms.get_distance(0, 1) < 0.5\n"
        "        energy = 1e3 if close else 0.1 * np.sin(atoms.positions.sum())\n"
        "        self.results = {'energy': energy, 'forces': atoms.positions}\n"
    )
    command = ["sample", "water.xyz", *SMALL, "--frames", "24", "--label", "steep:Steep"]
    assert main(command) == DONE
    warning = result()["warnings"][-1]
    assert "a training refuses 1 of the frames" in warning
    assert "--outlier-sigma 0 accepts them" in warning


def test_damage_of_saved_labels_is_found(tmp_path):
    path = tmp_path / "labels.jsonl"
    with LabelFile(path) as file:
        file.add(3, Label(1.5, np.ones((2, 3)), None))
    with LabelFile(path) as file:
        assert file.labels[3].energy == 1.5
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.6"))
    with pytest.raises(InputError, match=r"labels\.jsonl: damaged; --force"):
        LabelFile(path)
