"""Unlucky circumstances: full disks, closed folders, other processes, no memory."""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from tests_support import DATA, ENVIRONMENT

from dpa3sim.cli.main import GROUPS, main
from dpa3sim.common import files
from dpa3sim.common.files import lock_folder
from dpa3sim.potential.potential import Potential

MODEL = str(DATA / "models/dynamic/model.pt")
RELAX = ["relax", "water.xyz", "--model", MODEL, "--no-plot", "--fmax", "1e-3"]
MD = ["md", "water.xyz", "--model", MODEL, "--no-plot", "--steps", "40", "--interval", "1"]
MD += ["--checkpoint", "10", "--temperature", "5"]
# Commands that have a run directory.
RUNS = [*GROUPS["structures"], *GROUPS["properties of crystals"], "neb", "md", "pimd"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stretched = molecule("H2O")
    stretched.positions *= 1.15
    write("water.xyz", stretched)
    write("Si.vasp", bulk("Si", cubic=True), format="vasp")
    ammonia = molecule("NH3")
    write("a.xyz", ammonia)
    ammonia.positions[:, 2] *= -1
    write("b.xyz", ammonia)
    return tmp_path


@contextmanager
def file_size(limit):
    """No file can become longer: a full disk, without one."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def one_line(capsys):
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("dpa3sim: error: ")
    return err


# -- the disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [300, 1000, 2500])
def test_full_disk_while_relaxing(limit, capsys):
    with file_size(limit):
        assert main(RELAX) == 2
    assert "make room" in one_line(capsys)
    for name in ("provenance.json", "checkpoint.json"):
        path = Path("water.relax") / name
        assert not path.exists() or json.loads(path.read_text())
    assert not list(Path("water.relax").glob("*.part"))
    # Nothing saved was lost: the same command continues and ends as if nothing had happened.
    assert main(RELAX) == 0
    assert main([*RELAX, "--out", "undisturbed"]) == 0
    energies = [
        json.loads((Path(folder) / "result.json").read_text())["energy_eV"]
        for folder in ("water.relax", "undisturbed")
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-4)
    frames = read("water.relax/trajectory.extxyz", index=":")
    assert [f.info["index"] for f in frames] == list(range(len(frames)))


@pytest.mark.parametrize("limit", [4000, 9000])
def test_full_disk_in_a_simulation(limit, capsys):
    assert main([*MD, "--out", "undisturbed"]) == 0
    capsys.readouterr()
    with file_size(limit):
        assert main(MD) == 2
    assert "make room" in one_line(capsys)
    assert main(MD) == 0
    for name in ("thermo.csv", "trajectory.extxyz"):
        assert Path("water.md", name).read_bytes() == Path("undisturbed", name).read_bytes()


def test_full_disk_under_saved_evaluations(capsys, embedded64, monkeypatch):
    monkeypatch.setattr(Potential, "load", lambda settings, model=None: embedded64)
    command = ["eos", "Si.vasp", "--no-plot"]
    with file_size(20_000):
        assert main(command) == 2
    assert "make room" in one_line(capsys)
    assert not Path("Si.eos/result.json").exists()
    assert main(command) == 0


def test_closed_folder(capsys, monkeypatch):
    assert main([*RELAX, "--out", "water.xyz/x"]) == 2
    assert "cannot be used as run directory" in one_line(capsys)

    def closed(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dpa3sim.run.directory.atomic_write", closed)
    assert main(RELAX) == 2
    assert "provenance.json: Permission denied" in one_line(capsys)


def test_one_full_disk_of_two(capsys, monkeypatch):
    """What happens to one calculation does not end the others."""
    write("b.xyz", molecule("H2"))
    real = files.atomic_write

    def full(path, content):
        if "water" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr("dpa3sim.run.directory.atomic_write", full)
    assert main(["relax", "water.xyz", "b.xyz", "--model", MODEL, "--no-plot"]) == 5
    assert Path("b.relax/result.json").exists()
    assert "No space left" in one_line(capsys)


# -- other processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", RUNS)
def test_a_folder_belongs_to_one_process(command, capsys, monkeypatch, embedded):
    monkeypatch.setattr(Potential, "load", lambda settings, model=None: embedded)
    folder = Path(f"here.{command}")
    folder.mkdir()
    for name in ("run.log", "provenance.json", "evaluations.sqlite"):
        (folder / name).write_text("{}")
    structures = {"neb": ["a.xyz", "b.xyz"], "pimd": ["a.xyz"]}.get(command, ["Si.vasp"])
    arguments = [command, *structures, "--out", str(folder), "--no-plot", "--quiet"]
    lock = lock_folder(folder / "run.log")
    assert lock is not None
    try:
        for more in ([], ["--force"]):
            assert main([*arguments, *more]) == 2
            assert f"{folder}: another process is running" in one_line(capsys)
    finally:
        os.close(lock)
    assert len(list(folder.iterdir())) == 3


def test_two_processes_at_once():
    """Whichever comes second is told; the first one is not disturbed."""
    arguments = [sys.executable, "-m", "dpa3sim", *RELAX, "--fmax", "1e-8", "--steps", "3000"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(arguments, env=ENVIRONMENT, **pipes) for _ in range(2)]
    ends = [(p.communicate(timeout=120)[1], p.returncode) for p in both]
    codes = sorted(code for _, code in ends)
    if 2 in codes:  # else the second came when all was done
        assert codes in ([0, 2], [2, 3]), ends
        assert any("water.relax: another process" in err for err, _ in ends)
    frames = read("water.relax/trajectory.extxyz", index=":")
    assert [f.info["index"] for f in frames] == list(range(len(frames)))


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_no_memory(error, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Potential, "evaluate_each", fail)
    assert main(RELAX) == 2
    assert "memory" in one_line(capsys)
    monkeypatch.setattr(Potential, "load", fail)
    assert main(RELAX) == 2
    assert "memory" in one_line(capsys)


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Potential, "load", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(RELAX)


# -- clocks, names, terminals ----------------------------------------------------------------------


def test_a_clock_that_goes_backwards(monkeypatch):
    """Only labels come from the clock of the wall."""
    now = iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "strftime", lambda form: time.asctime(time.gmtime(next(now))))
    assert main([*RELAX, "--steps", "3"]) == 3
    assert main(RELAX) == 0
    frames = read("water.relax/trajectory.extxyz", index=":")
    assert [f.info["index"] for f in frames] == list(range(len(frames)))
    sessions = json.loads(Path("water.relax/provenance.json").read_text())["sessions"]
    assert [s["exit_code"] for s in sessions] == [3, 0]


def test_names_and_terminals_that_are_no_text():
    name = os.fsdecode(b"w\xff\n.xyz")
    write("x.xyz", Atoms("OH2", molecule("H2O").positions))
    Path("x.xyz").rename(name)
    done = subprocess.run(
        [sys.executable, "-m", "dpa3sim", "relax", name, "--model", MODEL, "--no-plot"],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\\xc5" in done.stdout  # Å
    folder = Path(os.fsdecode(b"w\xff\n.relax"))
    assert json.loads((folder / "result.json").read_text())["converged"] is True
