"""What happens to requests and replicas in virtual time. Each law of nature here is one that a real service keeps, too."""

import random
from dataclasses import dataclass, replace

import pytest

from millrace_operator.autoscale import Bounds
from millrace_operator.simulate.laws import View
from millrace_operator.simulate.play import Record, play
from millrace_operator.simulate.traffic import Traffic
from simulate.scenes import SCENE, load, played


@dataclass
class Fixed:
    """Wants `then` replicas from `at` on, and before that as many as there are."""

    bounds: Bounds
    at: float = 0
    then: int = 1
    name: str = "Fixed"
    interval: float = 5

    def desired(self, view: View) -> int:
        return self.then if view.reading.at >= self.at else view.replicas


def with_replicas(traffic: Traffic, count: int, **changes: float) -> Record:
    scene = replace(SCENE, bounds=replace(SCENE.bounds, minimum=count), **changes)  # type: ignore[arg-type]
    return play(scene, traffic, Fixed(scene.bounds, then=count), chance=random.Random(0))


def all_at(*moments: float, seconds: float = 100) -> Traffic:
    return Traffic(name="few", arrivals=moments, seconds=seconds, highest=1)


def test_the_same_seed_gives_the_same_record() -> None:
    traffic = load("step", high=20, minutes=8)
    assert played(traffic, retries=2) == played(traffic, retries=2)


def test_enough_replicas_let_nobody_wait() -> None:
    record = with_replicas(load("steady", high=2), 8)
    assert record.refused == 0
    assert record.late <= 0.002 * record.asked  # those that run longer than their deadline
    assert sum(wait > 0 for wait in record.waits) <= 0.01 * record.asked


def test_running_requests_are_the_rate_times_the_seconds_of_each() -> None:
    """Little's law, on which the demand law stands."""
    record = with_replicas(load("steady", high=10), 12)
    running = [sample.running for sample in record.samples[12:]]
    assert sum(running) / len(running) == pytest.approx(10 * 4, rel=0.05)


def test_a_full_replica_refuses() -> None:
    record = with_replicas(all_at(*[1.0] * 30), 1)
    assert (record.asked, record.refused) == (30, 30 - SCENE.capacity)


def test_who_would_be_answered_too_late_is_refused_at_once() -> None:
    record = with_replicas(all_at(*[1.0] * 24), 1, timeout=12)
    assert record.samples[0].refused == 24 - 8 - 11


def test_a_refused_client_asks_again_as_often_as_it_may() -> None:
    record = with_replicas(all_at(*[1.0] * 30, seconds=2), 1, retries=2, seconds_per_request=1000, timeout=10**9)
    assert record.attempts == 30
    record = with_replicas(all_at(*[1.0] * 30, seconds=1000), 1, retries=2, seconds_per_request=10**6, timeout=10**9)
    assert record.attempts == 30 + 2 * 6
    assert record.refused == 6


def test_a_new_replica_serves_after_its_cold_start_and_costs_from_its_creation() -> None:
    traffic = all_at(1.0, seconds=100)
    record = play(SCENE, traffic, Fixed(SCENE.bounds, at=10, then=3), chance=random.Random(0))
    assert [sample.wanted for sample in record.samples][:3] == [1, 3, 3]
    assert {sample.ready for sample in record.samples} == {1}
    assert record.replica_seconds == pytest.approx(100 + 2 * 90)
    quick = play(replace(SCENE, cold_start=20), traffic, Fixed(SCENE.bounds, at=10, then=3), chance=random.Random(0))
    assert [sample.ready for sample in quick.samples if sample.at in (25, 35)] == [1, 3]


def test_a_shrink_lets_every_running_request_end() -> None:
    scene = replace(SCENE, bounds=replace(SCENE.bounds, minimum=4), timeout=1000)
    traffic = load("steady", high=3, minutes=10)
    record = play(scene, traffic, Fixed(scene.bounds, at=300, then=3), chance=random.Random(0))
    unscaled = play(scene, traffic, Fixed(scene.bounds, then=4), chance=random.Random(0))
    assert min(sample.ready for sample in record.samples) == 3
    assert (record.refused, record.late) == (0, 0)
    assert record.replica_seconds < unscaled.replica_seconds - 250


def test_pending_replicas_go_before_those_that_serve() -> None:
    @dataclass
    class Regrets(Fixed):
        def desired(self, view: View) -> int:
            return 3 if view.reading.at < 20 else 1

    traffic = load("steady", high=1, minutes=3)
    record = play(SCENE, traffic, Regrets(SCENE.bounds), chance=random.Random(0))
    assert {sample.ready for sample in record.samples} == {1}
    assert (record.refused, record.late) == (0, 0)
