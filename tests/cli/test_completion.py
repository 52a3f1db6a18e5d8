"""The scripts for the TAB key: complete, and static."""

import shutil
import subprocess
import sys

import pytest

from dpa3sim.cli.commands.completion import SHELLS
from dpa3sim.cli.main import COMMANDS

pytest.importorskip("shtab", reason="the scripts are made by shtab")

ASK = {
    # What bash does when TAB is pressed after the words.
    "bash": """\
source {script}
COMP_WORDS=({words} '{last}'); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
function_of_it=$(complete -p dpa3sim | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function_of_it
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "fish": "source {script}; complete -C '{words} {last}'",
}


def shell(name):
    path = shutil.which(name)
    return path or pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for name in SHELLS:
        command = [sys.executable, "-m", "dpa3sim", "completion", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (folder / name).write_text(done.stdout)
    return folder


@pytest.mark.parametrize("name", SHELLS)
def test_syntax(name, scripts):
    subprocess.run([shell(name), "-n", scripts / name], check=True)


@pytest.mark.parametrize("name", SHELLS)
def test_all_commands_are_there_and_nothing_runs_them(name, scripts):
    text = (scripts / name).read_text()
    assert all(command in text for command in [*COMMANDS, "pes-path", "gle-file"])
    assert "python" not in text


@pytest.mark.parametrize("name", ASK)
@pytest.mark.parametrize(
    ("words", "last", "expected", "absent"),
    [
        ("dpa3sim", "ph", ["phonon"], ["relax"]),
        ("dpa3sim relax --cell", "", ["fixed", "full", "shape", "volume", "iso"], ["FIRE"]),
        ("dpa3sim md POSCAR", "--therm", ["--thermostat", "--thermostat-time"], ["--beads"]),
        ("dpa3sim ipi", "in", ["input"], ["check"]),
        ("dpa3sim ipi input --motion", "p", ["pimd", "phonons"], ["nvt"]),
        ("dpa3sim model", "", ["list", "info", "pull"], ["relax"]),
        ("dpa3sim relax", "POS", ["POSCAR"], ["other"]),
        ("dpa3sim phonon --born", "B", ["BORN"], ["POSCAR"]),
        ("dpa3sim relax POSCAR --out", "ru", ["runs/"], ["run.txt"]),
    ],
)
def test_what_tab_gives(name, words, last, expected, absent, scripts, tmp_path):
    for file in ("POSCAR", "BORN", "other", "run.txt"):
        (tmp_path / file).write_text("")
    (tmp_path / "runs").mkdir()
    code = ASK[name].format(script=scripts / name, words=words, last=last)
    done = subprocess.run([shell(name), "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    given = {line.split("\t")[0].strip() for line in done.stdout.splitlines()}
    given |= {f"{word}/" for word in given if (tmp_path / word).is_dir()}
    assert set(expected) <= given
    assert not given & set(absent)
