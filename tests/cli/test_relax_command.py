"""The command ``dpa3sim relax``: what it writes, prints and returns, and how it continues."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixedLine, FixedPlane
from ase.io import read, write
from tests_support import DATA, EXAMPLES

from dpa3sim.cli.main import main

FILES = {
    "config.resolved.yaml",
    "convergence.png",
    "provenance.json",
    "result.json",
    "run.log",
    "structure_relaxed.extxyz",
    "structure_relaxed.vasp",
    "trajectory.extxyz",
}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def strained(name="Cu"):
    atoms = bulk(name, cubic=True)
    atoms.set_cell(atoms.cell[:] @ np.diag([1.02, 1.0, 0.98]), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def result_of(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def errors_of(capsys, *arguments):
    """Run a command that must fail for bad usage or input; its error lines."""
    assert main(["relax", *arguments]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_run_directory_is_complete(capsys):
    write("POSCAR", strained(), format="vasp")
    assert main(["relax", "POSCAR", "--cell", "full"]) == 0
    out = capsys.readouterr().out
    assert "embedded model dpa3-openlam" in out
    assert "converged after" in out
    assert "space group P1 (1) -> Fm-3m (225)" in out
    run = Path("POSCAR.relax")
    assert {p.name for p in run.iterdir()} == FILES

    result = result_of(run)
    assert result["schema_version"] == 1
    assert result["converged"] is True
    assert result["units"]["stress_GPa"] == "GPa"
    assert result["model"]["head"] == "MP_traj_v024_alldata_mixu"
    assert result["conventional_lengths_A"] == pytest.approx([3.625] * 3, abs=0.005)

    poscar = read(run / "structure_relaxed.vasp")
    extxyz = read(run / "structure_relaxed.extxyz")
    np.testing.assert_allclose(poscar.cell[:], extxyz.cell[:], atol=1e-7)
    np.testing.assert_allclose(extxyz.get_potential_energy(), result["energy_eV"], atol=1e-7)
    assert extxyz.get_forces().shape == (4, 3)
    frames = read(run / "trajectory.extxyz", index=":")
    assert len(frames) == result["n_steps"] + 1
    assert frames[-1].info["index"] == result["n_steps"]

    provenance = json.loads((run / "provenance.json").read_text())
    session = provenance["sessions"][0]
    assert session["command"][:3] == ["dpa3sim", "relax", "POSCAR"]
    assert session["exit_code"] == 0
    assert len(session["model"]["sha256"]) == 64
    log = (run / "run.log").read_text()
    assert log.count(" step ") == len(frames)
    assert (run / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_resolved_config_repeats_the_run(capsys):
    write("POSCAR", strained(), format="vasp")
    main(["relax", "POSCAR", "--cell", "iso", "--set", "fmax=0.02", "--no-plot"])
    config = Path("POSCAR.relax/config.resolved.yaml")
    values = yaml.safe_load(config.read_text())
    assert values["cell"] == "iso"
    assert values["fmax"] == 0.02
    assert values["model"] == "dpa3-openlam"
    assert main(["relax", "POSCAR", "--config", str(config), "--out", "again", "--no-plot"]) == 0
    first, again = result_of("POSCAR.relax"), result_of("again")
    assert first["energy_eV"] == again["energy_eV"]


def test_the_same_command_again_is_already_done(capsys):
    write("POSCAR", bulk("Cu"), format="vasp")
    assert main(["relax", "POSCAR"]) == 0
    before = Path("POSCAR.relax/result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["relax", "POSCAR"]) == 0
    assert "already done in POSCAR.relax" in capsys.readouterr().out
    assert Path("POSCAR.relax/result.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_without_force(capsys):
    write("POSCAR", bulk("Cu"), format="vasp")
    main(["relax", "POSCAR", "--no-plot"])
    assert "fmax: 0.01 -> 0.001" in errors_of(capsys, "POSCAR", "--fmax", "1e-3")
    write("POSCAR", bulk("Cu", a=3.7), format="vasp")
    assert "structure_sha256" in errors_of(capsys, "POSCAR")
    assert main(["relax", "POSCAR", "--fmax", "1e-3", "--force", "--no-plot"]) == 0


def test_not_converged_and_then_continued(capsys):
    write("POSCAR", strained(), format="vasp")
    arguments = ["relax", "POSCAR", "--cell", "full", "--no-plot"]
    assert main([*arguments, "--steps", "3"]) == 3
    result = result_of("POSCAR.relax")
    assert result["converged"] is False
    assert any("largest stress" in reason for reason in result["reasons"])
    assert "NOT converged after 3 steps" in capsys.readouterr().out
    assert main([*arguments, "--steps", "3"]) == 3  # nothing more to do
    assert "already done" in capsys.readouterr().out
    assert main([*arguments, "--steps", "300"]) == 0
    assert "continuing after step 3" in capsys.readouterr().out
    frames = read("POSCAR.relax/trajectory.extxyz", index=":")
    assert [f.info["index"] for f in frames] == list(range(len(frames)))


def test_many_structures_and_their_failures(capsys):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        write(f"{folder}/POSCAR", bulk("Cu"), format="vasp")
    Path("bad.cif").write_text("this is no crystal")
    write("near.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.01]]))
    code = main(["relax", "a/POSCAR", "bad.cif", "near.xyz", "b/POSCAR", "--out", "o", "--no-plot"])
    assert code == 5
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert err[0].startswith("dpa3sim: error: bad.cif: not a structure that ASE can read")
    assert err[1].startswith("dpa3sim: error: near.xyz: atoms 0 and 1 overlap")
    assert {p.name for p in Path("o").iterdir()} == {"a-POSCAR.relax", "b-POSCAR.relax"}


def test_all_unconverged_is_code_3(capsys):
    for name in ("x.vasp", "y.vasp"):
        write(name, strained(), format="vasp")
    assert main(["relax", "x.vasp", "y.vasp", "--steps", "1", "--no-plot"]) == 3


def test_frames_of_a_file(capsys):
    frames = [bulk("Cu", a=a) for a in (3.6, 3.65, 3.7)]
    write("many.extxyz", frames)
    assert main(["relax", "many.extxyz@0", "--no-plot", "--quiet"]) == 0
    assert result_of("many-0.relax")["cell_lengths_A"][0] == pytest.approx(3.6 / 2**0.5)
    assert main(["relax", "many.extxyz", "--no-plot", "--quiet"]) == 0  # the last one
    assert result_of("many.relax")["cell_lengths_A"][0] == pytest.approx(3.7 / 2**0.5)
    assert main(["relax", "many.extxyz@1:", "--no-plot", "--quiet", "--out", "o"]) == 0
    assert {p.name for p in Path("o").iterdir()} == {"many-1.relax", "many-2.relax"}
    assert capsys.readouterr().out == ""
    # Another frame is another calculation, whatever the directory is called.
    assert main(["relax", "many.extxyz@0", "--no-plot", "--quiet", "--out", "one"]) == 0
    assert "different calculation" in errors_of(capsys, "many.extxyz@1", "--out", "one")
    assert "this frame does not exist" in errors_of(capsys, "many.extxyz@7")
    assert "not a frame index" in errors_of(capsys, "many.extxyz@first")


@pytest.mark.parametrize("kind", ["vasp", "cif", "extxyz"])
def test_standard_input(kind, monkeypatch):
    buffer = io.BytesIO() if kind == "cif" else io.StringIO()
    write(buffer, bulk("Cu"), format=kind)
    data = buffer.getvalue()
    data = data if isinstance(data, bytes) else data.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["relax", "-", "--no-plot", "--quiet"]) == 0
    assert result_of("stdin.relax")["formula"] == "Cu"


@pytest.mark.parametrize("data", [b"", b" \n", bytes(range(256)) * 4])
def test_nonsense_on_standard_input(data, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    err = errors_of(capsys, "-")
    assert "-: " in err
    assert len(err.splitlines()) == 1


def test_json_output_is_only_json(capsys):
    write("POSCAR", bulk("Cu"), format="vasp")
    assert main(["relax", "POSCAR", "--json", "--no-plot"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == result_of("POSCAR.relax")
    write("B.vasp", bulk("Al"), format="vasp")
    assert main(["relax", "POSCAR", "B.vasp", "--json", "--no-plot"]) == 0
    assert [r["formula"] for r in json.loads(capsys.readouterr().out)] == ["Cu", "Al"]


def test_molecule_from_the_examples():
    assert main(["relax", str(EXAMPLES / "ethanol.xyz"), "--quiet"]) == 0
    relaxed = read("ethanol.relax/structure_relaxed.extxyz")
    assert not relaxed.pbc.any()
    assert read("ethanol.relax/structure_relaxed.vasp").cell.volume > 1000


def test_model_head_and_dtype():
    write("w.xyz", molecule("H2O"))
    model = str(DATA / "models/multitask/model.pt")
    arguments = ["relax", "w.xyz", "--model", model, "--no-plot", "--quiet", "--dtype", "float64"]
    assert main([*arguments, "--head", "omat24"]) in (0, 3)
    result = result_of("w.relax")
    assert result["model"]["head"] == "Omat24"
    assert result["dtype"] == "float64"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"   \n\n", "empty"),
        (b"just some text\nof no meaning\n", "not a structure that ASE can read"),
        (bytes(range(256)) * 20, "not a structure that ASE can read"),
    ],
)
@pytest.mark.parametrize("name", ["POSCAR", "x.cif", "x.extxyz", "x.dat"])
def test_nonsense_files(name, content, message, capsys):
    Path(name).write_bytes(content)
    err = errors_of(capsys, name)
    assert message in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in Path.cwd().iterdir()] == [name]  # nothing was made


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("H", [[0, 0, float("nan")]]), "not finite"),
        (Atoms("X", [[0, 0, 0]]), "unknown element"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0]]), "overlap"),
        (Atoms("H", cell=[1, 1, 0], pbc=True), "periodic along c"),
    ],
)
def test_impossible_structures(atoms, message, capsys):
    write("x.traj", atoms)
    assert message in errors_of(capsys, "x.traj")
    assert not Path("x.relax").exists()


@pytest.mark.parametrize("name", ["charge_spin", "fparam", "aparam", "occupancy"])
@pytest.mark.parametrize("value", ["unknown", 0.5, [1, [2, 3]]])
def test_meaningless_values_beside_the_structure(name, value, capsys):
    """What the model does not ask for is not looked at; what it asks for is checked."""
    atoms = molecule("H2O")
    atoms.info[name] = value
    write("x.traj", atoms)
    assert main(["relax", "x.traj", "--no-plot", "--quiet"]) == 0
    if name == "charge_spin":
        model = str(DATA / "models/charge_spin/model.pt")
        assert "charge_spin" in errors_of(capsys, "x.traj", "--model", model, "--out", "o")


def test_no_atoms(capsys):
    Path("x.xyz").write_text("0\n\n")
    assert errors_of(capsys, "x.xyz")


def test_partial_occupancy_is_refused(capsys):
    Path("x.cif").write_text(
        "data_x\n_cell_length_a 3\n_cell_length_b 3\n_cell_length_c 3\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\n_symmetry_space_group_name_H-M 'P 1'\nloop_\n"
        "_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
        "_atom_site_fract_z\n_atom_site_occupancy\nCu1 Cu 0 0 0 0.5\nAu1 Au 0 0 0 0.5\n"
    )
    assert "partially occupied" in errors_of(capsys, "x.cif")


def test_smoothed_cutoff_is_told_everywhere(capsys):
    # Equal ions are 3.87 Å apart.
    write("POSCAR", bulk("NaCl", "rocksalt", 5.47), format="vasp")
    arguments = ["relax", "POSCAR", "--no-plot"]
    assert main(arguments) == 0
    assert "smoothed" not in capsys.readouterr().out
    plain = result_of("POSCAR.relax")
    assert plain["model"]["smooth_cutoff_A"] is None
    arguments += ["--smooth-cutoff", "0.3", "--truncate", "none"]
    assert "smooth_cutoff: None -> 0.3" in errors_of(capsys, *arguments[1:])
    assert main([*arguments, "--out", "smoothed"]) == 0
    out = capsys.readouterr().out
    assert "cutoff smoothed over 0.3 Å" in out
    result = result_of("smoothed")
    assert result["model"]["smooth_cutoff_A"] == 0.3
    assert abs(result["energy_eV"] - plain["energy_eV"]) > 1e-4
    (session,) = json.loads(Path("smoothed/provenance.json").read_text())["sessions"]
    assert session["model"]["smooth_cutoff_A"] == 0.3
    config = Path("smoothed/config.resolved.yaml")
    assert yaml.safe_load(config.read_text())["smooth_cutoff"] == 0.3
    arguments = ["relax", "POSCAR", "--config", str(config), "--out", "again", "--no-plot"]
    assert main(arguments) == 0
    assert result_of("again")["energy_eV"] == result["energy_eV"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["POSCAR", "--fmx", "1"], "unknown option --fmx; did you mean '--fmax'"),
        (["POSCAR", "--fmax", "tiny"], "--fmax"),
        (["POSCAR", "--cell", "ful"], "did you mean 'full'"),
        (["POSCAR", "--cell", "full", "--set", "smx=1"], "did you mean 'smax'"),
        (["POSCAR", "--pressure", "5"], "no effect"),
        (["POSCAR", "--model", "nothing.pth"], "no such model file"),
        (["POSCAR", "--device", "cuda:99"], "device"),
        (["POSCAR", "--steps", "-1"], "steps"),
        (["POSCAR", "--smooth-cutoff", "4"], "must be between 0 and the cutoff of angles, 4 Å"),
        (["POSCAR", "--smooth-cutoff", "-1"], "smooth_cutoff = -1.0 must be at least 0"),
        (["POSCAR", "--smooth-cutoff", "nan"], "must be finite"),
        ([], "STRUCTURE"),
        (["nowhere.cif"], "no such file"),
        (["."], "is a folder"),
        (["POSCAR", "--out", "POSCAR"], "cannot be used as run directory"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    write("POSCAR", bulk("Cu"), format="vasp")
    err = errors_of(capsys, *arguments)
    assert message in err
    assert len(err.splitlines()) == 1


def test_molecule_has_no_cell_to_relax(capsys):
    write("m.xyz", molecule("H2O"))
    assert "this one is a molecule" in errors_of(capsys, "m.xyz", "--cell", "full")
    assert not Path("m.relax").exists()


def start(*arguments):
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", "relax", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for_step(process, number):
    """Read the output until a step with at least this number was reported."""
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1]) >= number:
            return
    raise AssertionError(f"ended too early: {process.stderr.read()}")


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        *(pytest.param(x, marks=pytest.mark.slow) for x in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_killed_and_continued(how):
    write("POSCAR", strained() * (2, 1, 1), format="vasp")
    arguments = ["POSCAR", "--cell", "full", "--fmax", "1e-3", "--no-plot"]
    process = start(*arguments)
    wait_for_step(process, 3)
    process.send_signal(how)
    process.wait(30)
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted" in process.stderr.read()
        provenance = json.loads(Path("POSCAR.relax/provenance.json").read_text())
        assert provenance["sessions"][-1]["exit_code"] == 130
    process.stdout.close()
    process.stderr.close()
    assert not Path("POSCAR.relax/result.json").exists()

    assert main(["relax", *arguments]) == 0
    log = Path("POSCAR.relax/run.log").read_text()
    assert "continuing after step" in log
    frames = read("POSCAR.relax/trajectory.extxyz", index=":")
    assert [f.info["index"] for f in frames] == list(range(len(frames)))
    assert result_of("POSCAR.relax")["n_steps"] == len(frames) - 1
    assert len(json.loads(Path("POSCAR.relax/provenance.json").read_text())["sessions"]) == 2


def test_killed_between_frame_and_state():
    """A frame that no state refers to is dropped and computed again."""
    write("POSCAR", strained(), format="vasp")
    arguments = ["relax", "POSCAR", "--steps", "3", "--no-plot", "--quiet"]
    assert main(arguments) == 3
    trajectory = Path("POSCAR.relax/trajectory.extxyz")
    with trajectory.open("a") as file:
        file.write("4\nLattice=")  # half a frame
    Path("POSCAR.relax/result.json").unlink()
    assert main(["relax", "POSCAR", "--steps", "200", "--no-plot", "--quiet"]) == 0
    frames = read(trajectory, index=":")
    assert [f.info["index"] for f in frames] == list(range(len(frames)))


def test_damaged_state_is_reported(capsys):
    write("POSCAR", strained(), format="vasp")
    assert main(["relax", "POSCAR", "--steps", "2", "--no-plot", "--quiet"]) == 3
    Path("POSCAR.relax/result.json").unlink()
    Path("POSCAR.relax/checkpoint.json").write_text('{"steps": [')
    assert "checkpoint.json: cannot be read" in errors_of(capsys, "POSCAR")
    Path("POSCAR.relax/checkpoint.json").write_text('{"steps": []}')
    assert "--force starts again" in errors_of(capsys, "POSCAR")


def test_progress_on_a_terminal():
    """On a terminal a last line, which renews itself, tells pace and progress."""
    import pty

    write("POSCAR", strained(), format="vasp")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", "relax", "POSCAR", "--no-plot"],
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    output = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other side has closed
            break
        if not chunk:
            break
        output += chunk
    os.close(master)
    assert process.wait(10) == 0
    text = output.decode()
    assert "step    1" in text
    assert "step 1 of at most 1000" in text
    assert "largest force" in text
    assert "\x1b[2K" in text  # the line was erased and written again
    assert "converged after" in text


def test_constraints_that_vasp_does_not_have():
    atoms = strained()
    atoms.set_constraint([FixedLine([0], (1, 1, 1)), FixedPlane([1], (1, 1, 0))])
    write("in.traj", atoms)
    assert main(["relax", "in.traj"]) == 0
    relaxed = read("in.relax/structure_relaxed.extxyz")
    moved = (relaxed.positions - atoms.positions)[0]
    np.testing.assert_allclose(moved, moved.mean(), atol=1e-7)
    assert np.abs(moved).max() > 1e-3
    same = read("in.relax/structure_relaxed.vasp")
    np.testing.assert_allclose(same.positions, relaxed.positions, atol=1e-7)
    assert same.constraints == []
