"""Every section of a page that code, tests or pages cite is there: ``docs/PAGE.md#SECTION``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_pages import ROOT, anchors

FOLDERS = ("dpa3sim", "protocols", "tests", "benchmarks", "docs", "examples")
SUFFIXES = {".py", ".cpp", ".hpp", ".md", ".html", ".xml"}
FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in SUFFIXES and path != Path(__file__).resolve()
)
CITATION = re.compile(r"\bdocs/([\w./-]*\.md)(?:#([\w-]*))?")
# Sections by number or by a code say nothing to readers, and nothing checks them.
UNREADABLE = re.compile(
    r"\bspec/|\bspec(ification)?,? (section |trap |\d|[A-Z]\d)|\btraps? T\d|\bthe spec\b"
    r"|\bT\d+: |\((?:[ET]\d+(?:, )?)+\)|\(\d\.\d\)\.\"\"\""
)


def citations(text: str) -> Iterator[tuple[str, str | None]]:
    """Pages, relative to docs/, and the sections of them that a text cites."""
    for match in CITATION.finditer(text):
        yield match.group(1), match.group(2)


def broken(text: str) -> list[str]:
    """The citations of a text that lead nowhere."""
    found = []
    for page, section in citations(text):
        path = ROOT / "docs" / page
        if not path.is_file() or (section is not None and section not in anchors(path)):
            found.append(f"docs/{page}" + (f"#{section}" if section is not None else ""))
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_citations_resolve(path):
    text = path.read_text(encoding="utf-8")
    assert not broken(text)
    assert not UNREADABLE.search(text), UNREADABLE.search(text)


def test_citations_are_found():
    """What the tests above look for is there, in every kind of file."""
    for folder, fewest in {
        "dpa3sim": 40,
        "protocols": 10,
        "dpa3sim/kernels/src": 1,
        "tests": 5,
    }.items():
        files = [path for path in FILES if path.is_relative_to(ROOT / folder)]
        cited = [section for f in files for _, section in citations(f.read_text(encoding="utf-8"))]
        assert len([section for section in cited if section]) >= fewest, folder


def test_what_is_broken_is_told():
    text = "see docs/model.md#options, docs/model.md#no-such-section (docs/nowhere.md#options)."
    assert broken(text) == ["docs/model.md#no-such-section", "docs/nowhere.md#options"]
    assert broken("docs/model.md#") == ["docs/model.md#"]
    assert broken("a docs/tutorials/phonons.md, and docs/model.md.") == []


@pytest.mark.parametrize(
    "text",
    [
        "(spec 1.5)",
        "spec/engine.md 1.6",
        "of spec trap T2",
        "bare trap T2)",
        "traps T1 and T2",
        "(spec P1)",
        "the stable order of the spec",
        '"""T4: what is conserved',
        'with or without EMA (2.1)."""',
        "models (T0, T1, T14).",
    ],
)
def test_old_citations_are_told(text):
    assert UNREADABLE.search(text)


@pytest.mark.parametrize("text", ["find_spec('x')", "spec is not None", '("T2", 268.6)', "(T)"])
def test_other_words_are_not(text):
    assert not UNREADABLE.search(text)


def test_sections_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n## Inside i-PI's process\n## Twice\n```bash\n# no\n```\n## Twice\n")
    assert anchors(page) == {"a-page", "inside-i-pis-process", "twice", "twice-1"}
