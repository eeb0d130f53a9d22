"""Shapes of load and recorded traces."""

import random

import pytest

from millrace_operator.simulate.traffic import SHAPES, InvalidTrace, recorded, shaped
from simulate.scenes import load


def rate(arrivals: tuple[float, ...], begin: float, end: float) -> float:
    return sum(begin <= at < end for at in arrivals) / (end - begin)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_ascends_ends_in_time_and_is_the_same_for_the_same_seed(shape: str) -> None:
    traffic = load(shape, high=20)
    assert list(traffic.arrivals) == sorted(traffic.arrivals)
    assert traffic.arrivals[0] >= 0
    assert traffic.arrivals[-1] < traffic.seconds == 1500
    assert traffic == load(shape, high=20)
    assert traffic != load(shape, high=20, seed=1)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("steady", {(0, 300): 20, (1200, 1500): 20}),
        ("step", {(0, 300): 2, (300, 1500): 20}),
        ("ramp", {(0, 300): 2, (450, 750): 11, (900, 1500): 20}),
        ("square", {(0, 150): 2, (150, 300): 20, (300, 450): 2, (1350, 1500): 20}),
        ("spike", {(0, 300): 2, (300, 360): 20, (360, 1500): 2}),
    ],
)
def test_a_shape_has_its_rates(shape: str, expected: dict[tuple[float, float], float]) -> None:
    arrivals = load(shape, high=20).arrivals
    for (begin, end), wanted in expected.items():
        assert rate(arrivals, begin, end) == pytest.approx(wanted, rel=0.15), (begin, end)


def test_a_trace_of_arrivals_is_replayed_as_it_was() -> None:
    traffic = recorded("yesterday", "arrival_seconds\n100\n100.5\n103\n", chance=random.Random(0))
    assert traffic.arrivals == (0, 0.5, 3)
    assert traffic.seconds == 3


def test_a_trace_of_rates_holds_each_rate_until_the_next_line() -> None:
    text = "seconds, requests_per_second\n0,1\n600,10\n1200,0\n1800,0\n"
    traffic = recorded("yesterday", text, chance=random.Random(0))
    assert traffic.seconds == 1800
    assert traffic.highest == 10
    assert rate(traffic.arrivals, 0, 600) == pytest.approx(1, rel=0.15)
    assert rate(traffic.arrivals, 600, 1200) == pytest.approx(10, rel=0.1)
    assert rate(traffic.arrivals, 1200, 1800) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1"),
        ("time,rps\n0,1\n", "line 1 is 'time,rps'; write 'arrival_seconds' or 'seconds,requests_per_second'"),
        ("arrival_seconds\n1\n", "1 lines of figures"),
        ("arrival_seconds\n1\nsoon\n", "line 3 is 'soon'; write numbers"),
        ("arrival_seconds\n1\nnan\n", "line 3 is 'nan'; write 1 numbers from 0"),
        ("arrival_seconds\n1\n-2\n", "line 3"),
        ("seconds,requests_per_second\n1\n2,3\n", "line 2 is '1'; write 2 numbers"),
        ("arrival_seconds\n2\n1\n", "must ascend"),
        ("arrival_seconds\n2\n2\n", "must last"),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(InvalidTrace, match=words):
        recorded("bad", text, chance=random.Random(0))


def test_a_shape_without_requests_is_empty() -> None:
    assert shaped("steady", low=0, high=0, seconds=10, chance=random.Random(0)).arrivals == ()
