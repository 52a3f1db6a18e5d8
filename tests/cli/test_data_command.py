"""The command ``dpa3sim data``."""

import json
from pathlib import Path

import pytest

from dpa3sim.cli.main import main

GOOD = """\
3
energy=-14.2 Properties=species:S:1:pos:R:3:forces:R:3
O 0 0 0 0 0 0.1
H 0.96 0 0 0 0 0
H -0.24 0.93 0 0 0 -0.1
"""
BAD = GOOD.replace("-14.2", "nan")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_info(capsys):
    Path("w.xyz").write_text(GOOD * 3)
    assert main(["data", "info", "w.xyz", "--plot", "w.png"]) == 0
    out = capsys.readouterr().out
    assert "3 frames, 9 atoms: 3 molecules" in out
    assert "energy in 3, forces in 3" in out
    assert "underdetermined" in out
    assert Path("w.png").read_bytes().startswith(b"\x89PNG")


def test_json(capsys):
    Path("w.xyz").write_text(GOOD)
    assert main(["data", "info", "w.xyz", "w.xyz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_frames"] == 2
    assert [e["symbol"] for e in found["elements"]] == ["H", "O"]


def test_bad_frames_are_refused_or_listed(capsys):
    Path("w.xyz").write_text(GOOD + BAD)
    assert main(["data", "info", "w.xyz"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "1 bad frame: w.xyz, frame 1: its energy is NaN" in captured.err
    assert "--skip-bad" in captured.err
    assert main(["data", "info", "w.xyz", "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert "1 frame, 3 atoms: 1 molecule" in out
    assert "1 bad frame left out:" in out
    assert "w.xyz, frame 1: its energy is NaN" in out


def test_options_from_elsewhere(capsys):
    Path("w.xyz").write_text(GOOD.replace("energy", "E_pbe"))
    Path("c.yaml").write_text("energy_key: E_pbe\n")
    assert main(["data", "info", "w.xyz", "--config", "c.yaml"]) == 0
    assert main(["data", "info", "w.xyz", "--set", "energy_key=E_pbe"]) == 0
    assert "energy in 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info"], "FILE is missing"),
        (["inf", "w.xyz"], "action: 'inf' is not one of info"),
        (["info", "nosuch.xyz"], "nosuch.xyz: no such file"),
        (["info", "w.xyz", "--plot", "w.gif"], "--plot w.gif: the name must end in .png"),
        (["info", "w.xyz", "--outlier-sigma", "-1"], "outlier_sigma = -1.0 must be at least 0"),
        (["info", "w.xyz", "--energy-ky", "E"], "did you mean '--energy-key'"),
        (["info", "w.xyz", "--stress-key", "S"], "no frame has 'S' (--stress-key)"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    Path("w.xyz").write_text(GOOD)
    try:
        code = main(["data", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
