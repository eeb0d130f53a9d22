"""The law in tables: what a load, a history and a moment lead to."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_operator.autoscale import Bounds, Decision, Fleet, History, Reading, Tempo, decide
from millrace_operator.demand import Load

BOUNDS = Bounds(minimum=1, maximum=10, target=10)
TEMPO = Tempo()
NOW = 10_000.0


def reading(*queued_and_running: int, ready: int | None = None, at: float = NOW) -> Reading:
    loads = tuple(Load(queued=0, running=each) for each in queued_and_running)
    return Reading(at=at, ready=len(loads) if ready is None else ready, loads=loads)


def known(*loads: int, ready: int | None = None, needs: int | None = None, **changes: float) -> History:
    """A history that knows a whole window; `needs` was its largest need."""
    history = History(since=NOW - 1000, needs=() if needs is None else ((NOW - 200, needs),))
    return replace(history.observe(reading(*loads, ready=ready), bounds=BOUNDS, tempo=TEMPO), **changes)  # type: ignore[arg-type]


def decided(history: History, *, replicas: int, bounds: Bounds = BOUNDS, rolling: bool = False, now: float = NOW) -> Decision:
    return decide(bounds, Fleet(replicas=replicas, rolling=rolling), history, tempo=TEMPO, now=now)


@pytest.mark.parametrize(
    ("loads", "replicas", "desired"),
    [
        ((10, 10), 2, 2),
        ((11, 11), 2, 2),
        ((12, 12), 2, 3),
        ((35,), 1, 4),
        ((70,), 1, 5),
        ((10, 10, 70), 3, 7),
        ((90,) * 3, 3, 7),
        ((100,) * 5, 5, 10),
    ],
)
def test_growth_follows_the_load_at_once_within_one_step(loads: tuple[int, ...], replicas: int, desired: int) -> None:
    """A step is at most the larger of four more and twice as many."""
    assert decided(known(*loads), replicas=replicas).desired == desired


def test_a_second_step_up_waits() -> None:
    history = known(70).scaled(before=1, after=5, now=NOW - 14)
    assert decided(history, replicas=5).desired == 5
    assert decided(history, replicas=5).blocked_by == "one step up per 15 s"
    assert decided(history, replicas=5, now=NOW + 1).desired == 7


def test_growth_ends_at_the_maximum_and_says_so() -> None:
    decision = decided(known(*[50] * 10), replicas=10)
    assert (decision.desired, decision.blocked_by) == (10, "maxReplicas 10")
    assert decision.sentence == "500 requests in the system need 50 replicas at 10 each"


@pytest.mark.parametrize(("replicas", "desired"), [(10, 8), (9, 8), (5, 4), (3, 2), (2, 1)])
def test_a_shrink_goes_one_small_step(replicas: int, desired: int) -> None:
    assert decided(known(*[0] * replicas), replicas=replicas).desired == desired


def test_the_largest_need_of_the_window_holds_the_count() -> None:
    decision = decided(known(0, 0, 0, 0, needs=4), replicas=4)
    assert (decision.desired, decision.blocked_by) == (4, "the largest need of the last 300 s")


def test_a_need_older_than_the_window_is_forgotten() -> None:
    history = History(since=NOW - 1000, needs=((NOW - 301, 9),)).observe(reading(0, 0), bounds=BOUNDS, tempo=TEMPO)
    assert decided(history, replicas=2).desired == 1


def test_a_second_step_down_waits() -> None:
    history = known(0, 0, 0).scaled(before=4, after=3, now=NOW - 59)
    assert decided(history, replicas=3).blocked_by == "one step down per 60 s"
    assert decided(history, replicas=3, now=NOW + 1).desired == 2


def test_nothing_shrinks_during_a_rollout_but_everything_may_grow() -> None:
    assert decided(known(0, 0), replicas=2, rolling=True).blocked_by == "a rollout in progress"
    assert decided(known(40, 40), replicas=2, rolling=True).desired == 6


def test_a_new_leader_does_not_shrink_before_it_knows_a_whole_window() -> None:
    young = replace(known(0, 0), since=NOW - 299)
    assert decided(young, replicas=2).desired == 2
    assert decided(young, replicas=2, now=NOW + 1).desired == 1


@pytest.mark.parametrize("history", [History(since=0), known(ready=2), known(50, ready=3), known(0, ready=3)])
def test_missing_figures_hold_the_count(history: History) -> None:
    assert decided(history, replicas=3).desired == 3


def test_old_figures_hold_the_count() -> None:
    assert decided(known(90, 90), replicas=2, now=NOW + 16).desired == 2


def test_with_most_figures_a_service_may_grow_but_not_shrink() -> None:
    assert decided(known(30, 30, ready=3), replicas=3).desired == 6
    assert decided(known(0, 0, ready=3), replicas=3).desired == 3


def test_missing_figures_become_news_at_the_third_miss() -> None:
    history = History(since=0)
    certain = []
    for tick in range(4):
        history = history.observe(reading(ready=2, at=NOW + tick), bounds=BOUNDS, tempo=TEMPO)
        certain.append(decided(history, replicas=2).certain)
    assert certain == [False, False, True, True]
    assert decided(history, replicas=2).cause == "MetricsUnavailable"


def test_an_outage_of_the_figures_begins_the_window_anew() -> None:
    history = known(0, 0).observe(reading(ready=2, at=NOW + 5), bounds=BOUNDS, tempo=TEMPO)
    history = history.observe(reading(0, 0, at=NOW + 10), bounds=BOUNDS, tempo=TEMPO)
    assert decided(history, replicas=2, now=NOW + 10).desired == 2


@pytest.mark.parametrize(("replicas", "desired"), [(0, 3), (2, 3), (9, 5)])
def test_the_bounds_hold_even_when_everything_else_stands_still(replicas: int, desired: int) -> None:
    bounds = Bounds(minimum=3, maximum=5, target=10)
    assert decided(History(since=NOW), replicas=replicas, bounds=bounds, rolling=True).desired == desired


@given(
    loads=st.lists(st.integers(0, 10**9), max_size=8),
    silent=st.integers(0, 8),
    replicas=st.integers(0, 1000),
    minimum=st.integers(1, 20),
    spread=st.integers(0, 30),
    age=st.floats(0, 1000),
    rolling=st.booleans(),
)
def test_no_load_leads_outside_the_bounds_and_silence_never_shrinks(
    loads: list[int], silent: int, replicas: int, minimum: int, spread: int, age: float, rolling: bool
) -> None:
    bounds = Bounds(minimum=minimum, maximum=minimum + spread, target=7)
    history = History(since=NOW - 1000).observe(reading(*loads, ready=len(loads) + silent), bounds=bounds, tempo=TEMPO)
    desired = decided(history, replicas=replicas, bounds=bounds, rolling=rolling, now=NOW + age).desired
    assert bounds.minimum <= desired <= bounds.maximum
    if silent or rolling:
        assert desired >= bounds.clamp(replicas)
    assert desired <= max(bounds.clamp(replicas) + 4, 2 * bounds.clamp(replicas))


def test_a_square_wave_does_not_make_the_count_swing() -> None:
    """Two minutes of load, two of silence, for 25 minutes: at most one way up and none back."""
    history, replicas, counts = History(since=0), 1, []
    for tick in range(300):
        now = tick * 5.0
        load = 60 if (tick // 24) % 2 == 0 else 0
        each = math.ceil(load / replicas)
        history = history.observe(reading(*[each] * replicas, at=now), bounds=BOUNDS, tempo=TEMPO)
        desired = decided(history, replicas=replicas, now=now).desired
        history = history.scaled(before=replicas, after=desired, now=now)
        replicas = desired
        counts.append(replicas)
    assert max(counts) <= 7
    assert counts == sorted(counts)
