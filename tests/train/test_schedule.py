"""Learning rates: the formulas of deepmd-kit, edges, monotony."""

import math
from itertools import pairwise

import pytest

from dpa3sim.common.errors import InputError
from dpa3sim.train.schedule import Schedule, ScheduleSettings

START, STOP = 1e-3, 3e-5
SHAPES = [
    {"schedule": "exp"},
    {"schedule": "exp", "smooth": True},
    {"schedule": "exp", "decay_rate": 0.5, "decay_steps": 100},
    {"schedule": "cosine"},
    {"schedule": "wsd"},
    {"schedule": "wsd", "decay_type": "cosine"},
    {"schedule": "wsd", "decay_type": "linear"},
]


def a_schedule(steps, **options):
    return Schedule(
        ScheduleSettings(learning_rate=START, stop_learning_rate=STOP, **options), steps
    )


@pytest.mark.parametrize("smooth", [False, True])
def test_exponential(smooth):
    rate = a_schedule(1_000_000, smooth=smooth)
    factor = (STOP / START) ** (5000 / 1_000_000)
    for t in (0, 4999, 5000, 123_456, 999_999):
        exponent = t / 5000 if smooth else t // 5000
        assert rate(t) == pytest.approx(START * factor**exponent, rel=1e-13)


def test_staircase_ends_one_interval_before_the_last_rate():
    rate = a_schedule(1_000_000)
    # What deepmd-kit's recipe reaches.
    assert rate(999_999) == pytest.approx(3.05e-5, rel=2e-3)
    assert rate(1_000_000) == pytest.approx(STOP)
    assert rate(2_000_000) == STOP


@pytest.mark.parametrize(
    ("steps", "interval"), [(5000, 100), (1010, 100), (1009, 11), (1000, 11), (40, 1)]
)
def test_interval_of_short_trainings(steps, interval):
    rate = a_schedule(steps)
    changes = [t for t in range(1, steps) if rate(t) != rate(t - 1)]
    assert changes == list(range(interval, steps, interval))
    assert rate(interval) == pytest.approx(START * (STOP / START) ** (interval / steps))


def test_decay_rate_keeps_its_interval():
    rate = a_schedule(1000, decay_rate=0.5, decay_steps=2000)
    assert rate(1999) == START
    assert rate(2000) == START / 2


def test_decay_rate_stops_at_the_last_rate():
    rate = a_schedule(1000, decay_rate=0.1, decay_steps=10)
    assert [rate(t) for t in (9, 10, 19, 20, 999)] == pytest.approx(
        [START, START / 10, START / 10, STOP, STOP]
    )


def test_exponential_to_zero():
    rate = Schedule(ScheduleSettings(learning_rate=1e-3, stop_learning_rate=0, smooth=True), 1000)
    assert rate(1000) == pytest.approx(1e-10)


def test_cosine():
    rate = a_schedule(1000, schedule="cosine")
    assert rate(0) == START
    assert rate(250) == pytest.approx(STOP + (START - STOP) / 2 * (1 + math.sqrt(0.5)))
    assert rate(500) == pytest.approx((START + STOP) / 2)
    assert rate(1000) == rate(1500) == STOP


@pytest.mark.parametrize(
    ("form", "at_a_quarter"),
    [
        ("inverse_linear", 1 / (0.25 / STOP + 0.75 / START)),
        ("cosine", STOP + (START - STOP) / 2 * (1 + math.sqrt(0.5))),
        ("linear", START - (START - STOP) / 4),
    ],
)
def test_constant_then_decay(form, at_a_quarter):
    rate = a_schedule(1000, schedule="wsd", decay_type=form, decay_phase_ratio=0.2)
    assert rate(0) == rate(799) == START
    assert rate(800) == pytest.approx(START)
    assert rate(850) == pytest.approx(at_a_quarter)
    assert rate(1000) == rate(1001) == STOP


def test_decay_is_a_share_of_all_steps_but_fits_behind_the_warmup():
    options = {"schedule": "wsd", "decay_type": "linear", "warmup_steps": 900}
    long = a_schedule(1000, decay_phase_ratio=0.5, **options)
    assert long(900) == pytest.approx(START)
    assert long(950) == pytest.approx((START + STOP) / 2)
    none = a_schedule(1000, decay_phase_ratio=0.0, **options)
    assert none(999) == pytest.approx(START)
    assert none(1000) == STOP


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s.values())))
def test_warmup_shifts_the_rest(shape):
    rate = a_schedule(1200, warmup_steps=200, warmup_start_factor=0.1, **shape)
    assert rate(0) == pytest.approx(0.1 * START)
    assert rate(100) == pytest.approx(0.55 * START)
    assert rate(200) == pytest.approx(START)
    if "wsd" not in shape.values():
        plain = a_schedule(1000, **shape)
        assert [rate(200 + t) for t in range(1000)] == [plain(t) for t in range(1000)]


def test_warmup_from_zero():
    rate = a_schedule(100, warmup_steps=10)
    assert [rate(t) for t in range(11)] == pytest.approx([START * t / 10 for t in range(11)])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s.values())))
def test_rates_fall_within_their_bounds(shape):
    rate = a_schedule(1000, **shape)
    rates = [rate(t) for t in range(1100)]
    assert rates[0] == pytest.approx(START)
    assert all(a >= b for a, b in pairwise(rates))
    assert min(rates) >= STOP


@pytest.mark.parametrize("shape", [{"schedule": "exp", "smooth": True}, *SHAPES[3:]])
def test_rates_have_no_jumps(shape):
    def largest(steps):
        rate = a_schedule(steps, **shape, warmup_steps=steps // 10)
        return max(abs(rate(t + 1) - rate(t)) for t in range(steps))

    assert largest(20_000) < 0.15 * largest(2000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "exp, cosine, wsd"),
        ({"learning_rate": 0.0}, "learning_rate = 0 must be above 0"),
        ({"stop_learning_rate": 0.1}, "at most learning_rate"),
        ({"stop_learning_rate": -1e-5}, "at least 0"),
        ({"decay_steps": 0}, "at least 1"),
        ({"decay_rate": 0.0}, r"in \(0, 1\]"),
        ({"decay_rate": 1.5}, r"in \(0, 1\]"),
        ({"warmup_start_factor": 2.0}, "at most 1"),
        ({"decay_phase_ratio": 1.5}, "at most 1"),
        ({"decay_type": "square"}, "inverse_linear, cosine, linear"),
        ({"schedule": "wsd", "stop_learning_rate": 0.0}, "decay_type=cosine"),
        ({"learning_rate": float("nan")}, "finite"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        ScheduleSettings(**options)


def test_warmup_must_leave_steps():
    with pytest.raises(InputError, match="warmup_steps = 10 must be below"):
        a_schedule(10, warmup_steps=10)
