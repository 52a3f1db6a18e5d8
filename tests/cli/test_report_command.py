"""The command ``dpa3sim report``: where pages go, what is never overwritten, exit codes."""

import json
from pathlib import Path

import pytest
from report_support import Page, a_result, a_run, assert_harmless

from dpa3sim.cli.main import main


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_for_each_run(capsys):
    a_run(Path("a.relax"), a_result())
    a_run(Path("b.eos"), None, exit_code=130)
    for _ in range(2):  # our own page is replaced
        assert main(["report", "a.relax", "b.eos"]) == 0
        assert capsys.readouterr().out.split() == ["a.relax/report.html", "b.eos/report.html"]
    page = Page(Path("a.relax/report.html").read_text())
    assert "relaxation" in page.text
    # The command's own options, with their help, units and defaults.
    assert page.line("fmax") == [
        "fmax",
        "0.02 eV/Å",
        "0.01",
        "largest force of a converged structure",
    ]
    assert_harmless(page)
    assert "interrupted" in Page(Path("b.eos/report.html").read_text()).text


def test_output(capsys):
    a_run(Path("a.relax"), a_result())
    a_run(Path("b.relax"), a_result())
    assert main(["report", "a.relax", "--output", "x.html"]) == 0
    assert Path("x.html").exists()
    assert not Path("a.relax/report.html").exists()
    assert main(["report", "a.relax", "b.relax", "--output", "y.html"]) == 2
    assert "is no folder, which 2 pages need" in capsys.readouterr().err
    Path("pages").mkdir()
    assert main(["report", "a.relax", "b.relax", "--output", "pages"]) == 0
    assert sorted(p.name for p in Path("pages").iterdir()) == ["a.relax.html", "b.relax.html"]
    assert main(["report", "a.relax", "--output", "nowhere/x.html"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_nothing_else_is_overwritten(capsys):
    a_run(Path("a.relax"), a_result())
    precious = Path("a.relax/report.html")
    precious.write_text("<!DOCTYPE html><title>dpa3sim report of my own</title>")
    before = precious.read_text()
    assert main(["report", "a.relax"]) == 2
    assert "is no page of dpa3sim report; choose another --output" in capsys.readouterr().err
    assert precious.read_text() == before
    assert main(["report", "a.relax", "--force"]) == 0
    assert precious.read_text() != before
    assert main(["report", "a.relax", "--output", "a.relax/run.log"]) == 2


def test_bad_runs(capsys):
    a_run(Path("a.relax"), a_result())
    assert main(["report", "nothing.relax"]) == 2
    assert capsys.readouterr().err == "dpa3sim: error: nothing.relax: no such run directory\n"
    assert main(["report", "a.relax", "nothing.relax"]) == 5
    assert Path("a.relax/report.html").exists()
    assert main(["report"]) == 2


def test_a_folder_that_cannot_be_written(capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    a_run(Path("a.relax"), a_result())
    monkeypatch.setattr("dpa3sim.files.atomic_write", full)
    assert main(["report", "a.relax"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_open(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    a_run(Path("a.relax"), a_result())
    assert main(["report", "a.relax", "--open"]) == 0
    assert shown == [Path("a.relax/report.html").resolve().as_uri()]


@pytest.mark.parametrize("protocol", ["wormhole", "convert", "../evil", 7, None])
def test_a_protocol_that_is_none(protocol):
    run = a_run(Path("a.relax"), a_result(protocol=protocol))
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["calculation"]["protocol"] = protocol
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert main(["report", "a.relax"]) == 0


def test_the_template_is_in_the_package():
    """What is no Python file has to be named for wheels to have it."""
    import tomllib

    root = Path(__file__).resolve().parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "dpa3sim.report" in settings["packages"]
    patterns = settings["package-data"]["dpa3sim.report"]
    folder = root / "dpa3sim/report"
    found = {p for pattern in patterns for p in folder.glob(pattern)}
    assert found == {
        p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")
    }
