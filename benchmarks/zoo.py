"""The models at hand side by side: a page from the results of ``dpa3sim validate``.

    dpa3sim validate --model dpa3-openlam a.pth b.safetensors --out zoo
    dpa3sim validate --smooth-cutoff 0.3 --truncate none --out zoo
    python benchmarks/zoo.py zoo zoo.md

Nothing is computed here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpa3sim.report.reading import Run
from dpa3sim.report.validation import read_validations, tables
from dpa3sim.report.values import Table

HEAD = """# Models side by side

`dpa3sim validate` made these checks ([what they are](validate.md)), and
`python benchmarks/zoo.py` wrote this page from its results. In brackets: the deviation from the
measured value; the sources are those of
[validation](validation.md#against-measured-values-and-matcalc). Models differ in their training
data and in the level of theory: deviations from measurements contain the error of the functional.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder that validate wrote")
    parser.add_argument("page", type=Path, help="the Markdown page to write")
    args = parser.parse_args()
    args.page.write_text(page(read_validations(args.folder)), encoding="utf-8")
    print(args.page)


def page(runs: Sequence[Run]) -> str:
    """The page, as Markdown."""
    parts = [HEAD, *(f"## {table.title}\n\n{markdown(table)}" for table in tables(runs))]
    parts.append("## Warnings\n\n" + "\n".join(line for run in runs for line in warnings(run)))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def markdown(table: Table) -> str:
    rows = [list(table.head), ["---"] * len(table.head)]
    rows += [[cell.text for cell in line] for line in table.lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def warnings(run: Run) -> list[str]:
    found = [f"\n**{run.name}**\n"]
    result = run.result or {}
    told = [*result.get("reasons", []), *result.get("warnings", [])]
    return found + [f"- {line}" for line in told]


if __name__ == "__main__":
    main()
