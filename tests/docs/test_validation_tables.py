"""The tables of docs/validation.md are those of the numbers beside it."""

import importlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_has_the_tables_of_its_numbers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    validation = importlib.import_module("validation")
    results = json.loads((ROOT / "docs" / "validation.json").read_text(encoding="utf-8"))
    document = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")
    _, _, rest = document.partition(validation.START)
    assert rest.partition(validation.END)[0].strip() == validation.report(results)
