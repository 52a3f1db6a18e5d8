"""Batches: every frame in every epoch, bounds, probabilities, resumption, ranks."""

import json
from itertools import chain, pairwise

import numpy as np
import pytest

from dpa3sim.common.errors import InputError
from dpa3sim.train.sampling import BatchRule, BySystem, Group, Sampler, TaskSampler

RULES = [3, "auto:40", "max:40", "filter:25"]
SIZES = np.random.Generator(np.random.PCG64(1)).integers(1, 30, 50)


def groups(*sizes):
    """Groups of frames with these sizes, numbered one after the other."""
    ends = np.cumsum([0, *map(len, sizes)])
    return [
        Group(np.arange(start, start + len(own)), np.array(own))
        for start, own in zip(ends, sizes, strict=False)
    ]


def a_sampler(rule, *sizes, **options):
    options = {"seed": 5, **options}
    return Sampler(groups(*(sizes or (SIZES[:20], SIZES[20:]))), BatchRule.parse(rule), **options)


def batches(sampler, n):
    return [sampler.draw().tolist() for _ in range(n)]


def flat(lists):
    return list(chain.from_iterable(lists))


def an_epoch(sampler, n_frames):
    """The batches up to the end of an epoch."""
    found = []
    while sum(map(len, found)) < n_frames:
        found.append(sampler.draw().tolist())
    return found


@pytest.mark.parametrize("rule", RULES)
def test_every_frame_once_per_epoch(rule):
    sampler = a_sampler(rule)
    used = np.flatnonzero(SIZES <= 25) if rule == "filter:25" else np.arange(50)
    assert sampler.n_frames == len(used)
    epochs = [an_epoch(sampler, len(used)) for _ in range(3)]
    for epoch in epochs:
        assert sorted(flat(epoch)) == used.tolist()
    assert flat(epochs[0]) != flat(epochs[1])


def test_frames_of_a_batch_by_each_rule():
    for batch in an_epoch(a_sampler(3), 50)[:-1]:
        assert len(batch) == 3
    for batch in an_epoch(a_sampler("auto:40"), 50)[:-1]:
        assert SIZES[batch[:-1]].sum() < 40 <= SIZES[batch].sum()
    epoch = an_epoch(a_sampler("max:40"), 50)
    for batch, following in pairwise(epoch):
        assert SIZES[batch].sum() <= 40 < SIZES[batch].sum() + SIZES[following[0]]


@pytest.mark.parametrize(("n", "auto", "most"), [(7, 5, 4), (8, 4, 4), (32, 1, 1), (100, 1, 1)])
def test_equal_sizes_give_the_numbers_of_deepmd_kit(n, auto, most):
    sizes = np.full(1000, n)
    assert BatchRule.parse("auto:32").count(sizes) == auto
    assert BatchRule.parse("auto").count(sizes) == auto
    assert BatchRule.parse("max:32").count(sizes) == most


def test_frames_of_a_large_size_are_left_out_by_filter_only():
    assert an_epoch(a_sampler("max:10", [50, 3, 60]), 3)
    sampler = a_sampler("filter:10", [50, 3, 60, 7, 10])
    assert sorted(flat(an_epoch(sampler, 3))) == [1, 3, 4]
    with pytest.raises(InputError, match="none of 3 frames"):
        a_sampler("filter:2", [50, 3, 60])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("by_system", [None, BySystem()])
def test_resumed_sampler_goes_on(rule, by_system):
    straight = batches(a_sampler(rule, by_system=by_system), 60)
    sampler = a_sampler(rule, by_system=by_system)
    for step in range(40):
        resumed = a_sampler(rule, by_system=by_system)
        resumed.restore(json.loads(json.dumps(sampler.state())))
        assert batches(resumed, 20) == straight[step : step + 20]
        assert sampler.draw().tolist() == straight[step]


def test_seed_and_name_decide():
    first = batches(a_sampler(3), 20)
    assert batches(a_sampler(3), 20) == first
    assert batches(a_sampler(3, seed=6), 20) != first
    assert batches(a_sampler(3, name="other"), 20) != first


@pytest.mark.parametrize("rule", [3, "auto:40", "max:40"])
@pytest.mark.parametrize("by_system", [None, BySystem()])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_are_one_rank_with_larger_batches(rule, by_system, ranks):
    parts = [a_sampler(rule, by_system=by_system, rank=r, ranks=ranks) for r in range(ranks)]
    whole = Sampler(
        groups(SIZES[:20], SIZES[20:]),
        BatchRule.parse(rule).times(ranks),
        seed=5,
        by_system=by_system,
    )
    for batch in batches(whole, 40):
        shares = [part.draw().tolist() for part in parts]
        assert flat(shares) == batch
        if len(batch) >= ranks:
            assert all(shares)
    assert all(part.state() == whole.state() for part in parts)


def test_shares_have_similar_numbers_of_atoms():
    parts = [a_sampler("auto:200", rank=r, ranks=2) for r in range(2)]
    for _ in range(2):
        first, second = (SIZES[part.draw()].sum() for part in parts)
        assert abs(first - second) <= SIZES.max()


def test_large_frames_make_a_batch_for_every_rank():
    parts = [a_sampler("auto:32", [500] * 6, rank=r, ranks=3) for r in range(3)]
    assert [len(part.draw()) for part in parts] == [1, 1, 1]


def test_more_ranks_than_frames():
    parts = [a_sampler(1, [4, 4], rank=r, ranks=5) for r in range(5)]
    shares = [part.draw().tolist() for part in parts]
    assert sorted(flat(shares)) == [0, 1]


def frequencies(draws, options):
    return {option: draws.count(option) / len(draws) for option in options}


def assert_probable(found, expected, n):
    """Within five standard deviations of what ``n`` draws give."""
    for option, p in expected.items():
        assert abs(found[option] - p) <= 5 * np.sqrt(p * (1 - p) / n)


def test_systems_are_drawn_with_their_probabilities():
    # 4, 2 and 1 batches of frames with 8, 16 and 64 atoms.
    sizes = [[8] * 16, [16] * 4, [64]]
    sampler = a_sampler("auto:32", *sizes, by_system=BySystem())
    system = np.repeat([0, 1, 2], [16, 4, 1])
    drawn = [sampler.draw() for _ in range(3000)]
    assert all(len(set(system[batch])) == 1 for batch in drawn)
    found = frequencies([int(system[batch[0]]) for batch in drawn], range(3))
    assert_probable(found, {0: 4 / 7, 1: 2 / 7, 2: 1 / 7}, 3000)
    assert sampler.epoch == pytest.approx(7)


def test_passes_of_a_system_are_its_own():
    sampler = a_sampler(2, [4] * 5, [6] * 8, by_system=BySystem())
    passed = {0: [], 1: []}
    for _ in range(200):
        batch = sampler.draw().tolist()
        passed[int(batch[0] >= 5)].append(batch)
    # A last, smaller batch is kept.
    assert [len(batch) for batch in passed[0][:6]] == [2, 2, 1, 2, 2, 1]
    assert sorted(flat(passed[0][3:6])) == list(range(5))
    assert sorted(flat(passed[1][4:8])) == list(range(5, 13))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BySystem(), [0.1, 0.2, 0.3, 0.4]),
        (BySystem("prob_uniform"), [0.25] * 4),
        (BySystem("prob_sys_size;0:2:0.9;2:4:0.1"), [0.3, 0.6, 0.3 / 7, 0.4 / 7]),
        (BySystem("prob_sys_size;0:1:1;1:4:3"), [0.25, 1 / 6, 0.25, 1 / 3]),
        (BySystem(sys_probs=(0.7, 0.1, 0.1, 0.1)), [0.7, 0.1, 0.1, 0.1]),
        (BySystem(sys_probs=(0.5, -1, -1, 0.0)), [0.5, 0.2, 0.3, 0.0]),
    ],
)
def test_probabilities_of_systems(rule, expected):
    np.testing.assert_allclose(rule.probabilities(np.array([1, 2, 3, 4])), expected)


def test_systems_without_frames_are_not_drawn():
    rule = BySystem("prob_uniform")
    np.testing.assert_allclose(rule.probabilities(np.array([1, 0, 3])), [0.5, 0, 0.5])
    sampler = a_sampler("filter:10", [50, 60], [4, 4], by_system=rule)
    assert {f for batch in batches(sampler, 5) for f in batch} == {2, 3}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (BySystem("prob_size"), "prob_uniform"),
        (BySystem("prob_sys_size;0:2"), "BEGIN:END:WEIGHT"),
        (BySystem("prob_sys_size;0:9:1"), "there are 2 systems"),
        (BySystem("prob_sys_size;1:1:1"), "there are 2 systems"),
        (BySystem("prob_sys_size;0:2:1e1e1"), "no number"),
        (BySystem("prob_sys_size;0:2:0"), "above 0"),
        (BySystem(sys_probs=(1.0,)), "1 numbers for 2 systems"),
        (BySystem(sys_probs=(0.0, 0.0)), "above 0"),
        (BySystem(sys_probs=(1.5, -1)), "above 1"),
    ],
)
def test_bad_probabilities(rule, message):
    with pytest.raises(InputError, match=message):
        rule.probabilities(np.array([1, 2]))


def test_a_rule_for_each_system():
    rules = [BatchRule.parse(1), BatchRule.parse(4)]
    sets = groups([2] * 8, [2] * 8)
    sampler = Sampler(sets, rules, seed=1, by_system=BySystem())
    assert {(len(b), b[0] < 8) for b in batches(sampler, 60)} == {(1, True), (4, False)}
    with pytest.raises(InputError, match="2 entries for 1 sets"):
        Sampler(sets, rules, seed=1)


def test_epoch_counts_batches():
    assert a_sampler(3).epoch == 17
    assert a_sampler("auto:32", [8] * 9).epoch == 3
    assert a_sampler(3, ranks=2).epoch == 9
    sampler = a_sampler("auto:40")
    assert sampler.epoch == pytest.approx(len(an_epoch(sampler, 50)), rel=0.2)


def tasks(weights, seed=3):
    samplers = {name: a_sampler(2, name=name) for name in ("b", "A", "c")}
    return TaskSampler(samplers, weights, seed)


def test_tasks_are_drawn_with_their_weights():
    sampler = tasks({"b": 1.0, "c": 3.0, "A": 0.0})
    drawn = [sampler.draw().task for _ in range(2000)]
    assert_probable(frequencies(drawn, "Abc"), {"b": 0.25, "c": 0.75, "A": 0.0}, 2000)


def test_each_task_has_its_own_stream():
    sampler = tasks(None)
    found = {"A": [], "b": [], "c": []}
    for _ in range(60):
        task, frames = sampler.draw()
        found[task].append(frames.tolist())
    for name, drawn in found.items():
        assert drawn == batches(a_sampler(2, name=name), len(drawn))


def test_resumed_tasks_go_on():
    def draws(sampler, n):
        return [(task, frames.tolist()) for task, frames in (sampler.draw() for _ in range(n))]

    straight, sampler = draws(tasks(None), 60), tasks(None)
    for step in range(0, 50, 5):
        resumed = tasks(None)
        resumed.restore(json.loads(json.dumps(sampler.state())))
        assert draws(resumed, 10) == straight[step : step + 10]
        assert draws(sampler, 5) == straight[step : step + 5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"b": 1.0}, "model_prob names b; the tasks are A, b, c"),
        ({"A": 0.0, "b": 0.0, "c": 0.0}, "positive"),
        ({"A": -1.0, "b": 1.0, "c": 1.0}, "positive"),
    ],
)
def test_bad_weights_of_tasks(weights, message):
    with pytest.raises(InputError, match=message):
        tasks(weights)


def test_state_of_other_data_is_refused():
    sampler = a_sampler(3)
    for _ in range(10):
        sampler.draw()
    with pytest.raises(InputError, match="other data"):
        a_sampler(3, [1, 2, 3]).restore(sampler.state())
    with pytest.raises(InputError, match="other data"):
        a_sampler(3, by_system=BySystem()).restore(sampler.state())
    with pytest.raises(InputError, match="has the tasks A, b, c"):
        TaskSampler({"A": a_sampler(3)}, None, 1).restore(tasks(None).state())


@pytest.mark.parametrize("text", ["0", "-3", "auto:0", "mixed:32", "max:", "3.5", "auto:-1", ""])
def test_bad_batch_sizes(text):
    with pytest.raises(InputError, match="batch_size"):
        BatchRule.parse(text)


def test_no_frames():
    with pytest.raises(InputError, match="no frames"):
        Sampler([], BatchRule.parse(1), seed=1)
