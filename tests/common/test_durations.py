"""Times for people."""

import pytest

from dpa3sim.common.durations import elapsed, estimated


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.4, "12 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.7, "1 h 0 min"),
        (7380, "2 h 3 min"),
    ],
)
def test_elapsed(seconds, text):
    assert elapsed(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (42.0, "42 s"), (600.0, "10 min"), (9000.0, "2.5 h"), (9e5, "10 d")],
)
def test_estimated(seconds, text):
    assert estimated(seconds) == text
