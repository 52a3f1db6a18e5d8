"""One training step against deepmd-kit 3.1.3, in float64.

``data/make_training_step.py`` says how the reference was made: a step of AdamW with weight decay, a
gradient that is shortened, and errors of energy, forces and virial.
"""

from dataclasses import replace

import numpy as np
import pytest
from tests_support import DATA

from dpa3sim import Potential, load_model
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.train.prepare import from_deepmd
from dpa3sim.train.recording import MemoryRecorder
from dpa3sim.train.settings import SINGLE
from dpa3sim.train.trainer import Trainer

FOLDER = DATA / "training_step"
SHORTENED = 5.0  # gradient_max_norm
MEAN = 0.1  # 1 - beta1


@pytest.fixture(scope="module")
def theirs():
    with np.load(FOLDER / "step.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def before():
    return load_model(FOLDER / "before.pt").weights


@pytest.fixture(scope="module")
def recipe(before):
    found = from_deepmd(FOLDER / "input.json", DataSettings(), {"device": "cpu"}).recipe
    return replace(found, start={SINGLE: before})


@pytest.fixture(scope="module", params=["difference", "exact"])
def ours(recipe, request):
    recorder = MemoryRecorder()
    train = replace(recipe.train, gradient=request.param)
    outcome = Trainer(replace(recipe, train=train), recorder).run()
    return outcome, recorder


def part(arrays, prefix):
    return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}


def joined(arrays, names):
    return np.concatenate([np.ravel(arrays[name]) for name in names])


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def moments_of(recorder):
    return part({n: x.numpy() for n, x in recorder.state.tensors.items()}, "optimizer/exp_avg.")


def test_the_weights_change_alike(ours, theirs, before):
    _, recorder = ours
    mine, after = recorder.found["last"][SINGLE], part(theirs, "weight/")
    names = sorted(after)
    start = joined(before, names)
    assert relative(joined(mine, names) - start, joined(after, names) - start) < 1e-3
    assert {n for n in mine if not np.array_equal(mine[n], before[n])} <= set(names)


def test_the_shortened_gradients_are_equal(ours, theirs):
    mine, expected = moments_of(ours[1]), part(theirs, "moment/")
    assert mine.keys() == expected.keys()
    names = sorted(mine)
    assert np.linalg.norm(joined(expected, names)) == pytest.approx(MEAN * SHORTENED, rel=1e-5)
    assert relative(joined(mine, names), joined(expected, names)) < 1e-5


def test_weights_that_no_energy_reaches_stay(ours, theirs, before):
    _, recorder = ours
    after = part(theirs, "weight/")
    unreachable = after.keys() - part(theirs, "moment/").keys()
    assert unreachable
    for name in unreachable:
        np.testing.assert_array_equal(after[name], before[name].reshape(after[name].shape))
        np.testing.assert_array_equal(recorder.found["last"][SINGLE][name], before[name])


def test_the_loss_is_that_of_their_predictions(ours, theirs, recipe):
    """The formula of the loss at the first step, written out for one frame."""
    frames, loss = recipe.tasks[0].training, recipe.tasks[0].loss
    n = len(frames.forces)
    expected = (
        loss.start_pref_e * (theirs["energy"] - frames.energies[0]) ** 2 / n
        + loss.start_pref_f * np.mean((theirs["forces"] - frames.forces) ** 2)
        + loss.start_pref_v * np.mean((theirs["virial"] - frames.virials[0]) ** 2) / n
    )
    assert ours[0].rows[0]["loss"] == pytest.approx(expected, rel=1e-9)
    # Their learning curve shows the square root of it in three digits.
    assert np.sqrt(expected) == pytest.approx(theirs["rmse"], rel=5e-3)


def test_the_first_checkpoint_predicts_the_same(theirs, recipe):
    potential = Potential(FOLDER / "before.pt", dtype="float64")
    found = potential.evaluate([recipe.tasks[0].training[0].system])[0]
    assert found.energy == pytest.approx(float(theirs["energy"]), abs=1e-9)
    np.testing.assert_allclose(found.forces, theirs["forces"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.virial, theirs["virial"], rtol=0, atol=1e-9)
