"""Run directories as commands leave them, made by hand, and pages taken apart."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "img", "br", "hr", "link", "input"}
STARTED, ENDED = "2026-01-02T03:04:05+0000", "2026-01-02T03:06:10+0000"
UNITS = {
    "energy_eV": "eV",
    "energy_per_atom_eV": "eV/atom",
    "energy_error_per_atom_eV": "eV/atom",
    "stress_GPa": "GPa",
    "temperatures_K": "K",
    "heat_capacity_J_per_K_mol": "J/K/mol",
    "volume_A3": "Å^3",
}


def a_result(**changes: Any) -> dict[str, Any]:
    """A result with every kind of value."""
    return {
        "schema_version": 1,
        "protocol": "relax",
        "structure": "POSCAR",
        "converged": True,
        "reasons": ["forces and stress are below the threshold"],
        "warnings": [],
        "formula": "Si8",
        "n_atoms": 8,
        "energy_eV": -43.373839123456,
        "energy_per_atom_eV": -5.4217,
        "energy_error_per_atom_eV": 0.0012,
        "volume_A3": None,
        "stress_GPa": [[1.5, 0.25, 0.0], [0.25, -2.5, 0.0], [0.0, 0.0, 0.125]],
        "temperatures_K": [10.0 * n for n in range(40)],
        "heat_capacity_J_per_K_mol": [0.5 * n for n in range(40)],
        "sites": [{"element": "Si", "energy_eV": 1.25}, {"element": "O", "energy_eV": 2.5}],
        "units": UNITS,
        **changes,
    }


def a_run(folder: Path, result: dict[str, Any] | None, **session: Any) -> Path:
    """Write a run directory; keywords change the last session."""
    folder.mkdir()
    session = {
        "started": STARTED,
        "ended": ENDED,
        "exit_code": 0,
        "command": ["dpa3sim", "relax", "my file.vasp", "--fmax", "0.02"],
        "dpa3sim": "0.1.0",
        "python": "3.11.4",
        "platform": "Linux",
        "packages": {"torch": "2.9", "ipi": None},
        "device": "cpu",
        "kernels": "avx2",
        "evaluations": {"asked": 7, "computed": 5},
        "model": {"name": "dpa3-openlam", "sha256": "ab" * 32, "origin": {"file": "x.pth"}},
        **session,
    }
    calculation = {"protocol": "relax", "structure": "POSCAR"}
    provenance = {"fingerprint": "0", "calculation": calculation, "sessions": [session]}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "config.resolved.yaml").write_text("fmax: 0.02\ncell: fixed\nmodel: dpa3-openlam\n")
    (folder / "run.log").write_text(f"{STARTED} step 0\n{ENDED} results in here\n")
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """An HTML page taken apart; fails where it is not well-formed.

    Attributes:
        text: all text. tables: the texts of their cells, by line. tags: names and attributes.
    """

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> of nothing"
        assert self._open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "script" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def line(self, name: str) -> list[str]:
        """The line of any table that begins with this cell."""
        return next(line for table in self.tables for line in table if line[0] == name)

    def ids(self) -> set[str | None]:
        """What can be linked to."""
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


def assert_harmless(page: Page) -> None:
    """No script that is not ours, nothing from elsewhere, no links into nothing."""
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "link", "form", "base")
        assert not any(name.startswith("on") for name in attributes)
        if "src" in attributes:
            assert (attributes["src"] or "").startswith("data:image/")
        if "href" in attributes:
            assert (attributes["href"] or "")[0] == "#"
            assert (attributes["href"] or "")[1:] in page.ids()


def browser() -> str:
    """A Chromium; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no chromium or google-chrome on the PATH")
