"""Trainings that learn, stop, continue and repeat themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_support import SMALL, labelled, recipe, water, with_options

from dpa3sim.common.errors import InputError, NonFiniteError
from dpa3sim.train.recording import MemoryRecorder
from dpa3sim.train.trainer import Trainer


@pytest.fixture(scope="module")
def frames():
    return labelled(water(12, seed=1)), labelled(water(4, seed=2))


def models(recorder):
    return recorder.found["last"]["Default"], recorder.found["best"]["Default"]


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


def test_a_model_learns(frames):
    recorder = MemoryRecorder()
    outcome = Trainer(recipe(*frames, steps=120, validate_every=40), recorder).run()
    first, last = outcome.rows[0], outcome.rows[-1]
    assert outcome.finished
    assert outcome.steps == 120
    assert last["train_rmse_forces_eV_per_A"] < 0.7 * first["train_rmse_forces_eV_per_A"]
    assert outcome.gradient_error < 1e-3
    assert outcome.best_step in (40, 80, 120)
    assert outcome.validation["Default"]["rmse_forces_eV_per_A"] == min(
        row["validation_rmse_forces_eV_per_A"] for row in outcome.rows if "validation_loss" in row
    )


def test_difference_and_exact_gradients_train_the_same(frames):
    found = [Trainer(recipe(*frames, gradient=kind)).run() for kind in ("difference", "exact")]
    for a, b in zip(found[0].rows, found[1].rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert found[1].gradient_error is None


@pytest.mark.parametrize("at", [1, 7, 10, 13])
def test_a_continued_training_has_the_same_bits(frames, at):
    whole, parts = MemoryRecorder(), MemoryRecorder()
    given = recipe(*frames, ema_decay=0.9)
    straight = Trainer(given, whole).run()
    steps = iter(range(1, 100))
    stopped = Trainer(given, parts, stop=lambda: next(steps) == at).run()
    assert not stopped.finished
    assert stopped.steps == at
    continued = Trainer(given, parts).run()
    assert continued.finished
    assert continued.rows == straight.rows
    assert continued.validation == straight.validation
    for a, b in zip(models(parts), models(whole), strict=True):
        assert_same_bits(a, b)
    assert json.dumps(parts.state.facts) == json.dumps(whole.state.facts)
    for name, tensor in whole.state.tensors.items():
        assert torch.equal(tensor, parts.state.tensors[name]), name


@pytest.mark.parametrize("at", [3, 20])
def test_asked_to_give_up_before_the_first_step_it_ends_at_once(frames, at):
    """While edges are searched, and while energies of the elements are fitted."""
    recorder, asked = MemoryRecorder(), iter(range(1, 1000))
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe(*frames), recorder, give_up=lambda: next(asked) >= at).run()
    assert recorder.state is None
    assert Trainer(recipe(*frames), recorder).run().finished


def test_a_finished_training_does_nothing_more(frames):
    recorder = MemoryRecorder()
    given = recipe(*frames)
    Trainer(given, recorder).run()
    before = recorder.state
    again = Trainer(given, recorder).run()
    assert again.frames == 0
    assert again.finished
    assert recorder.state is before


def test_more_steps_continue(frames):
    recorder = MemoryRecorder()
    Trainer(recipe(*frames, steps=10), recorder).run()
    outcome = Trainer(recipe(*frames, steps=20), recorder).run()
    assert outcome.steps == 20


def test_the_first_energy_bias_leaves_no_offset(frames):
    training, _ = frames
    shifted = labelled(water(12, seed=1), offset=-5.0)
    for bias in ("labels", "residual"):
        rows = []
        for data in (training, shifted):
            outcome = Trainer(recipe(data, None, steps=1, report_every=1, energy_bias=bias)).run()
            rows.append(outcome.rows[0]["train_rmse_energy_per_atom_eV"])
        assert rows[0] == pytest.approx(rows[1], abs=1e-6)
    # Of what is left by the untrained model, nothing is an offset.
    assert rows[0] < 0.2


def test_early_stop(frames):
    training, _ = frames
    other = labelled(water(4, seed=2, spread=0.0), offset=3.0)
    given = recipe(training, other, steps=200, validate_every=1, patience=2)
    outcome = Trainer(with_options(given, energy_bias="labels")).run()
    assert outcome.finished
    if outcome.steps < 200:
        assert outcome.best_step == outcome.steps - 2
        assert "no better validation" in outcome.reason


def test_epochs(frames):
    outcome = Trainer(recipe(*frames, epochs=2.5)).run()
    assert outcome.steps == 15  # 12 frames by 2


def test_frames_of_any_size_without_some_labels():
    training = labelled([*water(3, 1), *water(3, 2, n=3)])
    forces, virials = training.forces.copy(), training.virials.copy()
    forces[: training.starts[2]] = np.nan
    virials[3:] = np.nan
    mixed = replace(training, forces=forces, virials=virials)
    outcome = Trainer(recipe(mixed, None, batch_size="auto:12")).run()
    assert outcome.finished
    assert "no validation frames" in outcome.warnings[-1]


def test_a_training_that_diverges_says_so(frames):
    training, _ = frames
    bad = replace(training, forces=np.full_like(training.forces, 1e200))
    with pytest.raises(NonFiniteError, match="diverged"):
        Trainer(recipe(bad, None)).run()


def test_elements_that_the_model_lacks(frames):
    given = recipe(*frames)
    config = replace(given.config, type_map=("H", "C"))
    with pytest.raises(InputError, match=r"made, frame 0.*unknown element 'O'"):
        Trainer(replace(given, config=config))


def test_a_state_of_another_model_is_refused(frames):
    recorder = MemoryRecorder()
    Trainer(recipe(*frames, steps=2), recorder).run()
    other = recipe(*frames, steps=2, architecture=replace(SMALL, n_dim=20))
    with pytest.raises(InputError, match="another model"):
        Trainer(other, recorder).run()


def test_statistics_of_the_data(frames):
    given = recipe(*frames, steps=2)
    given = replace(given, initial={"fix_stat_std": 0.0})
    recorder = MemoryRecorder()
    Trainer(given, recorder).run()
    std = models(recorder)[0]["descriptor.repflows.stddev"]
    assert np.isfinite(std).all()
    assert not (std == 0.3).any()


def test_every_option_of_the_readable_network_can_be_trained(frames):
    for change in (
        {"update_style": "res_avg", "a_compress_rate": 0},
        {"sequential_update": True, "smooth_edge_update": False},
        {"update_angle": False, "use_exp_switch": False, "edge_init_use_dist": False},
        {"concat_output_tebd": True, "use_tebd_bias": True, "n_multi_edge_message": 2},
    ):
        given = recipe(*frames, steps=3, architecture=replace(SMALL, **change))
        outcome = Trainer(given).run()
        assert outcome.gradient_error < 1e-3, change
