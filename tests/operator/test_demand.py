"""What the replicas' counters say about the demand."""

import pytest

from millrace_operator.demand import Demand, Load


def replica(boot_id: str = "a", *, arrivals: int = 0, completed: int = 0, seconds: float = 0, queued: int = 0, running: int = 0) -> Load:
    return Load(queued=queued, running=running, boot_id=boot_id, arrivals=arrivals, completed=completed, running_seconds=seconds)


def steady(*, until: int = 60, demand: Demand | None = None, begin: int = 0) -> Demand:
    """Two requests per second of four seconds each, looked at every five seconds."""
    demand = demand or Demand()
    for now in range(begin, until + 1, 5):
        served = 2 * (now - begin)
        demand = demand.observe(float(now), [replica(f"since-{begin}", arrivals=served, completed=served, seconds=4.0 * served)])
    return demand


def test_rate_and_seconds_per_request_are_the_growth_of_the_counters() -> None:
    demand = steady()
    assert demand.rate(60) == pytest.approx(2)
    assert demand.seconds_per_request == pytest.approx(4)
    assert demand.slots() == pytest.approx(8)


def test_nothing_is_known_before_two_looks_and_twenty_completions() -> None:
    assert Demand().slots() is None
    assert steady(until=5).slots() is None
    assert steady(until=10).slots() == pytest.approx(8)
    few = Demand().observe(0, [replica()]).observe(10, [replica(arrivals=19, completed=19, seconds=76)])
    assert few.rate(60) == pytest.approx(1.9)
    assert few.slots() is None


def test_what_an_earlier_leader_measured_stands_until_enough_was_measured_anew() -> None:
    prior = Demand(seconds_per_request=9)
    assert steady(until=5, demand=prior).seconds_per_request == 9
    assert steady(until=10, demand=prior).seconds_per_request == pytest.approx(4)


@pytest.mark.parametrize(
    "again",
    [
        replica("b", arrivals=10**6, completed=10**6, seconds=10**6),
        replica("since-0", arrivals=1, completed=1, seconds=4),
        replica("since-0", arrivals=121, completed=121, seconds=0),
    ],
    ids=["a new process", "the same name with lower counters", "a clock that went back"],
)
def test_a_replica_that_began_anew_adds_nothing_until_it_is_seen_again(again: Load) -> None:
    demand = steady().observe(65, [again])
    assert demand.rate(60) == pytest.approx(2)
    assert demand.seconds_per_request == pytest.approx(4)


def test_who_neither_ended_nor_is_in_the_system_was_refused_and_weighs_less() -> None:
    before = replica(arrivals=100, completed=90, running=8, queued=2)
    after = replica(arrivals=150, completed=110, running=8, queued=2)
    demand = Demand().observe(0, [before]).observe(10, [after])
    assert demand.rate(60) == pytest.approx((20 + 0.4 * 30) / 10)


def test_a_backlog_counts_beside_the_demand() -> None:
    demand = steady().observe(65, [replica("since-0", arrivals=190, completed=130, seconds=520, queued=60)])
    assert demand.slots(5) is None
    assert demand.slots(10) == pytest.approx((10 + 70) / 10 * 4 + 30 * 4 / 60)


def test_requests_that_last_longer_than_the_window_are_demand_still() -> None:
    """Nobody arrives, and eight streams run on."""
    demand = steady()
    for now in range(65, 130, 5):
        demand = demand.observe(float(now), [replica("since-0", arrivals=120, completed=120, seconds=480 + 8.0 * (now - 60), running=8)])
    assert demand.rate(60) == 0
    assert demand.slots() == pytest.approx(8)


def test_what_is_older_than_the_memory_is_forgotten() -> None:
    demand = steady(until=1000)
    assert len(demand.growths) <= 60
    assert demand.rate(60) == pytest.approx(2)


def test_replicas_without_counters_leave_the_demand_unknown_whatever_the_status_told() -> None:
    demand = Demand(seconds_per_request=4)
    for now in range(0, 60, 5):
        demand = demand.observe(float(now), [Load(queued=5, running=8)])
    assert demand.slots() is None
