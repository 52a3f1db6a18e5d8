"""Screenings: any number of structures in, each exactly once in the results, whatever happens."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from tests_support import DATA, ENVIRONMENT

from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError
from dpa3sim.common.files import lock_folder
from dpa3sim.protocols import eos, relax
from dpa3sim.protocols.crystals import relaxation
from dpa3sim.run.directory import PROVENANCE
from dpa3sim.screen import calculation
from dpa3sim.screen.database import NAME, Database
from dpa3sim.screen.results import Results
from dpa3sim.structures.sources import entries

MODEL = DATA / "models/dynamic/model.pt"  # of H and O only
# What every test computes with, in double precision: results do not depend on batches then.
OPTIONS = ["--model", str(MODEL), "--fmax", "0.001", "--steps", "60"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def waters(count, seed=0):
    """Distorted molecules of water, and pairs of them, in boxes."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        atoms = molecule("H2O")
        if k % 3 == 0:
            other = molecule("H2O")
            other.translate([2.9, 0.3, 0.1])
            atoms += other
        atoms.set_cell([7.0 + 0.1 * k] * 3)
        atoms.pbc = True
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        found.append(atoms)
    return found


def screen(*arguments):
    return main(["relax", *arguments, *OPTIONS, "--screen", "run"])


def table(file="run/table.csv"):
    with open(file) as text:
        return list(csv.DictReader(text))


def energies(records):
    return {r["origin"]: float(r["energy_per_atom_eV"]) for r in records if r["energy_per_atom_eV"]}


def child(*arguments):
    """The same screening in a process of its own."""
    command = [sys.executable, "-m", "dpa3sim", "relax", *arguments, *OPTIONS, "--screen", "run"]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(path):
    """How many structures are done, as another process sees it."""
    try:
        with Database(Path(path) / NAME) as database:
            counts = database.counts()
    except InputError:
        return 0
    return sum(counts.values()) - counts["waiting"]


# -- what comes in ------------------------------------------------------------------------------


def test_structures_from_everywhere():
    frames = waters(3)
    write("frames.extxyz", frames)
    Path("folder/deep").mkdir(parents=True)
    write("folder/POSCAR", frames[0], format="vasp")
    write("folder/deep/a.cif", frames[1])
    Path("folder/INCAR").write_text("not a structure")
    with ase.db.connect("some.db") as database:
        for atoms in frames[:2]:
            database.write(atoms)
    with zipfile.ZipFile("all.zip", "w") as archive:
        archive.write("folder/POSCAR", "x/POSCAR")
        archive.write("folder/deep/a.cif", "x/y/a.cif")
    given = ["frames.extxyz", "folder", "some.db", "all.zip", "frames.extxyz@1", "fold*/*/*.cif"]
    found = list(entries(given))
    assert all(isinstance(e.atoms, Atoms) for e in found)
    assert [e.origin for e in found] == [
        *(f"frames.extxyz@{k}" for k in range(3)),
        "folder/POSCAR",
        "folder/deep/a.cif",
        "some.db@1",
        "some.db@2",
        "all.zip:x/POSCAR",
        "all.zip:x/y/a.cif",
        "frames.extxyz@1",
        "folder/deep/a.cif",
    ]
    for entry, k in zip(found, (0, 1, 2, 0, 1, 0, 1, 0, 1, 1, 1), strict=True):
        assert entry.atoms.get_volume() == pytest.approx(frames[k].get_volume(), rel=1e-4)


def test_what_cannot_be_read_keeps_its_place():
    write("good.extxyz", waters(2))
    text = Path("good.extxyz").read_text()
    Path("broken.extxyz").write_text(text + "3\nLattice=oops\nH 0 0\n")
    Path("empty.cif").write_text("")
    Path("none").mkdir()
    with zipfile.ZipFile("evil.zip", "w") as archive:
        archive.writestr("../../outside.xyz", "1\n\nH 0 0 0\n")
        archive.writestr("inner.zip", "x")
    found = list(entries(["broken.extxyz", "empty.cif", "none", "*.nothing", "evil.zip", "absent"]))
    good = [isinstance(e.atoms, Atoms) for e in found]
    assert good == [True, True, False, False, False, False, True, False, False]
    assert not Path("../../outside.xyz").exists()
    for entry in found:
        if isinstance(entry.atoms, InputError):
            assert "\n" not in str(entry.atoms)
            assert entry.origin in str(entry.atoms)


# -- what comes out -----------------------------------------------------------------------------


def test_each_like_alone():
    frames = waters(9)
    write("in.extxyz", frames)
    assert screen("in.extxyz") in (0, 3)
    potential = Potential(MODEL)
    settings = relax.Settings(fmax=0.001, steps=60)
    found = table()
    assert [r["origin"] for r in found] == [f"in.extxyz@{k}" for k in range(9)]
    for record, atoms in zip(found, read("in.extxyz", ":"), strict=True):
        alone = relax.run(atoms, potential, settings).to_dict()
        assert float(record["energy_per_atom_eV"]) == pytest.approx(
            alone["energy_per_atom_eV"], abs=1e-9
        )
        assert int(record["n_steps"]) == alone["n_steps"]
        assert record["state"] == ("done" if alone["converged"] else "not_converged")


def test_failures_stop_nobody(capsys):
    close = molecule("H2O")
    close.positions[:] = 0.0
    write("in.extxyz", [*waters(3), bulk("Cu"), close, *waters(2, seed=1)])
    Path("empty.cif").write_text("")
    assert screen("in.extxyz", "empty.cif") == 5
    records = table()
    assert [r["state"] == "failed" for r in records] == [False] * 3 + [True] * 2 + [False] * 2 + [
        True
    ]
    assert "unknown element 'Cu'" in records[3]["error"]
    assert records[7]["error"] == "empty.cif: the file is empty"
    out = capsys.readouterr().out
    assert "3 failed" in out
    assert "Traceback" not in out
    assert main(["status", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == 3
    assert not told["running"]


def test_again_computes_nothing_and_takes_what_is_new(capsys):
    write("in.extxyz", waters(3))
    assert screen("in.extxyz") in (0, 3)
    before = table()
    code = screen("in.extxyz")
    assert "0 to do" in capsys.readouterr().out
    assert [r["finished"] for r in table()] == [r["finished"] for r in before]
    write("more.extxyz", waters(2, seed=5))
    assert screen("in.extxyz", "more.extxyz") == code
    assert [r["attempts"] for r in table()] == ["1"] * 5
    # A file that could not be read is tried again.
    assert screen("in.extxyz", "late.xyz") == 5
    write("late.xyz", waters(1, seed=9)[0], format="extxyz")
    assert screen("in.extxyz", "late.xyz") in (0, 3)
    assert len(table()) == 6


def test_more_steps_continue_what_ran_out(capsys, monkeypatch):
    write("in.extxyz", waters(3))
    command = ["relax", "in.extxyz", "--model", str(MODEL), "--fmax", "0.02", "--screen", "run"]
    assert main([*command, "--steps", "1"]) == 3
    assert {r["state"] for r in table()} == {"not_converged"}
    assert main(["retry", "run", "--not-converged", "--steps", "2"]) == 3
    assert {r["n_steps"] for r in table()} == {"2"}
    counted = []
    step = relaxation._measure
    monkeypatch.setattr(relaxation, "_measure", lambda *a: counted.append(a[-1]) or step(*a))
    assert main([*command, "--steps", "900"]) == 0
    assert sorted(counted)[:4] == [2, 2, 2, 3]  # where they stopped
    assert {r["attempts"] for r in table()} == {"3"}
    capsys.readouterr()
    assert main(["retry", "run"]) == 0  # nothing failed
    assert "0 to do" in capsys.readouterr().out


def test_a_relaxation_under_way_continues_where_it_was_saved(monkeypatch):
    write("in.extxyz", waters(4))
    monkeypatch.setattr(calculation, "SAVE_SECONDS", 0.0)
    command = ["relax", "in.extxyz", "--model", str(MODEL), "--fmax", "1e-3", "--screen", "run"]
    with monkeypatch.context() as patch:
        save, calls = Database.save_progress, []

        def interrupted(self, number, progress):
            save(self, number, progress)
            calls.append(json.loads(progress)["steps"][-1]["index"])
            if len(calls) == 21:
                raise KeyboardInterrupt

        patch.setattr(Database, "save_progress", interrupted)
        assert main([*command, "--steps", "40"]) == 130
    begun = []
    run = relax.run

    def continued(atoms, *arguments, history, **named):
        begun.append(history[-1].index)
        return run(atoms, *arguments, history=history, **named)

    monkeypatch.setattr(relax, "run", continued)
    main([*command, "--steps", "40"])
    assert len(begun) == 4
    assert min(begun) >= 4
    rows = table()
    with Results(Path("run")).parts[0].database as database:
        for number, row in enumerate(rows, start=1):
            first = Potential(str(MODEL)).evaluate([database.input(number)])[0]
            assert float(row["energy_initial_eV"]) == pytest.approx(first.energy, abs=1e-5)
            assert (database.progress(number) is None) == (row["state"] == "done")


def test_single_points():
    write("in.extxyz", waters(3))
    assert main(["sp", "in.extxyz", "--model", str(MODEL), "--screen", "run"]) == 0
    potential = Potential(MODEL)
    for record, atoms in zip(table(), read("in.extxyz", ":"), strict=True):
        (alone,) = potential.evaluate([atoms])
        assert float(record["energy_eV"]) == pytest.approx(alone.energy, abs=1e-9)
        assert np.allclose(json.loads(record["forces_eV_per_A"]), alone.forces, atol=1e-9)


def test_properties_one_after_the_other(embedded):
    """A protocol that makes batches itself."""
    write("in.extxyz", [bulk("Cu"), molecule("H2O")])
    options = {"points": 6, "relax": False}
    assert main(["eos", "in.extxyz", "--points", "6", "--no-relax", "--screen", "run"]) == 5
    copper, water = table()
    alone = eos.run(bulk("Cu"), embedded, eos.Settings(**options)).to_dict()
    assert float(copper["bulk_modulus_GPa"]) == pytest.approx(alone["bulk_modulus_GPa"], rel=1e-6)
    assert water["state"] == "failed"
    assert "need a crystal" in water["error"]


# -- interruptions ------------------------------------------------------------------------------


def kill_until_done(folder, signals, wait):
    """Start the screening again after each signal; how often it was cut off."""
    cut = 0
    for signum in signals:
        process = child("in.extxyz")
        before, end = finished(folder), time.monotonic() + 120
        while finished(folder) < before + wait and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signum)
        out, _ = process.communicate(timeout=60)
        assert "Traceback" not in out
        if process.returncode in (-signal.SIGKILL, 130):
            cut += 1
    process = child("in.extxyz")
    process.communicate(timeout=300)
    return cut


@pytest.mark.slow
def test_killed_and_interrupted():
    frames = waters(60)
    write("in.extxyz", frames)
    assert kill_until_done("run", [signal.SIGKILL, signal.SIGINT], wait=3) == 2
    records = table()
    assert [r["origin"] for r in records] == [f"in.extxyz@{k}" for k in range(60)]
    assert {r["attempts"] for r in records} == {"1"}
    os.rename("run", "cut")
    screen("in.extxyz")
    assert energies(table()) == pytest.approx(energies(records), abs=1e-9)


@pytest.mark.slow
def test_killed_ten_times():
    write("in.extxyz", waters(500))
    assert kill_until_done("run", [signal.SIGKILL] * 10, wait=10) == 10
    records = table()
    assert [r["origin"] for r in records] == [f"in.extxyz@{k}" for k in range(500)]
    assert {r["attempts"] for r in records} == {"1"}


def test_a_full_disk_ends_it_with_what_is_saved(monkeypatch, capsys):
    write("in.extxyz", waters(12))
    finish, calls = Database.finish, []

    def filling(self, number, outcome):
        calls.append(number)
        if len(calls) == 3:  # from now on the file cannot grow
            self._connection.execute("PRAGMA max_page_count = 1")
        finish(self, number, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "finish", filling)
        assert screen("in.extxyz") == 2
    error = capsys.readouterr().err
    assert "full" in error
    assert error.count("\n") == 1
    saved = finished("run")
    assert 2 <= saved < 12
    assert screen("in.extxyz") in (0, 3)
    assert {r["attempts"] for r in table()} == {"1"}


# -- shards and workers -------------------------------------------------------------------------


def test_shards_give_the_same_table(capsys):
    write("in.extxyz", waters(10))
    screen("in.extxyz")
    whole = table()
    for shard in ("1/2", "2/2"):
        assert main(["relax", "in.extxyz", *OPTIONS, "--screen", "parts", "--shard", shard]) in (
            0,
            3,
        )
    assert main(["export", "parts", "parts.csv"]) == 0
    parts = table("parts.csv")
    assert [r["origin"] for r in parts] == [r["origin"] for r in whole]
    assert energies(parts) == pytest.approx(energies(whole), abs=1e-9)
    for part in Results(Path("parts")).parts:
        assert 0 < sum(part.database.counts().values()) < 10
    capsys.readouterr()
    assert main(["status", "parts"]) == 0
    assert capsys.readouterr().out.count("shard-") == 2
    for arguments in (["--screen", "parts"], ["--screen", "parts", "--shard", "1/3"]):
        assert main(["relax", "in.extxyz", *OPTIONS, *arguments]) == 2


@pytest.mark.slow
def test_workers_of_parsl_give_the_same_table_though_one_dies():
    pytest.importorskip("parsl", reason="parsl is not installed")
    write("in.extxyz", waters(24))
    screen("in.extxyz")
    whole = table()
    command = [sys.executable, "-m", "dpa3sim", "relax", "in.extxyz", *OPTIONS]
    command += ["--screen", "many", "--executor", "parsl", "--workers", "3", "--chunk", "3"]
    process = subprocess.Popen(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while finished("many") < 3:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(busiest_worker(Path("many").resolve()), signal.SIGKILL)
    assert process.wait(timeout=200) in (0, 3)
    many = table("many/table.csv")
    assert [r["origin"] for r in many] == [r["origin"] for r in whole]
    assert {r["attempts"] for r in many} == {"1"}
    assert energies(many) == pytest.approx(energies(whole), abs=1e-6)


def busiest_worker(folder):
    """The process that computes most for a screening; Parsl starts them detached."""
    import psutil

    pools = [p for p in psutil.process_iter() if "process_worker_pool.py" in " ".join(p.cmdline())]
    workers = [
        worker
        for pool in pools
        if any(str(folder) in word for word in pool.cmdline())
        for worker in pool.children()
    ]
    return max(workers, key=lambda p: sum(p.cpu_times()[:2])).pid


def test_script_for_shards(capsys):
    command = ["shard-script", "8", "--", "relax", "in/*.cif", "--cell", "full", "--screen", "run"]
    assert main(command) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "#SBATCH --array=1-8\n" in script
    assert "relax 'in/*.cif' --cell full --screen run --shard" in script
    assert main(["shard-script", "8", "--", "relax", "a.cif"]) == 2
    assert "--screen" in capsys.readouterr().err


# -- export and refusals ------------------------------------------------------------------------


def test_export(capsys):
    frames = waters(4)
    write("in.extxyz", [*frames, bulk("Cu")])
    assert screen("in.extxyz") == 5
    for name in ("out.csv", "out.extxyz", "out.db"):
        assert main(["export", "run", name, "--states", "done,not_converged"]) == 0
    records = table("out.csv")
    assert len(records) == 4
    for atoms, record in zip(read("out.extxyz", ":"), records, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(float(record["energy_eV"]), abs=1e-7)
        assert atoms.info["origin"] == record["origin"]
    rows = list(ase.db.connect("out.db").select())
    assert [row.energy for row in rows] == pytest.approx([float(r["energy_eV"]) for r in records])
    assert main(["export", "run", "out.doc"]) == 2
    assert main(["export", "run", "out.csv", "--states", "good"]) == 2
    assert main(["export", "run", "no/where.csv"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_export_of_typed_columns():
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write("in.extxyz", [*waters(2), bulk("Cu")])
    screen("in.extxyz")
    assert main(["export", "run", "out.parquet"]) == 0
    columns = pq.read_table("out.parquet").to_pydict()
    assert columns["energy_eV"][0] == float(table()[0]["energy_eV"])
    assert columns["energy_eV"][2] is None


def test_refusals(capsys):
    write("in.extxyz", waters(2))
    assert screen("in.extxyz") in (0, 3)
    capsys.readouterr()

    def refused(*arguments):
        assert main([*arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "Traceback" not in error
        return error

    again = ["relax", "in.extxyz", *OPTIONS, "--screen", "run"]
    assert "different calculation" in refused(*again, "--optimizer", "FIRE")
    assert "--shard" in refused("relax", "in.extxyz", "--shard", "1/2")
    assert "write I/N" in refused(*again, "--shard", "3/2")
    handle = lock_folder(Path("run/run.log"))
    assert "another process" in refused(*again)
    if handle is not None:
        os.close(handle)
    write("in.extxyz", waters(2, seed=3))
    assert "in.extxyz@0: is another structure" in refused(*again)
    assert "no results" in refused("status", ".")
    assert "born" in refused("phonon", "in.extxyz", "--screen", "x", "--born", "BORN")
    Path("run", NAME).write_bytes(b"SQLite format 3\0" + bytes(2000))
    refused("status", "run")
    refused("export", "run", "a.csv")
    Path("run", PROVENANCE).write_text("{")
    refused("retry", "run")
