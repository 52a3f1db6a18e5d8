"""Run directories: one calculation each, complete files only."""

import json

import pytest

from dpa3sim.common import files
from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.run import directory as rundir
from dpa3sim.run.directory import RunDirectory

SUMMARY = {"fmax": 0.01, "cell": "full"}


def make(path, summary=SUMMARY, **kwargs):
    run = RunDirectory(path, rundir.fingerprint(summary), summary, **kwargs)
    run.write_provenance({"command": ["x"]}, summary)
    return run


def test_same_calculation_is_found_again(tmp_path):
    with make(tmp_path / "a") as run:
        run.write_checkpoint({"step": 3})
    again = make(tmp_path / "a")
    assert again.checkpoint == {"step": 3}
    again.write_result({"energy_eV": 1.5, "n_steps": 3}, final=True)
    assert again.checkpoint is None
    assert again.result == {
        "schema_version": 1,
        "energy_eV": 1.5,
        "n_steps": 3,
        "units": {"energy_eV": "eV"},
    }
    sessions = json.loads((tmp_path / "a" / rundir.PROVENANCE).read_text())["sessions"]
    assert len(sessions) == 2


def test_another_calculation_is_refused_and_named(tmp_path):
    with make(tmp_path / "a") as run:
        run.write_result({"n": 1}, final=True)
    other = SUMMARY | {"fmax": 0.001}
    with pytest.raises(InputError, match=r"fmax: 0\.01 -> 0\.001"):
        make(tmp_path / "a", other)
    replaced = make(tmp_path / "a", other, force=True)
    assert replaced.result is None


def test_foreign_directory_is_refused_even_with_force(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="is not a run directory"):
            make(tmp_path, force=force)
    assert (tmp_path / "thesis.tex").exists()


def test_a_kill_while_the_first_file_was_written_leaves_a_directory_to_use(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / f".{rundir.PROVENANCE}.12345.part").write_text('{"finger')
    with make(folder) as run:
        assert run.result is None


def test_impossible_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be used"):
        make(tmp_path / "file" / "run")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x"
    atomic_write(target, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_units_follow_from_the_keys():
    assert rundir.unit_of("elastic_tensor_GPa") == "GPa"
    assert rundir.unit_of("fmax_eV_per_A") == "eV/Å"
    assert rundir.unit_of("energy_per_atom_eV") == "eV/atom"
    assert rundir.unit_of("volume_A3") == "Å^3"
    assert rundir.unit_of("surface_energy_J_per_m2") == "J/m^2"
    assert rundir.unit_of("surface_energy_eV_per_A2") == "eV/Å^2"
    assert rundir.unit_of("area_A2") == "Å^2"
    assert rundir.unit_of("n_steps") is None


def test_units_of_the_tables_in_a_result():
    result = {"rows": [{"energy_eV": 1.0, "n": 2}], "settings": {"fmax_eV_per_A": 0.1}}
    assert rundir.with_units(result)["units"] == {"energy_eV": "eV"}


def test_results_are_strict_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        make(tmp_path / "a").write_result({"x": float("nan")}, final=True)


def test_a_directory_belongs_to_one_process(tmp_path):
    with make(tmp_path / "a") as run:
        run.write_checkpoint({"step": 3})
        for force in (False, True):
            with pytest.raises(InputError, match="another process is running"):
                make(tmp_path / "a", force=force)
        assert run.checkpoint == {"step": 3}
    make(tmp_path / "a").close()


def test_force_empties_what_is_damaged(tmp_path):
    make(tmp_path / "a").close()
    (tmp_path / "a" / rundir.PROVENANCE).write_text("{")
    with pytest.raises(InputError, match="--force starts again"):
        make(tmp_path / "a")
    with make(tmp_path / "a", force=True) as run:
        assert run.result is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"step": 4}', '{"sha256": "0", "state": {"step": 4}}']
)
def test_a_damaged_state_is_told(tmp_path, text):
    with make(tmp_path / "a") as run:
        run.write_checkpoint({"step": 3, "energy": 0.1})
        path = tmp_path / "a" / rundir.CHECKPOINT
        assert '"step": 3' in path.read_text()
        for damaged in (text, path.read_text().replace('"step": 3', '"step": 4')):
            path.write_text(damaged)
            with pytest.raises(InputError, match="--force starts again"):
                _ = run.checkpoint


def test_interrupted_emptying_leaves_a_run_directory(tmp_path, monkeypatch):
    """Else nobody could use, or empty, the folder any more."""
    with make(tmp_path / "a") as run:
        run.write_checkpoint({"step": 3})
    removed = []

    def interrupt(self, *args):
        removed.append(self.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(type(tmp_path), "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "a", force=True)
    assert removed[0] != rundir.PROVENANCE
    make(tmp_path / "a", force=True).close()
