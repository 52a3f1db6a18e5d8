"""Path integrals: exact averages, exact continuation, and what is said when something is wrong."""

import dataclasses
import fcntl
import json
import math
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.io import iread, read, write
from tests_support import DATA, ENVIRONMENT, TESTS

import dpa3sim
from dpa3sim.cli.main import main
from dpa3sim.clients.ipi import simulate as child
from dpa3sim.clients.ipi.inputs import STRUCTURE, direct_forcefield
from dpa3sim.clients.ipi.tables import last_row, read_table
from dpa3sim.common.errors import ConnectionLostError, InputError, NonFiniteError
from dpa3sim.protocols import pimd
from dpa3sim.protocols.dynamics import path_integrals as pimd_result
from dpa3sim.protocols.dynamics import ring_polymers
from dpa3sim.protocols.dynamics.correlation import estimate

WATER = DATA / "ipi" / "water8.extxyz"
MODEL = DATA / "models" / "dynamic" / "model.pt"
HARMONIC = TESTS / "clients/ipi/harmonic_pes.py"
PAIRS = TESTS / "clients/ipi/toy_pes.py"
WAVENUMBER = 2000.0
AMU = 1822.888486  # electron masses


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def simulate(folder, atoms, settings, prefix="pimd", beads=None, pes=HARMONIC, **parameters):
    """A run with a potential of a file; returns the plan."""
    folder.mkdir(exist_ok=True)
    plan = pimd.check(atoms, settings)
    if pes == HARMONIC:
        parameters = {"wavenumber": WAVENUMBER} | parameters
    values = {"structure": STRUCTURE, **parameters}
    count = beads or settings.beads
    ring_polymers.simulate(
        folder, atoms, plan, prefix, count, direct_forcefield(pes, count, values)
    )
    return plan


# -- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95])
def test_errors_of_correlated_values(memory):
    """An autoregressive series has the inefficiency (1 + a) / (1 - a); errors cover the truth."""
    rng = np.random.default_rng(7)
    n, repeats = 20000, 60
    deviations, inefficiencies = [], []
    for _ in range(repeats):
        noise = rng.normal(size=n) * math.sqrt(1 - memory**2)
        values = np.empty(n)
        values[0] = rng.normal()
        for i in range(1, n):
            values[i] = memory * values[i - 1] + noise[i]
        found = estimate(5.0 + values)
        deviations.append((found.mean - 5.0) / found.error)
        inefficiencies.append(found.correlation)
    expected = (1 + memory) / (1 - memory)
    assert np.mean(inefficiencies) == pytest.approx(expected, rel=0.1)
    # The deviations are standard normal: chi square of 60.
    assert 0.6 < np.mean(np.square(deviations)) < 1.6


def test_estimates_of_short_and_constant_series():
    assert math.isnan(estimate(np.zeros(0)).mean)
    assert estimate(np.array([3.0])).error is None
    assert estimate(np.full(50, 239.483)).error == 0.0


def test_tables_with_an_unfinished_row(tmp_path):
    path = tmp_path / "t.out"
    header = "# column   1     --> step : The step.\n# column   2     --> potential{ase} : E.\n"
    path.write_text(header + "  0.0  -1.5\n  1.0  -1.25\n")
    table = read_table(path)
    assert table["potential{ase}"].tolist() == [-1.5, -1.25]
    with path.open("a") as file:
        file.write("  2.0  -1.")
    assert last_row(path) == [1.0, -1.25]
    assert last_row(tmp_path / "absent") is None
    path.write_text("1 2\n")
    with pytest.raises(InputError, match="not a table"):
        read_table(path)


# -- physics --------------------------------------------------------------------------------------


def exact_modes(beads, temperature):
    """``omega^2 / (omega^2 + omega_k^2)`` of the normal modes k of a harmonic ring polymer."""
    omega = WAVENUMBER * units.invcm  # eV
    omega_p = beads * units.kB * temperature
    modes = 2 * omega_p * np.sin(np.arange(beads) * np.pi / beads)
    return omega**2 / (omega**2 + modes**2)


def test_masses_of_the_structure_move(tmp_path):
    """The state that i-PI saves, and goes on from, has them; so has the last structure."""
    atoms = read(WATER)
    masses = np.where(atoms.numbers == 1, 2.014, 15.999)
    atoms.set_masses(masses)
    settings = pimd.Settings(beads=2, steps=2, timestep=0.1, interval=1)
    for steps in (2, 3):
        plan = simulate(tmp_path / "w", atoms, dataclasses.replace(settings, steps=steps))
        saved = ET.parse(tmp_path / "w" / "pimd.RESTART").find(".//beads/m")
        found = np.array([float(x) for x in saved.text.strip(" []\n").split(",")])
        np.testing.assert_allclose(found / AMU, masses, rtol=1e-6)
    last = pimd_result._centroids(tmp_path / "w", atoms)
    np.testing.assert_array_equal(last.get_masses(), masses)
    assert plan.timestep == 0.1


def harmonic_run(folder, steps, beads=8, **options):
    settings = pimd.Settings(
        beads=beads, steps=steps, timestep=0.15, thermostat_time=20.0, interval=1000, **options
    )
    atoms = read(WATER)
    plan = simulate(folder, atoms, settings)
    return settings, atoms, pimd_result.analyse(folder, atoms, plan, "pimd", beads)


def check_harmonic(settings, atoms, found):
    """Averages equal those of the harmonic oscillator of so many beads, exactly known."""
    kt, n = units.kB * settings.temperature, len(atoms)
    modes = exact_modes(settings.beads, settings.temperature)
    # The centroid of all atoms together does not move.
    potential = 1.5 * kt * (modes.sum() - 1 / n)
    # omega^2 / (omega^2 + omega_k^2) times k T / 2 is the virial of mode k.
    kinetic = 1.5 * kt * modes.sum()
    exact = {"temperature": settings.temperature, "potential_energy": potential}
    if settings.beads > 1:
        exact |= {"kinetic_energy": kinetic, "kinetic_energy_thermodynamic": kinetic}
    for name, value in exact.items():
        estimated = found.estimates[name]
        assert estimated.independent > 50, name
        # The time step shifts averages by about (omega dt)^2 / 8.
        allowed = 4 * estimated.error + 4e-4 * value
        assert abs(estimated.mean - value) < allowed, (name, estimated, value)
    return exact


@pytest.mark.slow
def test_averages_equal_the_exact_ones_of_harmonic_oscillators(tmp_path):
    settings, atoms, found = harmonic_run(tmp_path / "a", 4000)
    exact = check_harmonic(settings, atoms, found)
    # The errors are small enough for that to mean something: quantum is not classical.
    assert exact["kinetic_energy"] > 2 * 1.5 * units.kB * 300
    assert found.estimates["kinetic_energy"].error < 0.01 * exact["kinetic_energy"]
    # <(q - q_centroid)^2> of one atom, from the modes that are not the centroid.
    kt = units.kB * 300
    hbar = units._hbar * units.J * units.s
    omega = WAVENUMBER * units.invcm / hbar
    for element, mass in (("H", 1.008), ("O", 15.999)):
        square = 3 * kt / (mass * omega**2) * (exact_modes(8, 300)[1:]).sum()
        radius = found.elements[element]["radius_of_gyration"]
        # i-PI averages the radius, not its square: a few percent below the root.
        assert 0.85 < radius.mean / math.sqrt(square) < 1.0, element
        kinetic = found.elements[element]["kinetic_energy"]
        assert abs(kinetic.mean - exact["kinetic_energy"]) < 4 * kinetic.error + 1e-4


@pytest.mark.slow
def test_classical_averages_of_harmonic_oscillators(tmp_path):
    settings, atoms, found = harmonic_run(tmp_path / "a", 8000, beads=1)
    exact = check_harmonic(settings, atoms, found)
    assert exact["potential_energy"] == pytest.approx(1.5 * units.kB * 300 * (1 - 1 / 24))


def white_noise(path, beads, temperature):
    """Matrices of a thermostat like PIGLET's that is none: white noise, canonical."""
    blocks = {"A": [], "C": []}
    for mode in range(beads):
        friction = 1e-3 if mode == 0 else 4e-3
        blocks["A"] += [friction, 0.0, 0.0, 1e-3]
        blocks["C"] += [beads * temperature, 0.0, 0.0, beads * temperature]
    text = ""
    for name, values in blocks.items():
        unit = " units='kelvin'" if name == "C" else ""
        numbers = ", ".join(f"{value:.10e}" for value in values)
        text += f"<{name} shape='({beads},2,2)'{unit}> [ {numbers} ] </{name}>\n"
    path.write_text(text)


@pytest.mark.slow
def test_a_coloured_thermostat_comes_from_its_file(tmp_path):
    white_noise(tmp_path / "gle.xml", 8, 300)
    options = {"method": "piglet", "gle_file": str(tmp_path / "gle.xml")}
    settings, atoms, found = harmonic_run(tmp_path / "a", 8000, **options)
    check_harmonic(settings, atoms, found)
    assert "nm_gle" in (tmp_path / "a" / "pimd.xml").read_text()


def test_constrained_atoms_stay_and_do_not_count(tmp_path):
    atoms = read(WATER)
    settings = pimd.Settings(beads=4, steps=600, timestep=0.15, constrain="O", interval=100)
    plan = simulate(tmp_path / "a", atoms, settings)
    found = pimd_result.analyse(tmp_path / "a", atoms, plan, "pimd", 4)
    for path in pimd_result.trajectory_files(tmp_path / "a", "pimd"):
        for frame in iread(path, index=":"):
            oxygen = frame.symbols == "O"
            moved = np.abs(frame.positions - atoms.positions).max(axis=1)
            assert moved[oxygen].max() < 1e-7
            assert moved[~oxygen].min() > 0 or frame.info["ipi_comment"].startswith(
                "Step:           0"
            )
    assert list(found.elements) == ["H"]
    kinetic = 1.5 * units.kB * 300 * exact_modes(4, 300).sum()
    ratio = found.estimates["kinetic_energy"].mean / kinetic
    assert 0.6 < ratio / (16 / 24) < 1.4


# -- continuing -----------------------------------------------------------------------------------

CHILD = (
    "import dpa3sim.clients.ipi.simulate as s, sys; s.CHECKPOINT_SECONDS = 0.02; "
    "s.CHECKPOINT_SHARE = 1.0; "
    "sys.exit(s.main(sys.argv[1:]))"
)


def run_child(folder, steps, kill_after=None, delay=0.0):
    """The process of i-PI, killed some seconds after so many steps; returns its exit code."""
    start, table = child.saved_step(folder, "pimd"), folder / "pimd.out"
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    with (folder / "pimd.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, "pimd", str(steps)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if kill_after is not None:
        end = start + kill_after
        wait_for(lambda: process.poll() is not None or (last_row(table) or [0.0])[0] >= end)
        time.sleep(delay)
        process.kill()
    return process.wait()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def prepare(folder, settings, pes=PAIRS, **parameters):
    """The input of a run that is not started yet."""
    folder.mkdir()
    atoms = read(WATER)
    if pes == PAIRS:
        parameters = {"model": "none", "kk": 2e-4} | parameters
    from dpa3sim.clients.ipi.inputs import standardized, to_xml, write_structure

    ready = standardized(atoms)
    write_structure(folder / STRUCTURE, ready)
    forcefield = direct_forcefield(pes, settings.beads, {"structure": STRUCTURE, **parameters})
    plan = pimd.check(atoms, settings)
    root = ring_polymers.make_input(ready, plan, "pimd", settings.beads, forcefield)
    (folder / "pimd.xml").write_text(to_xml(root))


def assert_same_outputs(first, second):
    """All tables and trajectories are equal, byte by byte; so is the state, but for the seed.

    The checksum of the state, at the end of its first line, is also that of the seed.
    """
    names = sorted(p.name for p in first.iterdir() if p.suffix in (".out", ".extxyz"))
    assert len(names) >= 3
    for name in names:
        texts = [(folder / name).read_text().splitlines() for folder in (first, second)]
        assert texts[0] == texts[1], name
    states = [(folder / "pimd.RESTART").read_text().splitlines() for folder in (first, second)]
    for state in states:
        state[0] = state[0].partition(', "sha256"')[0]
    kept = [[line for line in state if "<seed>" not in line] for state in states]
    assert kept[0] == kept[1]


def kill_and_compare(folder, settings, kills, seed, **potential):
    draw = random.Random(seed)
    for name in ("undisturbed", "killed"):
        prepare(folder / name, settings, **potential)
    assert run_child(folder / "undisturbed", settings.steps) == 0
    for _ in range(kills):
        after = draw.randint(1, settings.steps // (2 * kills))
        code = run_child(folder / "killed", settings.steps, after, draw.uniform(0.0, 0.03))
        assert code == -signal.SIGKILL
    assert child.saved_step(folder / "killed", "pimd") < settings.steps
    assert run_child(folder / "killed", settings.steps) == 0
    table = np.loadtxt(folder / "killed" / "pimd.out")
    assert table[:, 0].tolist() == list(range(settings.steps + 1))
    assert_same_outputs(folder / "undisturbed", folder / "killed")


def test_killed_and_continued_equals_undisturbed(tmp_path):
    settings = pimd.Settings(beads=4, steps=150, interval=7)
    kill_and_compare(tmp_path, settings, kills=3, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"beads": 8},
        {"beads": 5, "ensemble": "npt", "pressure": 0.1},
        {"beads": 1},
        {"beads": 8, "method": "trpmd"},
        {"beads": 4, "constrain": "0-2"},
        {"beads": 4, "method": "piglet", "gle_file": "gle.xml"},
    ],
    ids=lambda options: options.get("method", options.get("ensemble", str(options["beads"]))),
)
def test_killed_often_in_every_way_of_moving(tmp_path, options):
    white_noise(tmp_path / "gle.xml", options["beads"], 300)
    settings = pimd.Settings(steps=600, interval=7, **options)
    kill_and_compare(tmp_path, settings, kills=8, seed=len(str(options)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_killed_often_with_the_model(tmp_path, dtype):
    from dpa3sim.clients.ipi import pes

    settings = pimd.Settings(beads=4, steps=60, interval=7, ensemble="npt")
    path = Path(pes.__file__)
    kill_and_compare(
        tmp_path, settings, 6, 11, pes=path, model=str(MODEL), dtype=dtype, device="cpu"
    )


def result_of(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def command(*arguments):
    return [
        "pimd",
        str(WATER),
        "--model",
        str(MODEL),
        "--beads",
        "4",
        "--interval",
        "5",
        *arguments,
    ]


@pytest.mark.slow
def test_a_command_that_is_interrupted_continues(tmp_path, capsys):
    """SIGINT: code 130, the state saved; then the same command, and another with more steps."""
    arguments = [sys.executable, "-m", "dpa3sim", *command("--out", "run", "--no-plot")]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*arguments, "--steps", "2000"], env=environment, stdout=subprocess.PIPE, text=True
    )
    table = Path("run/pimd.out")
    wait_for(lambda: table.exists() and (last_row(table) or [0])[0] >= 3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in out
    saved = child.saved_step(Path("run"), "pimd")
    assert 3 <= saved < 2000
    assert not Path("run/result.json").exists()

    steps = saved + 10
    assert main(command("--out", "run", "--no-plot", "--steps", str(steps))) == 0
    assert f"continuing after step {saved}" in capsys.readouterr().out
    assert main(command("--out", "other", "--no-plot", "--steps", str(steps))) == 0
    assert_same_outputs(Path("other"), Path("run"))
    first, second = result_of("run"), result_of("other")
    for result in (first, second):
        result.pop("directory")
    assert first == second


def test_a_whole_run_with_its_files(tmp_path, capsys):
    arguments = command("--steps", "20", "--classical", "--out", "run")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "kinetic energy, centroid virial" in out
    assert "are few for vibrations of hydrogen" in out
    folder, result = Path("run"), result_of("run")
    for name in ("pimd", "rdf"):
        assert (folder / f"{name}.png").stat().st_size > 10000
        assert (folder / f"{name}.svg").exists()
    assert (folder / "rdf.csv").read_text().startswith("r_A,H-H,H-O,O-O,H-H_classical")
    assert result["converged"] is True
    assert result["equilibration_steps"] == 4
    assert result["n_rows_averaged"] == 17
    assert result["classical"]["beads"] == 1
    assert result["units"]["potential_energy_error_per_atom_eV"] == "eV/atom"
    assert result["units"]["radius_of_gyration_A"] == "Å"
    assert (
        result["elements"]["H"]["radius_of_gyration_A"]
        > result["elements"]["O"]["radius_of_gyration_A"]
    )
    assert any("independent values" in warning for warning in result["warnings"])
    structure = read(folder / "structure_final.extxyz")
    assert structure.pbc.all()
    assert np.abs(structure.positions - read(WATER).positions).max() < 0.5

    before = (folder / "pimd.out").stat().st_mtime_ns
    assert main(arguments) == 0
    assert "already done" in capsys.readouterr().out
    # Another part is averaged without any simulation.
    assert main([*arguments, "--equilibration", "10"]) == 0
    assert result_of("run")["n_rows_averaged"] == 11
    assert (folder / "pimd.out").stat().st_mtime_ns == before
    assert main([*arguments, "--temperature", "310"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_a_molecule_at_constant_pressure_is_refused_and_else_runs(capsys):
    write("H2O.xyz", molecule("H2O"))
    arguments = ["pimd", "H2O.xyz", "--model", str(MODEL), "--beads", "2", "--steps", "4"]
    assert main([*arguments, "--ensemble", "npt"]) == 2
    assert "periodic along three axes" in capsys.readouterr().err
    assert not Path("H2O.pimd").exists()
    assert main([*arguments, "--no-plot"]) == 0
    result = result_of("H2O.pimd")
    assert "pressure_GPa" not in result
    assert not Path("H2O.pimd/rdf.csv").exists()
    assert not read("H2O.pimd/structure_final.extxyz").pbc.any()


def test_the_volume_of_npt(capsys):
    arguments = command("--ensemble", "npt", "--pressure", "1", "--steps", "20", "--no-plot")
    assert main([*arguments, "--out", "run"]) == 0
    result = result_of("run")
    volume = read_table(Path("run/pimd.out"))["volume{angstrom3}"]
    assert np.ptp(volume) > 0
    assert result["volume_A3"] == pytest.approx(volume[4:].mean())
    mass = read(WATER).get_masses().sum()
    assert result["density_g_per_cm3"] == pytest.approx(mass / result["volume_A3"] * 1.66053907)


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "error", "text"),
    [
        ("infinite", NonFiniteError, r"in step 4: the energy is not finite"),
        ("input", NonFiniteError, r"in step 4: atoms 0 and 1 are"),
        ("crash", ConnectionLostError, r"i-PI failed: RuntimeError: something else"),
        ("setup", InputError, r"^this potential does not like its parameters$"),
    ],
)
def test_a_potential_that_fails(tmp_path, fail, error, text):
    settings = pimd.Settings(beads=2, steps=50)
    with pytest.raises(error, match=text) as caught:
        simulate(tmp_path / "a", read(WATER), settings, fail=fail, at=5)
    assert caught.value.exit_code == {"setup": 2, "crash": 6}.get(fail, 4)


def test_a_simulation_whose_parent_is_killed_stops(tmp_path):
    settings = pimd.Settings(beads=2, steps=100000)
    prepare(tmp_path / "a", settings)
    script = (
        "import subprocess, sys, time\n"
        "module = 'dpa3sim.clients.ipi.simulate'\n"
        "p = subprocess.Popen([sys.executable, '-m', module, 'pimd', '100000'])\n"
        "print(p.pid, flush=True)\ntime.sleep(1000)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path / "a",
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(parent.stdout.readline())
    wait_for((tmp_path / "a" / "pimd.RESTART").exists)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(pid))
    parent.stdout.close()
    # It said how far it came, and nothing keeps the folder.
    saved = child.saved_step(tmp_path / "a", "pimd")
    assert 0 < saved < 100000
    assert run_child(tmp_path / "a", saved + 1) == 0


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_two_processes_do_not_share_a_folder(tmp_path):
    prepare(tmp_path / "a", pimd.Settings(beads=2, steps=5))
    handle = os.open(tmp_path / "a", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code = (
        "import dpa3sim.clients.ipi.simulate as s, sys; s.LOCK_SECONDS = 0.2; "
        "sys.exit(s.main(['pimd', '5']))"
    )
    arguments = [sys.executable, "-c", code]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path / "a", "env": environment, "capture_output": True, "text": True}
    refused = subprocess.run(arguments, **options)
    assert refused.returncode == 2
    assert "another process is computing in" in refused.stderr
    os.close(handle)
    assert subprocess.run(arguments, **options).returncode == 0


def test_bare_i_pi_continues_from_our_state(tmp_path):
    prepare(tmp_path / "a", pimd.Settings(beads=2, steps=5))
    assert run_child(tmp_path / "a", 5) == 0
    state = tmp_path / "a" / "pimd.RESTART"
    text, changes = re.subn(r"<total_steps>\s*5\s*<", "<total_steps>8<", state.read_text())
    assert changes == 1
    state.write_text(text)
    i_pi = Path(sys.executable).with_name("i-pi")
    done = subprocess.run(
        [sys.executable, i_pi, state.name], cwd=tmp_path / "a", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    steps = read_table(tmp_path / "a" / "pimd.out")["step"]
    assert steps.tolist() == list(range(9))


def test_a_damaged_state_is_told(tmp_path):
    settings = pimd.Settings(beads=2, steps=5)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pimd.RESTART").write_text("<simulation>")
    with pytest.raises(InputError, match="damaged"):
        simulate(tmp_path / "a", read(WATER), settings)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "piglet"], "GLE4MD"),
        (["--gle-file", "x"], "method=pile does not use"),
        (["--pressure", "1"], "only with ensemble=npt"),
        (["--method", "trpmd", "--ensemble", "npt"], "constant volume"),
        (["--beads", "0"], "at least 1"),
        (["--thermostat-time", "1"], "at least 10 time steps"),
        (["--constrain", "Xe"], "Xe"),
        (["--method", "piglet", "--gle-file", "absent.xml"], "cannot be read"),
        (["--method", "piglet", "--gle-file", "hot.xml"], "are for 400 K, not for 300 K"),
        (["--method", "piglet", "--gle-file", "five.xml"], r"(5, 2, 2); 4 beads need"),
        (["--method", "piglet", "--gle-file", "empty.xml"], "has no <A>"),
    ],
)
def test_bad_usage_is_exit_code_2(capsys, arguments, reason):
    white_noise(Path("hot.xml"), 4, 400)
    white_noise(Path("five.xml"), 5, 300)
    Path("empty.xml").write_text("<thermostat/>")
    assert main([*command("--out", "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("place", ["/old/dpa3sim/ipi/pes.py", "/old/dpa3sim/clients/ipi/pes.py"])
def test_a_run_finds_the_potential_where_it_is_now(place):
    """The checkpoint of a run names a file that an update may have moved."""
    text = f"<pes> custom </pes><pes_path> {place} </pes_path><pes_path>/my/pes.py</pes_path>"
    found = child.OUR_PES.sub(lambda m: f"{m[1]}here{m[2]}", text)
    assert found == "<pes> custom </pes><pes_path>here</pes_path><pes_path>/my/pes.py</pes_path>"


def test_the_file_of_inputs_of_earlier_versions():
    from dpa3sim.clients.ipi.pes import DPA3PES

    path = Path(dpa3sim.__file__).parent / "ipi/pes.py"
    loaded = runpy.run_path(str(path))
    assert loaded[loaded["__DRIVER_CLASS__"]] is DPA3PES
