"""The command ``dpa3sim doctor``."""

import json

import numpy as np
from tests_support import DATA, load_reference

from dpa3sim.checkpoints.registry import embedded_path
from dpa3sim.cli.commands import doctor
from dpa3sim.cli.main import main


def test_a_healthy_installation(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "kernels", "threads", "memory", "GPU", "model", "ms/atom", "ns/day"):
        assert word in out
    assert out.count("\nok ") == 4  # three structures and the lists
    assert "all checks passed" in out


def test_wrong_results_are_found(capsys, monkeypatch):
    loads = json.loads

    def shifted(text):
        data = loads(text)
        if "cases" in data:
            data["cases"][1]["forces"] = (np.array(data["cases"][1]["forces"]) + 1e-3).tolist()
        return data

    monkeypatch.setattr(doctor.json, "loads", shifted)
    assert main(["doctor", "--json"]) == 4
    monkeypatch.undo()
    report = json.loads(capsys.readouterr().out)
    assert [check["passed"] for check in report["checks"]] == [True, False, True, True]
    assert report["passed"] is False
    assert report["speed"]["n_atoms"] == 64


def test_the_built_in_references_are_those_of_deepmd_kit():
    built_in = json.loads(embedded_path().with_name("reference.json").read_text())["cases"]
    cases = load_reference(DATA / "reference/2025-03-14-dpa3-openlam.json")
    assert len(built_in) == 3
    assert all(case in cases for case in built_in)


def test_advice_when_there_is_no_compiled_kernel(embedded, monkeypatch):
    from dpa3sim.kernels import libraries as native

    status = native.Status(None, "torch", "not built")
    monkeypatch.setattr(native, "status", lambda: status)
    assert any("C++ compiler" in hint for hint in doctor.advice(embedded))


def test_a_device_that_does_not_exist(capsys):
    assert main(["doctor", "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
