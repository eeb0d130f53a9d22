"""The law against what goes wrong: silence, lies, restarts, stuck rollouts, long cold starts. Played on, in virtual time."""

import itertools
from collections.abc import Callable

import pytest

from millrace_operator.autoscale import Bounds, Decision, Fleet, History, Reading, Tempo, decide
from millrace_operator.demand import Demand, Load

BOUNDS = Bounds(minimum=1, maximum=20, target=6, slots=8)
TEMPO = Tempo()
Counts = Callable[[int, float], Load | None]
"""What replica number … says at a moment; None: it is silent."""


def serving(requests_per_second: float, *, replicas: int, seconds: float = 4) -> Callable[[int, float], Load]:
    """Replicas that share a rate which all of them together can bear."""

    def load(number: int, now: float) -> Load:
        served = int(now * requests_per_second / replicas)
        running = round(requests_per_second * seconds / replicas)
        return Load(queued=0, running=running, boot_id=str(number), arrivals=served, completed=served, running_seconds=served * seconds)

    return load


def follow(
    says: Counts, *, ready: int, begin: float, end: float, history: History | None = None, replicas: int | None = None, **fleet: int
) -> tuple[list[Decision], History]:
    """Look every five seconds and obey: the decisions, and the history after them. The ready ones stay as they are."""
    history, wanted, decisions = history or History(since=begin), replicas or ready, []
    for tick in range(int((end - begin) / 5)):
        now = begin + 5 * tick
        loads = tuple(load for number in range(ready) if (load := says(number, now)) is not None)
        history = history.observe(Reading(at=now, ready=ready, loads=loads), bounds=BOUNDS, tempo=TEMPO)
        running = Fleet(replicas=wanted, rolling=bool(fleet.get("rolling")), failing=fleet.get("failing", 0))
        decisions.append(decide(BOUNDS, running, history, tempo=TEMPO, now=now))
        history = history.scaled(before=wanted, after=decisions[-1].desired, now=now)
        wanted = decisions[-1].desired
    return decisions, history


def test_silence_of_all_holds_the_count_and_says_so_within_20_seconds() -> None:
    _, history = follow(serving(6, replicas=4), ready=4, begin=0, end=600)
    decisions, _ = follow(lambda *_: None, ready=4, begin=600, end=1800, history=history)
    assert {each.desired for each in decisions} == {4}
    assert next(each.cause for each in decisions if each.certain) == "MetricsUnavailable"
    assert [each.certain for each in decisions].index(True) * 5 <= 20


def test_with_half_of_them_silent_the_count_may_grow_but_not_shrink() -> None:
    def half(says: Counts) -> Counts:
        return lambda number, now: says(number, now) if number % 2 else None

    idle, _ = follow(half(serving(0, replicas=4)), ready=4, begin=0, end=900)
    assert {each.desired for each in idle} == {4}
    busy, _ = follow(half(serving(40, replicas=4)), ready=4, begin=0, end=30)
    assert busy[-1].desired > 4


def test_frozen_counters_are_no_load_that_buys_replicas() -> None:
    """A replica that repeats itself has no arrivals; what it says is in its system keeps the count up."""
    frozen = serving(6, replicas=4)(0, 500)
    decisions, _ = follow(lambda number, now: Load(**{**vars(frozen), "boot_id": str(number)}), ready=4, begin=0, end=900)
    assert max(each.desired for each in decisions) == 4


def test_a_new_leader_with_busy_replicas_shrinks_nothing_for_a_window_and_jumps_at_most_one_step() -> None:
    idle, _ = follow(serving(0, replicas=3), ready=3, begin=10_000, end=10_300)
    assert {each.desired for each in idle} == {3}
    busy, _ = follow(serving(200, replicas=3), ready=3, begin=10_000, end=10_015)
    assert {each.desired for each in busy} <= {3, 7}


def test_a_new_leader_knows_the_seconds_per_request_that_the_old_one_measured() -> None:
    """Long requests with a backlog: until twenty have ended, only the status can tell what the demand is."""

    def backlogged(number: int, now: float) -> Load:
        return Load(**{**vars(serving(0.5, replicas=4, seconds=40)(number, now)), "queued": 16})

    knowing = History(since=0, demand=Demand(seconds_per_request=40))
    _, knowing = follow(backlogged, ready=4, begin=0, end=30, history=knowing)
    assert knowing.need(BOUNDS) == pytest.approx((0.5 * 40 + 64 * 40 / 400) / 6, rel=0.25)
    _, unknowing = follow(backlogged, ready=4, begin=0, end=30)
    assert unknowing.need(BOUNDS) == pytest.approx((20 + 64) / 6)


def test_a_stuck_rollout_does_not_keep_a_later_shrink_from_happening() -> None:
    """While it progresses it does; the Deployment's controller says when it no longer progresses."""
    progressing, history = follow(serving(1, replicas=4), ready=4, begin=0, end=900, rolling=1)
    assert progressing[-1].desired == 4
    assert progressing[-1].blocked_by == "a rollout in progress"
    stuck, _ = follow(serving(1, replicas=4), ready=4, begin=900, end=1200, history=history, rolling=0)
    assert stuck[-1].desired == 1


def test_replicas_that_cannot_start_are_not_answered_with_more_of_them() -> None:
    decisions, _ = follow(serving(6, replicas=1), ready=1, begin=0, end=600, replicas=3, failing=2)
    assert {each.desired for each in decisions} == {3}
    assert decisions[-1].blocked_by == "2 replicas that cannot start"


def test_replicas_that_are_starting_count_as_capacity_for_as_long_as_they_take() -> None:
    """15 minutes of a need that what starts will cover."""
    decisions, _ = follow(serving(2, replicas=1), ready=1, begin=0, end=900, replicas=2)
    assert {each.desired for each in decisions} == {2}
    creeping, _ = follow(serving(7, replicas=1), ready=1, begin=0, end=900, replicas=4)
    assert creeping[-1].blocked_by == "3 replicas that are starting"


def test_one_liar_gains_a_step_at_a_time_and_never_more_than_the_maximum() -> None:
    def lying(number: int, now: float) -> Load:
        honest = serving(6, replicas=4)(number, now)
        return honest if number else Load(**{**vars(honest), "arrivals": int(now * 10**12)})

    decisions, _ = follow(lying, ready=4, begin=0, end=300)
    counts = [4] + [each.desired for each in decisions]
    assert all(after <= max(before + 4, 2 * before) for before, after in itertools.pairwise(counts))
    assert max(counts) == 20
    assert decisions[-1].blocked_by == "maxReplicas 20"


@pytest.mark.parametrize("target", [6, 8, 16, 20])
def test_a_target_above_the_slots_does_not_count_on_slots_that_do_not_exist(target: int) -> None:
    bounds = Bounds(minimum=1, maximum=20, target=target, slots=8)
    history = History(since=0)
    for now in range(0, 120, 5):
        history = history.observe(Reading(at=now, ready=1, loads=(serving(20, replicas=1)(0, now),)), bounds=bounds, tempo=TEMPO)
    assert history.need(bounds) >= 80 / 8
