"""The command ``dpa3sim bench``."""

import json

import pytest
from tests_support import EXAMPLES

from dpa3sim.cli.main import main


def test_bench_reports_what_it_measured(capsys):
    arguments = ["bench", str(EXAMPLES / "Si.vasp"), "--steps", "3", "--warm-up", "1", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["formula"] == "Si8"
    assert (result["n_atoms"], result["copies"]) == (8, 1)
    assert 0 < result["step_min_ms"] <= result["step_ms"] <= result["step_max_ms"]
    assert result["per_atom_ms"] == pytest.approx(result["step_ms"] / 8)
    # One step a femtosecond: so many ns in a day's 86,400 s.
    assert result["simulated_ns_per_day"] == pytest.approx(86.4 / result["step_ms"], rel=1e-9)
    assert result["counters"]["evaluations"] == result["counters"]["batches"] == 3
    assert result["peak_memory_MiB"] > 100
    assert result["smooth_cutoff_A"] is None
    # Ideal silicon has 46 neighbours within 6 Å and 16 within 4 Å, 256 angles.
    assert result["edges_per_atom"] == pytest.approx(46, abs=4)
    assert result["angles_per_atom"] == pytest.approx(256, rel=0.2)


def test_bench_of_several_structures_and_copies(capsys):
    files = [str(EXAMPLES / "ethanol.xyz"), str(EXAMPLES / "Cu.vasp")]
    arguments = ["--steps", "1", "--copies", "3", "--timestep", "2", "--smooth-cutoff", "0.3"]
    assert main(["bench", *files, *arguments]) == 0
    out = capsys.readouterr().out
    assert "ethanol.xyz: C2H6O, 9 atoms x 3" in out
    assert "Cu.vasp: Cu4, 4 atoms x 3" in out
    assert "at 2 fs" in out
    assert "embedded model dpa3-openlam" in out
    assert "cutoff smoothed over 0.3 Å" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nosuch.cif"], 2, "nosuch.cif: no such file"),
        ([str(EXAMPLES / "Si.vasp"), "--steps", "0"], 2, "option steps = 0 must be at least 1"),
        ([str(EXAMPLES / "Si.vasp"), "--stps", "3"], 2, "did you mean '--steps'"),
    ],
)
def test_bad_usage(arguments, code, message, capsys):
    assert main(["bench", *arguments]) == code
    assert message in capsys.readouterr().err


def test_one_bad_structure_of_two(tmp_path, capsys):
    bad = tmp_path / "bad.xyz"
    bad.write_text("2\n\nO 0 0 0\nO 0 0 0.01\n")
    assert main(["bench", str(bad), str(EXAMPLES / "Cu.vasp"), "--steps", "1"]) == 5
    captured = capsys.readouterr()
    assert "bad.xyz: atoms 0 and 1 overlap" in captured.err
    assert "Cu4" in captured.out
