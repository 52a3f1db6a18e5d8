"""The PES file: inside i-PI's process, and behind its own driver."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from ase.io import write
from ase.units import Bohr
from ipi.pes import load_pes
from ipi_support import (
    ENVIRONMENT,
    IPI,
    LIMIT,
    SMALL_MODEL,
    WATER,
    ClientThread,
    water,
)
from test_evaluator import TRICLINIC

import dpa3sim.clients.ipi.pes
from dpa3sim.clients.ipi.evaluator import BatchEvaluator
from dpa3sim.common.errors import InputError

FILE = dpa3sim.clients.ipi.pes.__file__
REPLACED = [(r"custom_pes\.py", FILE), (r"model\.pt", str(SMALL_MODEL))]


@pytest.fixture(scope="module")
def pes():
    return load_pes("custom", FILE)(structure=str(WATER), model=str(SMALL_MODEL), verbosity=2)


@pytest.fixture
def beads():
    rng = np.random.default_rng(2)
    cells = [(TRICLINIC + rng.uniform(-0.1, 0.1, (3, 3))).T / Bohr for _ in range(3)]
    positions = [water().get_scaled_positions() @ cell.T for cell in cells]
    return cells, positions


def test_one_structure_and_lists(pes, smooth, beads):
    cells, positions = beads
    before = [np.copy(x) for x in (*cells, *positions)]
    rows = np.array([cell.T for cell in cells])
    expected = BatchEvaluator(smooth, water())(rows, np.array(positions))
    single = pes(cells[0], positions[0])
    several = pes(cells, positions)
    one = pes(cells[:1], positions[:1])
    assert isinstance(single, tuple)
    assert (type(several), len(several), type(one), len(one)) == (list, 3, list, 1)
    for k, result in [*enumerate(several), (0, one[0]), (0, single)]:
        assert abs(result[0] - expected[0][k]) < 1e-12
        np.testing.assert_allclose(result[1], expected[1][k], atol=1e-12)
        np.testing.assert_allclose(result[2], expected[2][k], atol=1e-12)
        assert result[3] == ""
    for x, y in zip((*cells, *positions), before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_virials_may_be_changed(pes, beads):
    """As i-PI does, which zeroes their lower triangles."""
    cells, positions = beads
    results = pes(cells[:1] * 2, positions[:1] * 2)
    kept = results[1][2].copy()
    results[0][2][1, 0] = 0.0
    np.testing.assert_array_equal(results[1][2], kept)


def test_any_thread_may_call(pes, beads):
    expected = pes(beads[0][0], beads[1][0])
    found = []
    thread = threading.Thread(target=lambda: found.append(pes(beads[0][0], beads[1][0])))
    thread.start()
    thread.join()
    assert found[0][0] == expected[0]


def test_parameters_as_i_pi_reads_them(beads):
    load = load_pes("custom", FILE)
    common = {"structure": str(WATER), "device": "cpu", "dtype": "float64"}
    both = f"{SMALL_MODEL}; {SMALL_MODEL}"
    committee = load(model=both, extras="energy_atomic; n_edges", **common)
    values = json.loads(committee(beads[0][0], beads[1][0])[3])
    assert set(values) == {
        "energy_atomic",
        "n_edges",
        "committee_pot",
        "committee_force",
        "committee_virial",
    }
    for wrong, text in (
        ({"devise": "cpu"}, "unknown parameter 'devise'; did you mean 'device'"),
        ({"dtype": "float16"}, "dtype = 'float16' is not one of"),
        ({"extras": "energies"}, "unknown extra 'energies'"),
        ({"structure": "nowhere.xyz"}, "no such file"),
        ({"structure": None}, "structure is missing"),
        ({"head": 3}, "head"),
    ):
        parameters = {"model": str(SMALL_MODEL)} | common | wrong
        with pytest.raises(Exception, match=text) as caught:
            load(**parameters)
        assert caught.type.__module__ == "dpa3sim.common.errors"


def test_other_numbers_of_atoms_are_refused(pes, beads):
    with pytest.raises(InputError, match="sends 20 atoms, the structure has 24"):
        pes(beads[0][0], beads[1][0][:20])


def test_nothing_of_i_pi_is_imported():
    code = f"import runpy, sys; runpy.run_path({FILE!r}); print('ipi' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.strip() == "False"


def test_in_process_and_socket_give_the_same_trajectory(ipi, smooth):
    """Two steps; then rounding errors grow."""
    socket = ipi("t03", steps=2)
    client = ClientThread(socket.address, BatchEvaluator(smooth, water()))
    assert socket.wait() == 0
    client.done()
    for name in ("t07", "t07b"):
        direct = ipi(name, steps=2, edit=REPLACED)
        assert direct.wait() == 0, direct.log
        np.testing.assert_allclose(direct.columns(), socket.columns(), rtol=2e-9, atol=1e-9)


def test_bad_parameters_end_i_pi(ipi):
    server = ipi("t07", steps=1, edit=[*REPLACED, ("device: cpu", "devise: cpu")])
    assert server.wait() == 1
    assert "unknown parameter 'devise'; did you mean 'device'" in server.log


@pytest.mark.parametrize(("name", "code"), [("t07", 1), ("t07b", 2)])
def test_failures_end_i_pi_whatever_its_threads(ipi, name, code):
    """With threaded='True' an exception alone would leave i-PI waiting for ever."""
    server = ipi(name, steps=3, edit=[*REPLACED, ("{ structure: water8", "{ structure: few")])
    # i-PI was started before; its own imports take longer than this.
    write(server.folder / "few.extxyz", water()[:20])
    assert server.wait() == code
    assert "sends 24 atoms, the structure has 20" in server.log


def test_driver_of_i_pi(ipi, smooth):
    """The same file behind i-pi-py_driver."""
    outputs = []
    for kind in ("driver", "client"):
        server = ipi("t01", steps=4)
        if kind == "driver":
            command = [sys.executable, str(IPI.with_name("i-pi-py_driver")), "-u", "-m", "custom"]
            command += ["-P", FILE, "-S", server.prefix, "-a", server.names[0]]
            command += ["-o", f"structure={WATER},model={SMALL_MODEL}"]
            process = subprocess.Popen(command, env=ENVIRONMENT, cwd=server.folder)
            try:
                assert server.wait() == 0
                process.wait(LIMIT)
            finally:
                process.kill()
                process.wait()
        else:
            client = ClientThread(server.address, BatchEvaluator(smooth, water()))
            assert server.wait() == 0
            client.done()
        outputs.append(server.columns())
    np.testing.assert_allclose(*outputs, rtol=2e-9, atol=1e-9)
