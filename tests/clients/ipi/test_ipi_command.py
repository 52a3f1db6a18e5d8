"""The command ``dpa3sim ipi``: options, messages, exit codes."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from ipi_support import (
    ENVIRONMENT,
    LIMIT,
    SMALL_MODEL,
    WATER,
    ClientThread,
    Toy,
    wait_until,
    water,
    water_hash,
)

from dpa3sim.cli.main import main
from dpa3sim.clients.ipi.evaluator import BatchEvaluator
from dpa3sim.clients.ipi.serving import Settings
from dpa3sim.ipi import serve


def options(server, *more):
    where = ["-u", "-a", server.names[0], "-S", server.prefix]
    return ["ipi", *where, "--structure", str(WATER), "--model", str(SMALL_MODEL), *more]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_batches_from_the_command_line(ipi, capsys):
    server = ipi("t03", steps=2)
    assert main(options(server, "--batch", "8", "-v")) == 0
    assert server.wait() == 0
    out = capsys.readouterr().out
    for text in (
        "hartree and bohr on the wire",
        "warm for batches of 1 and 8",
        f"serving i-PI at {server.address}",
        "call 3: 8 structures of 8",
        "3 calls, 17 structures, 7 padded; mean batch 5.67",
        "waiting for i-PI",
        "i-PI ended",
    ):
        assert text in out


def test_a_committee_from_the_command_line(ipi, capsys):
    server = ipi("t01", steps=1)
    arguments = ["--unix", server.address.path, "--structure", str(WATER)]
    models = ["--model", str(SMALL_MODEL)] * 2
    assert main(["ipi", *arguments, *models, "--extras", "energy_atomic,n_edges"]) == 0
    assert server.wait() == 0
    assert capsys.readouterr().out.count("float64 on cpu") == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the address of i-PI is missing"),
        (["-a", "localhost"], "needs a port"),
        (["-u", "-a", "x", "-p", "3"], "does not have a port"),
        (["--unix", "x", "-a", "y"], "cannot be combined"),
        (["-u", "-a", "x", "--batch", "0"], "batch = 0 must be at least 1"),
        (["-u", "-a", "x", "--extras", "energy"], "unknown extra 'energy'"),
        (["-u", "-a", "x", "--reconect", "1"], "did you mean '--reconnect'"),
    ],
)
def test_bad_usage(arguments, text, capsys):
    assert main(["ipi", *arguments, "--structure", str(WATER), "--model", str(SMALL_MODEL)]) == 2
    assert text in capsys.readouterr().err


def test_subcommands(capsys):
    assert main(["ipi", "pes-path"]) == 0
    assert "DPA3PES" in Path(capsys.readouterr().out.strip()).read_text()
    assert main(["ipi", "pes-pth"]) == 2
    assert "did you mean 'pes-path'" in capsys.readouterr().err


def test_nobody_listens(capsys):
    arguments = ["-u", "-a", "nobody_listens_here", "--wait", "0.1"]
    assert main(["ipi", *arguments, "--structure", str(WATER), "--model", str(SMALL_MODEL)]) == 6
    assert "no i-PI at /tmp/ipi_nobody_listens_here" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["number", "order"])
def test_other_atoms_are_refused(ipi, capsys, wrong):
    token = f"<parameters> {{ dpa3sim_order: {water_hash()} }} </parameters><latency>"
    server = ipi("t01", steps=1, edit=[("<latency>", token)] if wrong == "order" else ())
    atoms = water()[:20] if wrong == "number" else water()[[1, 0, *range(2, 24)]]
    write("other.extxyz", atoms)
    where = ["ipi", "-u", "-a", server.names[0], "-S", server.prefix]
    assert main([*where, "--structure", "other.extxyz", "--model", str(SMALL_MODEL)]) == 2
    assert ("20" if wrong == "number" else water_hash()) in capsys.readouterr().err
    client = ClientThread(server.address, Toy())
    assert server.wait() == 0
    client.done()


def test_what_is_not_finite_is_kept_for_inspection(ipi, capsys, monkeypatch):
    server = ipi("t03", steps=3)
    evaluate = BatchEvaluator.__call__

    def broken(self, cells, positions):
        e, f, w, x = evaluate(self, cells, positions)
        if self.calls == 2:
            f[5, 0, 0] = np.inf
        return e, f, w, x

    monkeypatch.setattr(BatchEvaluator, "__call__", broken)
    assert main(options(server)) == 4
    captured = capsys.readouterr()
    assert "structure 6 of 8" in captured.err
    assert "water8.failed.extxyz" in captured.out
    frames = read("water8.failed.extxyz", ":")
    assert len(frames) == 8
    assert frames[0].get_chemical_formula() == "H16O8"
    np.testing.assert_allclose(frames[0].cell[:], water().cell[:], atol=1e-6)
    assert np.abs(frames[5].positions - water().positions).max() < 0.5


def test_sigterm_answers_and_ends(ipi):
    server = ipi(
        "t01", steps=100_000, edit=[("stride='2' filename='out'", "stride='1' filename='out'")]
    )
    command = [sys.executable, "-m", "dpa3sim", *options(server)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        wait_until(lambda: server.steps() > 5, "some steps")
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "interrupted; the last request of i-PI was answered" in printed
    # The next client goes on.
    steps = server.steps()
    client = ClientThread(server.address, Toy())
    wait_until(lambda: server.steps() > steps + 5, "more steps")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    client.done()


def test_serve_from_python(ipi, smooth):
    server = ipi("t03", steps=1)
    lines = []
    statistics = serve(smooth, water(), server.address.path, Settings(batch=8), say=lines.append)
    assert server.wait() == 0
    assert (statistics.calls, statistics.ending) == (2, "exit")


def test_package_is_lazy():
    code = (
        "import sys, dpa3sim.ipi\n"
        "print([m for m in ('torch', 'numpy', 'ase', 'ipi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.strip() == "[]"
