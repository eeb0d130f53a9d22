"""The figures of the operator's benchmark, from times that the test makes up."""

import xml.etree.ElementTree as ElementTree

import pytest

from operator_benchmark.figures import Burst, Cost, Fleet, Floor, Idle, burst, lag_percentile, percentile, seconds, verdict
from operator_benchmark.picture import draw

MEBIBYTE = 2**20


def measured(count: int, *, each: float, rss: float = 80 * MEBIBYTE) -> Burst:
    """`count` services, accepted at once; one after the other takes `each` seconds."""
    names = [str(number) for number in range(count)]
    accepted = dict.fromkeys(names, 100.0)
    told = {name: 100 + each * (number + 1) for number, name in enumerate(names)}
    writes = {"apply": 3.0 * count, "scale": 0.0}
    cost = Cost(
        passes=2 * count, writes=writes, rss_bytes=rss, cpu_seconds=1, neighbours_cpu_seconds={"etcd": 0.5, "others": each * count / 4}
    )
    return burst(accepted, told, count=count, cost=cost, floor=Floor(seconds=each * count / 2, cpu_seconds={"etcd": 0.25}))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.95, 4), (0.01, 1), (1, 4)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_a_burst_is_judged_by_its_last_service_and_counts_per_service() -> None:
    result = measured(100, each=0.125)
    assert result.all_seconds == 12.5
    assert (result.p50_seconds, result.p95_seconds) == (6.25, 11.875)
    assert result.writes == {"apply": 3}
    assert result.passes == 2
    assert result.done_at[0] == 0.125


def test_the_floor_is_judged_as_the_operator_is() -> None:
    accepted, told = {"a": 100.0, "b": 101.0}, {"a": 102.0, "b": 102.5}
    assert seconds(accepted, told, count=1) == 2
    assert seconds(accepted, told, count=2) == 2.5
    assert measured(100, each=0.125).times_the_floor == 2


def test_what_was_missed_is_said() -> None:
    idle = Idle(services=100, minutes=10, writes={}, cpu_share=0.01, rss_bytes=90 * MEBIBYTE)
    busy = Idle(services=100, minutes=10, writes={"status": 2}, cpu_share=0.01, rss_bytes=400 * MEBIBYTE)
    assert verdict([measured(1, each=0.5), measured(100, each=0.05), measured(1000, each=0.08)], idle) == []
    assert verdict([measured(100, each=0.1)], None) == ["100 at once: 10.00 s, goal 10 s"]
    assert verdict([measured(1, each=2)], None) == ["1 at once: 2.00 s, goal 1 s"]
    assert verdict([], busy) == ["memory: 400 MiB, goal 300 MiB", "idle writes: {'status': 2}, goal none"]


def test_the_picture_is_well_formed_and_names_every_curve() -> None:
    text = draw([measured(1, each=0.5), measured(100, each=0.05)], caption="a <machine>")
    words = "".join(ElementTree.fromstring(text).itertext())
    assert "100 at once: 5.0 s, 50 ms each, 2.00 times a bare client's; others took 0.2 cores" in words
    assert "a <machine>" in words


def test_a_lag_is_told_by_the_bound_below_which_the_share_lies() -> None:
    buckets = {0.1: 90.0, 0.2: 99.0, 0.5: 100.0, float("inf"): 100.0}
    assert [lag_percentile(buckets, share) for share in (0.5, 0.99, 0.995, 1)] == [0.1, 0.2, 0.5, 0.5]


@pytest.mark.parametrize(("lag", "missed"), [(0.2, []), (0.5, ["event loop: p99 0.5 s late, goal 0.2 s"])])
def test_a_loop_that_is_late_is_a_missed_goal(lag: float, missed: list[str]) -> None:
    fleet = Fleet(
        services=1, pods=5, seconds=60, lag_p99_seconds=lag, age_p99_seconds=5, steps=0, writes=0, cpu_share=0.1, rss_bytes=80 * MEBIBYTE
    )
    assert verdict([], None, fleet) == missed
