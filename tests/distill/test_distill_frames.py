"""What the teacher shows: conditions, labels, and frames that are held out."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from ase.build import molecule
from distill_support import TEACHER

from dpa3sim import Potential
from dpa3sim.distill.errors import Errors
from dpa3sim.distill.frames import (
    TEMPERATURE,
    dynamics,
    first_set,
    held_out,
    in_time,
    stages,
    with_labels,
)
from dpa3sim.distill.settings import DistillOptions, DistillSampleSettings, DistillSettings

SAMPLE = DistillSampleSettings(
    temperatures="300 600",
    pressures="0 5",
    md_time=4.0,
    md_interval=2.0,
    min_atoms=3,
    kinds="rattled md dimers",
    rattle="0.05",
    rattle_count=2,
    dimer_points=3,
    frames=12,
)
OPTIONS = DistillOptions(
    distill=DistillSettings(held_out_time=6.0, weights="dimers=0.25 all=2"), sample=SAMPLE
)


@cache
def teacher():
    return Potential(TEACHER)


@cache
def held():
    """Frames that tests must not change."""
    return tuple(held_out([water()], teacher(), OPTIONS))


def water():
    return molecule("H2O", cell=[3.2, 3.2, 3.2], pbc=True)


def positions(frames):
    return {atoms.positions.round(6).tobytes() for atoms in frames}


def test_held_out_frames_are_of_other_trajectories():
    frames = first_set([water()], teacher(), teacher(), OPTIONS)
    assert not positions(held()) & positions(frames)
    # 6 fs less the first third, every 3 fs, of 2 temperatures and 2 pressures.
    assert [atoms.info[TEMPERATURE] for atoms in held()] == [300.0] * 4 + [600.0] * 4
    assert {atoms.info["detail"] for atoms in held()} >= {
        "300 K, 0 GPa, 3 fs",
        "600 K, 5 GPa, 6 fs",
    }
    for atoms in (*held(), *frames):
        out = teacher().evaluate([atoms])[0]
        assert atoms.get_potential_energy() == pytest.approx(out.energy, abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), out.forces, atol=1e-6)
    weights = {atoms.info["config_type"]: atoms.info["config_weight"] for atoms in frames}
    assert weights == {"rattled": 2, "md": 2, "dimers": 0.25}
    # Frames of dynamics at a pressure differ in volume.
    volumes = {round(atoms.get_volume(), 6) for atoms in held()}
    assert len(volumes) == len(held())


def test_frames_follow_from_the_seed():
    one = replace(SAMPLE, temperatures="300", pressures="")
    settings = one, one, replace(one, seed=1)
    found = [held_out([water()], teacher(), replace(OPTIONS, sample=x)) for x in settings]
    assert positions(found[0]) == positions(found[1])
    assert not positions(found[0]) & positions(found[2])


def test_molecules_have_no_pressure():
    found = dynamics([molecule("H2O")], teacher(), SAMPLE, seed=0, wanted=lambda t: t == 600.0)
    assert [atoms.info["detail"] for atoms in found.frames] == ["600 K, 2 fs", "600 K, 4 fs"]
    assert not found.problems


def test_some_frames_are_evenly_spaced():
    found = dynamics([molecule("H2O")], teacher(), in_time(SAMPLE, 16.0), seed=0)
    assert len(found.frames) == 4  # not more than in a shorter time
    assert found.some(2) == [found.frames[1], found.frames[3]]
    assert found.some(9) == found.frames
    assert replace(found, frames=[]).some(3) == []


def test_the_plan_counts_what_the_teacher_evaluates():
    counts = {stage.name: stage.total for stage in stages([water()], OPTIONS)}
    assert counts["dynamics to train with"] == (4 * 9, 4 * 9)
    assert counts["held-out dynamics"] == (4 * 13, 4 * 13)
    assert counts["labels"][1] == 12 + 30 * (2 + 2)


def test_errors_at_each_temperature():
    frames = with_labels(held(), teacher())
    rows = Errors.of(frames, teacher()).rows()
    assert [(row["temperature_K"], row["frames"]) for row in rows] == [(300.0, 4), (600.0, 4)]
    assert all(row["forces_rmse_eV_per_A"] < 1e-6 for row in rows)
    for atoms in frames[4:]:
        atoms.calc.results["forces"] = atoms.get_forces() + 0.5
        atoms.calc.results["energy"] += 3.0
    errors = Errors.of(frames, teacher())
    assert errors.rows()[0] == rows[0]
    assert errors.worst == pytest.approx(0.5, abs=1e-6)
    assert errors.rows()[1]["energy_rmse_per_atom_eV"] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(errors.of_frames, [0.0] * 4 + [0.5] * 4, atol=1e-6)
