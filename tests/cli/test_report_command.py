"""The command ``dpa3sim report``: where pages go, what is never overwritten, exit codes."""

import json
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
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


def test_a_screening_has_a_page(capsys):
    """A real one, with a structure that cannot be read, and one that cannot be computed."""
    Path("in").mkdir()
    for name, lattice in (("Cu", 3.7), ("Al", 4.1)):
        write(f"in/{name}.cif", bulk(name, "fcc", a=lattice), format="cif")
    write("in/close.vasp", Atoms("Cu2", [[0, 0, 0], [0, 0, 0.01]], cell=[4] * 3), format="vasp")
    Path("in/no.cif").write_text("nothing")
    assert main(["relax", "in", "--screen", "many", "--quiet", "--steps", "3"]) == 5
    capsys.readouterr()
    assert main(["report", "many"]) == 0
    assert capsys.readouterr().out == "many/report.html\n"
    page = Page(Path("many/report.html").read_text())
    assert "screening: relaxation" in page.text
    assert "complete, with failures" in page.text
    assert "2 done, 2 failed" in page.text
    table = next(t for t in page.tables if t[0][0] == "label")
    assert [line[3] for line in table[1:]].count("done") == 2
    assert "energy per atom (eV/atom)" in table[0]
    assert "volume per atom (Å³/atom)" in table[0]
    assert page.line("steps")[1:3] == ["3", "1000"]
    assert_harmless(page)
    # Again while it is no database any more: damaged, and no traceback.
    Path("many/results.sqlite").write_bytes(b"no database at all" * 99)
    assert main(["report", "many"]) == 0
    assert "damaged" in Page(Path("many/report.html").read_text()).text


def test_shards_have_one_page():
    write("a.extxyz", [bulk("Cu", a=a) for a in (3.5, 3.6, 3.7)], format="extxyz")
    for shard in ("1/2", "2/2"):
        assert main(["sp", "a.extxyz", "--screen", "many", "--shard", shard, "--quiet"]) == 0
    assert main(["report", "many"]) == 0
    page = Page(Path("many/report.html").read_text())
    assert "3 structures" in page.text
    assert "shard-1-of-2" in page.text
    assert "shard-2-of-2" in page.text


def test_output(capsys):
    a_run(Path("a.relax"), a_result())
    a_run(Path("b.relax"), a_result())
    assert main(["report", "a.relax", "--output", "x.html"]) == 0
    assert Path("x.html").exists()
    assert not Path("a.relax/report.html").exists()
    assert main(["report", "a.relax", "b.relax", "--output", "y.html"]) == 2
    assert "is not a folder, which 2 pages need" in capsys.readouterr().err
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
    assert "was not written by dpa3sim report; choose another --output" in capsys.readouterr().err
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
    monkeypatch.setattr("dpa3sim.common.files.atomic_write", full)
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
