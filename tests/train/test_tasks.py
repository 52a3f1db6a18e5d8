"""Several data sets in one model: dataset encoding, and a fitting net for each."""

from dataclasses import replace

import numpy as np
import pytest
from training_support import SMALL, labelled, recipe, water

from dpa3sim.train.recipe import Task
from dpa3sim.train.recording import MemoryRecorder
from dpa3sim.train.sampling import BatchRule
from dpa3sim.train.settings import LossSettings
from dpa3sim.train.trainer import Trainer

OFFSET, SOFTNESS = -4.0, 0.7


def softer(frames):
    """The same structures in another functional: an offset for each atom, and weaker forces."""
    return replace(
        frames,
        energies=SOFTNESS * frames.energies + OFFSET * frames.sizes,
        forces=SOFTNESS * frames.forces,
        virials=SOFTNESS * frames.virials,
    )


def joint(pairs, **options):
    """One model of several tasks; ``pairs``: training and validation frames by name."""
    first = next(iter(pairs.values()))
    given = recipe(*first, **options)
    tasks = tuple(
        Task(name, training, validation, LossSettings(), BatchRule.parse("2"))
        for name, (training, validation) in pairs.items()
    )
    encoding = 0 if given.train.separate_fitting else len(pairs)
    return replace(given, config=SMALL.config(("H", "O"), encoding), tasks=tasks)


@pytest.fixture(scope="module")
def pairs():
    hard = labelled(water(12, seed=1)), labelled(water(4, seed=2))
    return {"hard": hard, "soft": tuple(softer(x) for x in hard)}


@pytest.mark.parametrize("separate", [False, True], ids=["encoding", "fitting nets"])
def test_what_tasks_share(pairs, separate):
    recorder = MemoryRecorder()
    Trainer(joint(pairs, steps=6, separate_fitting=separate), recorder).run()
    hard, soft = (recorder.found["last"][name] for name in ("hard", "soft"))
    for name, array in hard.items():
        same = np.array_equal(array, soft[name])
        if name.startswith("descriptor."):
            assert same, name
        elif name in ("out_bias", "fitting_net.case_embd"):
            assert not same, name
        elif name.endswith("matrix"):
            assert same != separate, name
    if not separate:
        np.testing.assert_array_equal(hard["fitting_net.case_embd"], [1, 0])
        np.testing.assert_array_equal(soft["fitting_net.case_embd"], [0, 1])


def test_a_task_that_is_not_drawn_is_left_alone(pairs):
    recorder = MemoryRecorder()
    options = {"separate_fitting": True, "task_weights": "hard=1 soft=0", "steps": 4}
    given = joint(pairs, **options)
    Trainer(given, recorder).run()
    untouched = MemoryRecorder()
    Trainer(
        replace(given, train=replace(given.train, steps=1, task_weights="hard=1 soft=0")), untouched
    ).run()
    for name, array in recorder.found["last"]["soft"].items():
        if name.startswith("fitting_net."):
            np.testing.assert_array_equal(array, untouched.found["last"]["soft"][name])


def test_a_continued_training_has_the_same_bits(pairs):
    given = joint(pairs, steps=12)
    whole, parts = MemoryRecorder(), MemoryRecorder()
    Trainer(given, whole).run()
    steps = iter(range(1, 100))
    Trainer(given, parts, stop=lambda: next(steps) == 5).run()
    Trainer(given, parts).run()
    for task, arrays in whole.found["last"].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, parts.found["last"][task][name])


@pytest.mark.slow
def test_together_is_as_good_as_apart_and_heads_differ(pairs):
    """At as many steps for each task; with the other's case vector, forces are clearly wrong."""
    steps = 300
    apart = {}
    for name, pair in pairs.items():
        outcome = Trainer(recipe(*pair, steps=steps, validate_every=steps)).run()
        apart[name] = outcome.validation["Default"]["rmse_forces_eV_per_A"]
    recorder = MemoryRecorder()
    given = joint(pairs, steps=2 * steps, validate_every=2 * steps)
    together = Trainer(given, recorder).run().validation
    for name, error in apart.items():
        assert together[name]["rmse_forces_eV_per_A"] < 1.2 * error
    hard, soft = (recorder.found["last"][name] for name in ("hard", "soft"))
    swapped = {**hard, "fitting_net.case_embd": soft["fitting_net.case_embd"]}
    validation = pairs["hard"][1]
    start = {"Default": swapped}
    other = replace(recipe(validation, None, steps=2), config=given.config, start=start)
    wrong = Trainer(other).run().rows[0]["train_rmse_forces_eV_per_A"]
    assert wrong > 1.3 * together["hard"]["rmse_forces_eV_per_A"]
