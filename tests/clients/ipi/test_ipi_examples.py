"""The examples for i-PI run as their README says, for a few steps and with small models."""

import re
import shlex
import subprocess
import sys
import uuid
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from ipi_support import ENVIRONMENT, IPI, SMALL_MODEL
from tests_support import DATA, EXAMPLES

from dpa3sim.clients.ipi import wire
from dpa3sim.clients.ipi.tables import read_table

FOLDER = EXAMPLES / "ipi"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/input.xml"))
OTHER_MODEL = DATA / "models" / "static_linear" / "model.pt"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
QUICK = ("pimd8", "committee")


def run_line(name):
    """The arguments of the client in the README's table."""
    (line,) = re.findall(rf"^\| `{name}` \| `dpa3sim (.*?)` \|", README, re.MULTILINE)
    return shlex.split(line)


def prepare(tmp_path, name, steps=None):
    """A copy of the example, with an address of its own; returns its folder and the address."""
    for structure in FOLDER.glob("*.extxyz"):
        (tmp_path / structure.name).write_bytes(structure.read_bytes())
    folder = tmp_path / name
    folder.mkdir()
    text = (FOLDER / name / "input.xml").read_text()
    address = f"dpa3_{uuid.uuid4().hex}"
    text, n = re.subn(r"<address> \S+ </address>", f"<address> {address} </address>", text)
    assert n == 1
    if steps is not None:
        text = re.sub(r"<total_steps> \d+", f"<total_steps> {steps}", text)
    (folder / "input.xml").write_text(text)
    return folder, address


def run_example(tmp_path, name, models, steps=None):
    folder, address = prepare(tmp_path, name, steps)
    arguments = run_line(name)
    arguments[arguments.index("-a") + 1] = address
    while "--model" in arguments:
        del arguments[arguments.index("--model") : arguments.index("--model") + 2]
    for model in models:
        arguments += ["--model", str(model)]
    with (folder / "ipi.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, str(IPI), "input.xml"],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            client = subprocess.run(
                [sys.executable, "-m", "dpa3sim", *arguments],
                cwd=folder,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert client.returncode == 0, client.stderr
            assert server.wait(60) == 0, (folder / "ipi.log").read_text()
        finally:
            server.terminate()  # which removes the socket; a kill would not
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    return folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES],
)
def test_an_example_runs(tmp_path, name):
    # The small models know H and O only; silicon is for the embedded one.
    models = [SMALL_MODEL] if name != "phonons" else []
    models += [OTHER_MODEL] if name == "committee" else []
    steps = 20 if name == "remd" else 3
    folder = run_example(tmp_path, name, models, None if name == "phonons" else steps)
    if name == "remd":
        tables = [np.loadtxt(folder / f"{k}_sim.out") for k in range(4)]
        assert [t[-1, 0] for t in tables] == [20] * 4
        temperatures = sorted(round(float(t[0, 5])) for t in tables)
        assert temperatures == [280, 300, 320, 340]
        assert (folder / "sim.remd_idx").exists()
        return
    table = read_table(folder / "sim.out")
    if name == "phonons":
        hessian = np.loadtxt(folder / "sim.phonons.hess")
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)
        assert np.linalg.eigvalsh(hessian).min() > -1e-6
        return
    assert table["step"][-1] == 3
    energies = table["potential{ase}"]
    assert np.isfinite(energies).all()
    if name == "geop":
        assert (np.diff(energies) < 0).all()
    elif name != "committee":  # whose other model has a step in its energy
        assert np.ptp(table["conserved{ase}"]) < 1e-3
    if name == "committee":
        lines = (folder / "sim.committee_pot_0").read_text().splitlines()
        members = [[float(x) for x in line.split()] for line in lines if "#" not in line]
        assert np.shape(members) == (4, 2)
        from ase.units import Hartree

        np.testing.assert_allclose(np.mean(members, axis=1) * Hartree, energies, rtol=1e-6)


@pytest.mark.slow
def test_the_readme_tells_the_energy_of_the_embedded_model(tmp_path):
    folder = run_example(tmp_path, "nvt", [], steps=1)
    (promised,) = re.findall(r"begins with (-\d+\.\d+) eV", README)
    assert read_table(folder / "sim.out")["potential{ase}"][0] == pytest.approx(
        float(promised), abs=2e-3
    )


def test_the_readme_has_every_example_and_the_addresses_agree():
    from ase.io import read

    assert sorted(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == NAMES
    for name in NAMES:
        root = ET.parse(FOLDER / name / "input.xml").getroot()
        arguments = run_line(name)
        address = root.find(".//ffsocket/address").text.strip()
        assert arguments[arguments.index("-a") + 1] == address == f"dpa3_{name}"
        structure = arguments[arguments.index("--structure") + 1]
        assert root.find(".//initialize/file").text.strip() == structure
        atoms = read(FOLDER / name / structure)
        told = wire.parse_parameters(root.find(".//ffsocket/parameters").text.strip(" {}"))
        assert told[wire.ORDER_PARAMETER] == wire.order_hash(atoms.numbers)
        batch = root.find(".//ffsocket/batch_size")
        if batch is not None:
            assert arguments[arguments.index("--batch") + 1] == batch.text.strip()
