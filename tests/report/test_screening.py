"""The page of a screening: counts, failures by error, a table that sorts, and nothing harmful."""

import subprocess
from types import SimpleNamespace

import pytest
from report_support import Page, a_run, assert_harmless, browser

from dpa3sim.common.errors import InputError
from dpa3sim.report.page import Option
from dpa3sim.report.reading import read_run
from dpa3sim.report.screening import MOST_ROWS, Screening, collect, screening_page

OPTIONS = (Option("fmax", "largest force", "eV/Å", 0.01),)
EVIL = "</script><script>alert(1)</script><b onclick=x>"


def structure(number, state="done", **changes):
    """A row of the database of a screening."""
    result = {
        "energy_eV": -2.0 * number,
        "energy_per_atom_eV": -1.0 * number,
        "volume_A3": 20.0 + number,
        "spacegroup_final": "Fm-3m (225)",
        "stress_GPa": [[0.0] * 3] * 3,
    }
    fields = {
        "id": number,
        "label": f"s{number}",
        "origin": f"in/s{number}.cif",
        "formula": "MgO",
        "n_atoms": 2,
        "state": state,
        "exit_code": 0,
        "error": None,
        "attempts": 1,
        "seconds": 1.5,
        "result": result if state in ("done", "not_converged") else None,
    }
    return SimpleNamespace(**fields | changes)


def several():
    yield from (structure(n) for n in range(1, 6))
    yield structure(6, "not_converged")
    for number in (7, 8, 9):
        error = f"in/s{number}.cif: atoms {number} and 1 are 0.0{number} Å apart"
        yield structure(number, "failed", error=error, exit_code=2)
    yield structure(10, "failed", error="the model returned NaN", exit_code=4)
    yield structure(11, "waiting", attempts=0, seconds=None, exit_code=None)


def page_of(tmp_path, rows, **session):
    part = a_run(tmp_path / "many", None, **session)
    found = collect(rows, "relax")
    screening = Screening("many", [read_run(part)], found)
    return screening_page(screening, "relaxation", OPTIONS)


def test_counts_failures_and_table(tmp_path):
    page = Page(page_of(tmp_path, several()))
    assert "5 done, 1 not converged, 4 failed, 1 waiting" in page.text
    assert "unfinished" in page.text
    assert "pace" in page.text
    failures = next(t for t in page.tables if t[0][0] == "error")
    # Alike errors are one, whatever the structures and numbers are.
    assert failures[1] == ["atoms 7 and 1 are 0.07 Å apart", "3", "s7, s8, s9"]
    assert failures[2][:2] == ["the model returned NaN", "1"]
    table = next(t for t in page.tables if t[0][0] == "label")
    head = dict(zip(table[0], table[2], strict=True))
    assert head["label"] == "s2"
    assert head["state"] == "done"
    assert head["energy per atom (eV/atom)"] == "-2"
    assert head["volume per atom (Å³/atom)"] == "11"
    assert head["spacegroup final"] == "Fm-3m (225)"
    assert head["time (s)"] == "1.5"
    assert not any("stress" in name for name in head)
    assert len(table) == 12
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 2
    assert "energy per atom (eV/atom) against volume per atom" in page.text
    assert_harmless(page)


@pytest.mark.parametrize(
    ("states", "kind", "word"),
    [
        (["done"], "good", "complete"),
        (["done", "failed"], "doubtful", "complete, with failures"),
        (["failed"], "bad", "complete, with failures"),
        (["done", "waiting"], "doubtful", "unfinished"),
        ([], "good", "complete"),
    ],
)
def test_states(tmp_path, states, kind, word):
    page = Page(page_of(tmp_path, [structure(n, s) for n, s in enumerate(states, 1)]))
    (shown,) = [a["class"] for tag, a in page.tags if tag == "section" and "state" in a["class"]]
    assert shown == f"state {kind}"
    assert word in page.text


def test_a_damaged_database_is_told_with_what_could_be_read(tmp_path):
    def broken():
        yield structure(1)
        raise InputError("results.sqlite: cannot be used (database disk image is malformed)")

    page = Page(page_of(tmp_path, broken()))
    assert "damaged" in page.text
    assert "malformed" in page.text
    assert page.line("s1")


def test_long_tables_end(tmp_path):
    page = Page(page_of(tmp_path, (structure(n) for n in range(1, MOST_ROWS + 11))))
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 10}; dpa3sim export" in page.text
    assert len(next(t for t in page.tables if t[0][0] == "label")) == MOST_ROWS + 1


def test_results_without_those_numbers_have_no_plots(tmp_path):
    rows = [structure(n, result={EVIL: EVIL, "energy_per_atom_eV": "x"}) for n in range(4)]
    page = Page(page_of(tmp_path, rows))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.line("s1")


def test_nothing_from_the_database_is_markup(tmp_path):
    rows = [
        structure(1, label=EVIL, formula=EVIL, origin=EVIL, result={EVIL: EVIL}),
        structure(2, state=EVIL, error=EVIL, label=EVIL),
    ]
    page = Page(page_of(tmp_path, rows))
    assert_harmless(page)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "b" and "onclick" in attributes for tag, attributes in page.tags)
    assert page.text.count("alert(1)") >= 4


def test_the_table_sorts(tmp_path):
    """In Chromium: a press on a head orders numbers as numbers, and the policy lets it."""
    rows = [structure(n, label=f"s{n}") for n in (3, 10, 1, 2)]
    rows.append(structure(4, "failed", error="x"))
    content = page_of(tmp_path, rows)
    (tmp_path / "page.html").write_text(content)
    (tmp_path / "frame.html").write_text(
        """<!DOCTYPE html><iframe id="f" src="page.html" style="width:390px; height:800px"></iframe>
        <script>onload = () => {
          const page = document.getElementById("f").contentDocument;
          const order = () => [...page.querySelectorAll(".sortable tbody tr")]
            .map(row => row.cells[0].textContent).join(" ");
          const head = [...page.querySelectorAll(".sortable th button")]
            .find(button => button.textContent.startsWith("energy per atom"));
          const seen = [order()];
          head.click(); seen.push(order());
          head.click(); seen.push(order());
          document.body.textContent = seen.join(",") + "," + page.documentElement.scrollWidth;
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
    *orders, width = body.strip().split(",")
    assert orders == ["s3 s10 s1 s2 s4", "s10 s3 s2 s1 s4", "s1 s2 s3 s10 s4"]
    assert int(width) <= 390
