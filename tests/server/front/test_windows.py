"""Rates and percentiles over the recent past, in virtual time."""

import pytest

from millrace_server.windows import DurationWindow, RateWindow


def test_a_rate_is_counted_over_its_window_only() -> None:
    rate = RateWindow(seconds=60, now=0)
    for second in range(120):
        rate.add(now=second)
        rate.add(now=second + 0.5)
    assert rate.per_second(now=119.9) == pytest.approx(2, rel=0.02)
    assert rate.per_second(now=500) == 0


def test_a_young_rate_is_taken_over_its_age_but_at_least_a_second() -> None:
    rate = RateWindow(seconds=60, now=100)
    rate.add(now=100.1)
    assert rate.per_second(now=100.2) == 1
    assert rate.per_second(now=110) == pytest.approx(0.1)


def test_percentiles_are_nearest_rank_and_forget_what_is_old() -> None:
    window = DurationWindow(seconds=300)
    for number in range(1, 101):
        window.add(float(number), now=0)
    assert window.percentiles(0.5, 0.95, 0.99, now=10) == ([50, 95, 99], 50.5)
    window.add(7.0, now=299)
    assert window.percentiles(0.5, 0.99, now=301) == ([7, 7], 7)
    assert window.percentiles(0.5, now=1000) == ([0], 0)


def test_memory_is_bounded() -> None:
    window = DurationWindow(seconds=300, capacity=3)
    for number in range(10):
        window.add(float(number), now=0)
    assert window.percentiles(0.01, 1, now=0)[0] == [7, 9]
