"""Inputs of i-PI: the atoms as it wants them, and every input runs in the real i-PI."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixCartesian
from ase.io import read, write
from tests_support import DATA, ENVIRONMENT, hydrogen_oxygen_structures

from dpa3sim.cli.main import main
from dpa3sim.clients.ipi.inputs import (
    MOTIONS,
    TRANSPORTS,
    InputSettings,
    fixed_atoms,
    parameters,
    standardized,
    write_inputs,
)
from dpa3sim.clients.ipi.wire import ORDER_PARAMETER, order_hash
from dpa3sim.common.errors import InputError

WATER = DATA / "ipi" / "water8.extxyz"
MODEL = DATA / "models" / "dynamic" / "model.pt"
QUANTUM = ("pimd", "trpmd", "npt")


@pytest.mark.parametrize("atoms", hydrogen_oxygen_structures())
def test_the_standardized_structure_is_the_same_rotated(atoms, smooth):
    made = standardized(atoms)
    assert (made.pbc == atoms.pbc).all()
    upper = made.cell[:].T
    assert np.allclose(upper, np.triu(upper), atol=1e-12)
    assert (np.diag(upper) > 0).all()
    before, after = smooth.evaluate([atoms, made])
    assert after.energy == pytest.approx(before.energy, abs=1e-8)
    lengths = [np.linalg.norm(e.forces, axis=1) for e in (before, after)]
    np.testing.assert_allclose(lengths[1], lengths[0], atol=1e-7)
    periodic = np.flatnonzero(atoms.pbc)
    np.testing.assert_allclose(
        made.cell.lengths()[periodic], atoms.cell.lengths()[periodic], rtol=1e-12
    )


def test_masses_and_extra_inputs_travel():
    atoms = read(WATER)
    masses = atoms.get_masses()
    masses[1] = 2.014
    atoms.set_masses(masses)
    atoms.info.update(charge=1, spin=2, other="dropped")
    made = standardized(atoms)
    np.testing.assert_allclose(made.get_masses(), masses)
    assert made.info == {"charge": 1, "spin": 2}
    assert not standardized(read(WATER)).has("masses")


def test_i_pi_reads_the_masses(tmp_path):
    from ipi.utils.io.backends.io_ase import read_ase
    from ipi.utils.units import Constants

    atoms = read(WATER)
    heavy = np.where(atoms.numbers == 1, 2.014, 15.999)
    atoms.set_masses(heavy)
    write_inputs(tmp_path, atoms, InputSettings(motion="nvt"), {})
    with (tmp_path / "init.extxyz").open() as file:
        masses = read_ase(file)[-1]
    np.testing.assert_allclose(masses / Constants.amu, heavy, rtol=1e-12)


def test_i_pi_does_not_rotate_it_again(tmp_path):
    atoms = bulk("Cu", cubic=False)
    write_inputs(tmp_path, atoms, InputSettings(motion="nvt"), {})
    from ipi.utils.io.backends.io_ase import read_ase

    with (tmp_path / "init.extxyz").open() as file:
        _, cell, positions, names, _ = read_ase(file)
    ours = read(tmp_path / "init.extxyz")
    np.testing.assert_allclose(cell.T, ours.cell[:], atol=1e-12)
    np.testing.assert_allclose(positions.reshape(-1, 3), ours.positions, atol=1e-12)
    assert names == list(ours.symbols)


def test_atoms_that_do_not_move():
    slab = fcc111("Cu", (1, 1, 3), vacuum=8)
    slab.symbols[2] = "O"
    assert fixed_atoms(slab, None) == []
    assert fixed_atoms(slab, "Cu") == [0, 1]
    assert fixed_atoms(slab, "0, 2") == [0, 2]
    assert fixed_atoms(slab, "1-2") == [1, 2]
    slab.set_constraint(FixAtoms([1]))
    assert fixed_atoms(slab, None) == [1]
    assert fixed_atoms(slab, "none") == []
    for wrong, reason in (
        ("Xe", "nor one of the elements"),
        ("7", "not within 0 ... 2"),
        ("0-2", "all atoms"),
    ):
        with pytest.raises(InputError, match=reason):
            fixed_atoms(slab, wrong)
    slab.set_constraint(FixCartesian(0, [True, False, False]))
    with pytest.raises(InputError, match="FixCartesian"):
        fixed_atoms(slab, None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"motion": "nvt", "nbeads": 4}, "has one bead"),
        ({"motion": "pimd", "temperature": 0.0}, "must be positive"),
        ({"motion": "swim"}, "not one of"),
        ({"transport": "pigeon"}, "not one of"),
    ],
)
def test_settings_that_make_no_sense(options, reason):
    with pytest.raises(InputError, match=reason):
        InputSettings(**options)


def test_what_an_input_cannot_hold(tmp_path):
    with pytest.raises(InputError, match="periodic along all"):
        write_inputs(tmp_path, molecule("H2O"), InputSettings(motion="npt"), {})
    with pytest.raises(InputError, match="do not allow"):
        parameters({"model": "a,b.pt"})
    settings = InputSettings(motion="npt", constrain="O")
    with pytest.raises(InputError, match="npt scales"):
        write_inputs(tmp_path, read(WATER), settings, {})


def test_addresses_are_unique_and_the_order_is_told(tmp_path):
    atoms = read(WATER)
    addresses = []
    for name in ("a", "b", "a"):
        write_inputs(tmp_path / name, atoms, InputSettings(nbeads=8), {})
        root = ET.parse(tmp_path / name / "input.xml").getroot()
        addresses.append(root.find("ffsocket/address").text.strip())
        assert (
            f"{ORDER_PARAMETER}: {order_hash(atoms.numbers)}"
            in root.find("ffsocket/parameters").text
        )
        assert root.find("ffsocket/batch_size").text.strip() == "8"
        assert float(root.find("ffsocket/latency").text) == 1e-4
    assert addresses[0] == addresses[2] != addresses[1]
    write_inputs(tmp_path / "c", atoms * (3, 3, 1), InputSettings(nbeads=16), {})
    root = ET.parse(tmp_path / "c" / "input.xml").getroot()
    assert float(root.find("ffsocket/latency").text) == 5e-3


def run_script(folder, timeout=240):
    """Run run.sh with this Python's i-PI and our own command; returns the finished process."""
    i_pi = Path(sys.executable).parent / "i-pi"
    environment = ENVIRONMENT | {
        "IPI": f"{sys.executable} {i_pi}",
        "DPA3SIM": f"{sys.executable} -m dpa3sim",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["sh", str(folder / "run.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


COMBINATIONS = [(motion, transport) for motion in MOTIONS for transport in TRANSPORTS]
# Every motion and every transport once; all pairs when there is time.
QUICK = [(motion, TRANSPORTS[i % 4]) for i, motion in enumerate(MOTIONS)]


@pytest.mark.parametrize(
    ("motion", "transport"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in COMBINATIONS],
)
def test_every_input_runs_in_the_real_i_pi(tmp_path, motion, transport):
    atoms = read(WATER) if motion != "phonons" else molecule("H2O")
    write(tmp_path / "start.extxyz", atoms)
    folder = tmp_path / "run"
    arguments = ["ipi", "input", str(tmp_path / "start.extxyz"), "--out", str(folder)]
    arguments += ["--motion", motion, "--transport", transport, "--steps", "2"]
    arguments += ["--nbeads", "4"] if motion in QUANTUM else []
    assert main([*arguments, "--model", str(MODEL)]) == 0
    done = run_script(folder)
    log = folder / "ipi.log"
    assert done.returncode == 0, (
        done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    )
    table = np.loadtxt(folder / "sim.out", ndmin=2)
    assert np.isfinite(table).all()
    if motion == "phonons":
        hessian = np.loadtxt(folder / "sim.phonons.hess")
        assert hessian.shape == (9, 9)
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)
    else:
        assert table[-1, 0] == 2
        assert (folder / "RESTART").exists()


def test_another_order_of_the_atoms_is_refused(tmp_path):
    """The input says for which atoms it is; a client with others must not serve it."""
    settings = InputSettings(motion="nve", steps=2)
    write_inputs(tmp_path, read(WATER), settings, {"model": str(MODEL)})
    script = (tmp_path / "run.sh").read_text()
    other = read(tmp_path / "init.extxyz")[::-1]
    write(tmp_path / "other.extxyz", Atoms(other))
    (tmp_path / "run.sh").write_text(script.replace("init.extxyz", "other.extxyz"))
    done = run_script(tmp_path)
    assert done.returncode == 2
    assert ORDER_PARAMETER in done.stderr


def test_files_that_are_there_are_kept(tmp_path, capsys):
    arguments = ["ipi", "input", str(WATER), "--out", str(tmp_path), "--motion", "nve"]
    assert main(arguments) == 0
    assert "run.sh" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert main(["ipi", "input", str(WATER), "--motoin", "nve"]) == 2
