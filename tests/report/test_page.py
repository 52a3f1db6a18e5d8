"""Pages of run directories: honest about their state, readable, and harmless."""

import functools
import json
import subprocess

import pytest
from report_support import STARTED, Page, a_result, a_run, assert_harmless, browser

from dpa3sim.common.errors import InputError
from dpa3sim.report.page import Option, run_page
from dpa3sim.report.reading import read_run
from dpa3sim.report.state import state_of
from dpa3sim.report.values import arrange, shown, with_error

OPTIONS = (
    Option("fmax", "largest force", "eV/Å", 0.01),
    Option("cell", "what may change", "", "fixed"),
    Option("model", "checkpoint", "", "dpa3-openlam"),
)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"


def page_of(folder):
    return Page(run_page(read_run(folder), "relaxation", OPTIONS))


def test_values_have_units_and_errors(tmp_path):
    page = page_of(a_run(tmp_path / "x.relax", a_result()))
    assert page.line("energy") == ["energy", "-43.37384 eV"]
    assert page.line("energy per atom") == ["energy per atom", "-5.4217 ± 0.0012 eV/atom"]
    assert page.line("volume") == ["volume", "–"]
    assert ["1.50000", "0.25000", "0.00000"] in page.tables[1]
    assert "stress (GPa)" in page.text
    exact = [a["title"] for _, a in page.tags if "title" in a]
    assert "-43.373839123456" in exact
    assert_harmless(page)


def test_alike_things_are_one_table_and_long_lists_are_folded(tmp_path):
    page = page_of(a_run(tmp_path / "x.relax", a_result()))
    assert page.tables[2] == [
        ["", "element", "energy (eV)"],
        ["1", "Si", "1.25"],
        ["2", "O", "2.5"],
    ]
    assert page.line("temperatures (K)")[1] == "40 values, 0 to 390 (table)"
    series = next(t for t in page.tables if t[0][0] == "temperatures (K)")
    assert series[0] == ["temperatures (K)", "heat capacity (J/K/mol)"]
    assert series[40] == ["390", "19.5"]
    assert ("details", {"id": "table-3"}) in page.tags


def test_few_things_of_many_quantities_are_columns():
    things = [{f"quantity{n}_eV": n + k / 2 for n in range(9)} for k in range(2)]
    units = {f"quantity{n}_eV": "eV" for n in range(9)}
    (table,) = arrange({"things": things, "units": units}).tables
    assert table.head == ["", "1", "2"]
    assert [cell.text for cell in table.lines[3]] == ["quantity3 (eV)", "3", "3.5"]


def test_settings_that_are_not_the_default_are_marked(tmp_path):
    page = page_of(a_run(tmp_path / "x.relax", a_result()))
    assert page.line("fmax") == ["fmax", "0.02 eV/Å", "0.01", "largest force"]
    assert sum(attributes.get("class") == "changed" for _, attributes in page.tags) == 1


def test_provenance(tmp_path):
    page = page_of(a_run(tmp_path / "x.relax", a_result()))
    assert "dpa3sim relax 'my file.vasp' --fmax 0.02" in page.text
    assert "2 min 5 s" in page.text
    assert "exit code 0, done" in page.text
    assert page.line("sha256")[1] == "ab" * 32
    assert page.line("torch")[1] == "2.9"


@pytest.mark.parametrize(
    ("result", "session", "log", "kind", "word", "reason"),
    [
        (a_result(), {}, "", "good", "converged", "below the threshold"),
        (a_result(protocol="md", reasons=["all done"]), {}, "", "good", "complete", "all done"),
        (
            a_result(converged=False, reasons=["too few steps"]),
            {"exit_code": 3},
            "",
            "bad",
            "not converged",
            "too few steps",
        ),
        (None, {"exit_code": 3}, "failed: never", "bad", "not converged", "never"),
        (None, {"exit_code": 4}, "failed: NaN", "bad", "unphysical", "NaN"),
        (None, {"exit_code": 2}, "failed: bad", "bad", "failed, exit code 2", "bad"),
        (
            a_result(verdict_reason="a soft mode"),
            {"exit_code": 4},
            "",
            "bad",
            "unphysical",
            "a soft mode",
        ),
        (None, {"exit_code": 130}, "", "doubtful", "interrupted", "the same command continues"),
        (None, {"exit_code": None}, "", "doubtful", "unfinished", "it is running, or was killed"),
        (None, {}, "", "bad", "damaged", "result.json is missing"),
    ],
)
def test_states(tmp_path, result, session, log, kind, word, reason):
    folder = a_run(tmp_path / "x.relax", result, **session)
    if log:
        with (folder / "run.log").open("a") as file:
            print(f"{STARTED} {log}", file=file)
    state = state_of(read_run(folder))
    assert (state.kind, state.word) == (kind, word)
    assert reason in " ".join(state.reasons)
    page = page_of(folder)
    assert word in page.text
    assert_harmless(page)


def test_results_of_an_earlier_session_are_told(tmp_path):
    killed = a_run(tmp_path / "a.md", a_result(protocol="md"), exit_code=None)
    assert "from a session before the last one" in page_of(killed).text
    failed = a_run(tmp_path / "b.md", a_result(protocol="md"), exit_code=4)
    (failed / "run.log").write_text(f"{STARTED} failed: exploded\n")
    assert state_of(read_run(failed)).stale
    old = a_run(tmp_path / "c.md", a_result(protocol="md"))
    (old / "run.log").write_text("2025-01-01T00:00:00+0000 failed: before\n")
    assert not state_of(read_run(old)).stale


@pytest.mark.parametrize("name", ["result.json", "provenance.json", "config.resolved.yaml"])
@pytest.mark.parametrize(
    "content", [b"", b'{"a": tru', b"\xff\xfe\x00", b"[1, 2]", b"{" * 10**5, b"\0" * 100]
)
def test_damaged_files_give_an_honest_page(tmp_path, name, content):
    folder = a_run(tmp_path / "x.relax", a_result())
    (folder / name).write_bytes(content)
    page = page_of(folder)
    if name != "config.resolved.yaml" or content.strip():
        assert f"{name}: " in page.text
        assert "damaged" in page.text
    assert_harmless(page)


DEEP = functools.reduce(lambda inner, _: {"a": inner}, range(400), 1)
HUGE = 10**400
JUNK = [None, 1, HUGE, "x", [], {}, [[]], [{}], [None], {"a": {"b": [1]}}, [[HUGE] * 2] * 2, DEEP]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: str(junk)[:20])
def test_values_of_any_form_are_shown(tmp_path, junk):
    result = a_result() | dict.fromkeys(("reasons", "warnings", "units", "sites", "formula"), junk)
    folder = a_run(tmp_path / "x.relax", result | {"new": junk})
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["sessions"].append(dict.fromkeys(provenance["sessions"][0], junk))
    (folder / "provenance.json").write_text(json.dumps(provenance))
    assert_harmless(page_of(folder))
    (folder / "provenance.json").write_text(json.dumps(dict.fromkeys(provenance, junk)))
    assert_harmless(page_of(folder))


def test_nothing_from_files_is_markup(tmp_path):
    result = a_result(
        structure=EVIL,
        formula=EVIL,
        reasons=[EVIL],
        warnings=[EVIL],
        units={"energy_eV": EVIL},
        sites=[{EVIL: EVIL}, {EVIL: 1.0}],
    )
    result |= {EVIL: EVIL, "text": [EVIL] * 9, "deep": [[EVIL, {EVIL: EVIL}]], "d": {EVIL: EVIL}}
    folder = tmp_path / "x<b onclick=x>.relax"
    a_run(folder, result, command=[EVIL], device=EVIL, model={EVIL: EVIL, "name": EVIL})
    (folder / "run.log").write_text(EVIL)
    (folder / "config.resolved.yaml").write_text(f"fmax: 1\n{json.dumps(EVIL)}: 2\n")
    (folder / f"{EVIL.replace('/', '_')}.svg").write_text(EVIL)
    page = page_of(folder)
    assert_harmless(page)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.text.count("<script>alert(1)") > 10
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in page_of_plain(tmp_path).tags}
    policy = next(a for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    assert "script-src" not in policy["content"]


def page_of_plain(tmp_path):
    folder = a_run(tmp_path / "plain.relax", a_result(warnings=["one"], reasons=["a"]))
    (folder / "plot.svg").write_text("<svg/>")
    return page_of(folder)


def test_pictures_are_in_the_page(tmp_path):
    folder = a_run(tmp_path / "x.relax", a_result())
    (folder / "a.svg").write_text("<svg/>")
    (folder / "a.png").write_bytes(b"png")
    (folder / "b.svg").write_text("<!--" + "x" * 5 * 10**5)
    (folder / "b.png").write_bytes(b"png")
    (folder / "empty.png").write_bytes(b"")
    sources = [a["src"] for tag, a in page_of(folder).tags if tag == "img"]
    assert sources == ["data:image/svg+xml;base64,PHN2Zy8+", "data:image/png;base64,cG5n"]


def test_no_run_directory(tmp_path):
    with pytest.raises(InputError, match="no such run directory"):
        read_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not a run directory"):
        read_run(tmp_path)
    a_run(tmp_path / "x.relax", None)
    with pytest.raises(InputError, match=r"it contains some: x\.relax"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        read_run(tmp_path / "x.relax" / "run.log")


def test_numbers():
    assert shown(-0.0).text == "0"
    assert shown(True).text == "yes"
    assert shown(1234567.0).text == "1234567"
    assert shown(0.1 + 0.2).exact == repr(0.1 + 0.2)
    assert with_error(20.39861, 0.00752).text == "20.3986 ± 0.0075"
    assert with_error(382.4, 20.0).text == "382 ± 20"
    assert with_error(1.5e-9, 2e-10).text == "1.5e-09 ± 2e-10"
    assert with_error(1.5, None).text == "1.5"


def test_no_value_is_lost():
    """Every number of a result is on its page, in a row or in a table."""
    extra = {"Si": {"coefficient_m2_per_s": 1.25e-9, "error_m2_per_s": 3.5e-10}}
    deep = functools.reduce(lambda inner, _: {"in": inner}, range(100), 42.5)
    values = arrange(a_result(diffusion=extra, lonely_error_eV=0.75, deep=deep))
    texts = [row.cell.exact or row.cell.text for row in values.rows]
    texts += [c.exact or c.text for t in values.tables for line in t.lines for c in line]
    together = " ".join(texts)
    for number in ("-43.373839123456", "-5.4217 ± 0.0012", "0.25", "370", "19.5", "3.5e-10"):
        assert number in together
    assert "0.75" in texts  # an error of nothing that is there
    assert "42.5}" in together


def test_a_phone_scrolls_nothing_but_boxes(tmp_path):
    """In Chromium, 390 px wide: the page is no wider, and no script of a file has run."""
    wide = {f"a rather long quantity {n}_eV": float(n) for n in range(20)}
    result = a_result(
        structure="x" * 300,
        warnings=[EVIL],
        stress_GPa=[[1e5 + n + k for n in range(12)] for k in range(12)],
        records=[wide] * 9,
    )
    folder = a_run(tmp_path / "x.relax", result, command=["dpa3sim", "y" * 400])
    (folder / "a.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="900">'
        "<script>parent.document.title = 'run'</script></svg>"
    )
    (tmp_path / "page.html").write_text(run_page(read_run(folder), "relaxation", OPTIONS))
    (tmp_path / "frame.html").write_text(
        """<!DOCTYPE html><iframe id="f" src="page.html" style="width:390px; height:800px"></iframe>
        <script>onload = () => {
          const page = document.getElementById("f").contentDocument;
          const box = page.querySelector(".box").getBoundingClientRect();
          document.body.textContent = [page.documentElement.scrollWidth, box.width, page.title];
        }</script>"""
    )
    done = subprocess.run(
        [
            *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"),
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    body = done.stdout.partition("<body>")[2].partition("</body>")[0]
    width, box, title = body.strip().split(",")
    assert int(width) <= 390
    assert 300 < float(box) <= 390
    assert title == "x.relax: converged"
