"""``dpa3sim validate``: models side by side, continued, planned, and what the exit code says."""

import json
import shutil

import pytest
from tests_support import DATA

from dpa3sim.cli.main import main
from dpa3sim.report.validation import read_validations

QUICK = ["--checks", "invariances dimers dynamics", "--steps", "10"]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two small models with names of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("dynamic", "static_linear"):
        shutil.copy(DATA / f"models/{name}/model.pt", tmp_path / f"{name}.pt")
    return ["dynamic.pt", "static_linear.pt"]


def run(*words):
    return main(["validate", *words])


def test_models_side_by_side(models, tmp_path, capsys):
    assert run("--model", *models, *QUICK, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [r["model"]["name"] for r in results] == ["dynamic", "static_linear"]
    for result in results:
        assert result["converged"] is True
        assert result["exit_codes"] == dict.fromkeys(QUICK[1].split(), 0)
        assert {row["element"] for row in result["dimers"]} == {"H", "O"}
    page = (tmp_path / "validation/report.html").read_text()
    for name in ("dynamic", "static_linear"):
        assert f'<th scope="col">{name}</th>' in page
    # A further model joins them; those that are done are not repeated.
    assert run("--model", models[0], *QUICK, "--out", "validation") == 0
    assert "already done" in capsys.readouterr().out
    assert run("--model", models[1], *QUICK, "--smooth-cutoff", "0.5", "--quiet") == 0
    names = [found.name for found in read_validations(tmp_path / "validation")]
    assert names == ["dynamic", "static_linear", "static_linear-smooth0.5"]


def test_what_was_evaluated_is_not_evaluated_again(models, tmp_path, monkeypatch):
    from dpa3sim.run.store import StoredPotential

    class KilledError(BaseException):
        pass

    def killed(self, *_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("dpa3sim.validate.dynamics.run", killed)
        with pytest.raises(KilledError):
            run("--model", models[0], *QUICK, "--quiet")
    counted = []
    original = StoredPotential.close

    def close(self):
        counted.append(self.statistics)
        original(self)

    monkeypatch.setattr(StoredPotential, "close", close)
    assert run("--model", models[0], *QUICK, "--quiet") == 0
    (statistics,) = counted
    # The first step of the dynamics is one of the invariances' structures.
    assert (statistics.computed, statistics.found) == (10, 113)
    whole = json.loads((tmp_path / "validation/dynamic/result.json").read_text())
    assert run("--model", models[0], *QUICK, "--quiet", "--out", "other") == 0
    fresh = json.loads((tmp_path / "other/dynamic/result.json").read_text())
    del whole["directory"], fresh["directory"]
    assert whole == fresh


def test_errors(models, capsys):
    assert run("--model", "missing.pt", models[0], *QUICK, "--quiet") == 5
    assert "missing.pt: no such model file" in capsys.readouterr().err
    assert run("--checks", "everything") == 2
    assert run("--model", models[0], "--checks", "crystals", "--quiet") == 2
    assert "holds a different calculation" in capsys.readouterr().err
    assert run("--model", models[0], "--checks", "crystals", "--out", "other") == 0
    assert "no reference crystal consists of" in capsys.readouterr().out
    assert main(["plan", "validate", "--model", models[0], "--checks", "crystals"]) == 2
    assert "its elements are O H" in capsys.readouterr().err


def test_a_problem_is_told_and_the_exit_code_says_it(models, monkeypatch, tmp_path):
    from dpa3sim.common.errors import NonFiniteError

    def infinite(*_):
        raise NonFiniteError("the model returned a value that is not finite")

    with monkeypatch.context() as patch:
        patch.setattr("dpa3sim.validate.dimers.run", infinite)
        assert run("--model", models[0], *QUICK, "--quiet") == 5
    result = json.loads((tmp_path / "validation/dynamic/result.json").read_text())
    assert result["converged"] is False
    assert result["exit_codes"] == {"invariances": 0, "dimers": 4, "dynamics": 0}
    assert "dimers: the model returned" in result["reasons"][0]
    assert run("--model", models[0], *QUICK, "--quiet") == 0  # tried again


def test_plan(models, capsys):
    assert main(["plan", "validate", "--model", models[0], *QUICK, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert stages["dimers"]["n_structures"] == 2 * 48
    assert stages["dynamics"]["evaluations_most"] == 11
