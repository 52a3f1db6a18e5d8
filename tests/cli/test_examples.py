"""The examples give the output that they promise, and so does the README's first command."""

import ast
import re
import subprocess
import sys

import pytest
from tests_support import EXAMPLES

from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structure

SCRIPTS = sorted(EXAMPLES.glob("*.py"))
LONG = (
    "md_copper.py",
    "phonon_silicon.py",
    "elastic_silicon.py",
    "relax_together.py",
    "strange_silicon.py",
)
STRUCTURES = [p for p in sorted(EXAMPLES.iterdir()) if p.suffix not in (".py", ".md", "")]


@pytest.mark.parametrize(
    "script",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.name in LONG)) for p in SCRIPTS],
    ids=lambda p: p.name,
)
def test_script_prints_what_it_says(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    promised = docstring.split("Prints:\n")[1].splitlines()
    assert [line.strip() for line in promised] == done.stdout.splitlines()


@pytest.mark.parametrize("path", [*STRUCTURES, EXAMPLES / "POSCAR"], ids=lambda p: p.name)
def test_structure_can_be_evaluated(path, embedded):
    given = ReadingSettings("O,H") if path.suffix == ".lmp" else None  # as its README says
    embedded.check(read_structure(str(path), given).atoms)


def test_readme_of_the_examples_lists_every_file():
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.name not in ("README.md", "__pycache__"):
            assert path.name in text


def test_readme_shows_the_real_output(tmp_path):
    """What does not depend on rounding in the output that README.md shows."""
    root = EXAMPLES.parent
    readme = (root / "README.md").read_text()
    relax = [sys.executable, "-m", "dpa3sim", "relax", "examples/POSCAR", "--cell", "full"]
    out = ["--no-plot", "--out", str(tmp_path / "POSCAR.relax")]
    done = subprocess.run([*relax, *out], capture_output=True, text=True, cwd=root, check=True)
    shown = readme.split("--cell full\n```\n\n```text\n")[1].split("```")[0].splitlines()
    printed = done.stdout.splitlines()

    def stable(line):
        return re.sub(r"\d+\.\d+", lambda m: f"{float(m.group()):.1f}", line)

    for line in shown[2:4]:  # the first steps
        assert stable(line) in [stable(p) for p in printed]
    assert shown[0] == printed[0]
    assert shown[-2] == printed[-2]  # the space groups
