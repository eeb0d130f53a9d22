"""What was measured, as frozen values, and the goals. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GOALS = {1: 1.0, 100: 10.0, 1000: 90.0}
"""Services applied at once → seconds until the last one has its children (for one: the 95th percentile of single ones)."""
RSS_GOAL_BYTES = 300 * 2**20
LAG_GOAL_SECONDS = 0.2
"""Of the 99th percentile of the event loop's lag."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of all services of a burst together."""

    passes: float
    writes: Mapping[str, float]
    rss_bytes: float
    cpu_seconds: float
    neighbours_cpu_seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Of a bare client."""

    seconds: float
    cpu_seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Burst:
    """`count` services applied at once. Seconds run from the first one's acceptance; `p50` and `p95` from each one's own."""

    count: int
    p50_seconds: float
    p95_seconds: float
    all_seconds: float
    done_at: tuple[float, ...]
    """When the first, second, … had its children."""
    writes: Mapping[str, float]
    """Accepted writes per service, by kind and verb."""
    passes: float
    """Per service."""
    rss_bytes: float
    cpu_seconds: float
    neighbours_cpu_seconds: Mapping[str, float]
    """Of the API server, etcd and the controllers meanwhile, and of everybody else on the machine (`others`)."""
    floor_seconds: float
    """What a bare client took for the same children, on a control plane of its own, just before; judged alike."""
    floor_cpu_seconds: Mapping[str, float]
    """The bare client's and its neighbours' processor seconds."""

    @property
    def writes_per_service(self) -> float:
        return sum(self.writes.values())

    @property
    def goal_seconds(self) -> float | None:
        return GOALS.get(self.count)

    @property
    def judged_seconds(self) -> float:
        return judged(self.count, p95=self.p95_seconds, everything=self.all_seconds)

    @property
    def others_cores(self) -> float:
        """What everybody else on the machine took."""
        return self.neighbours_cpu_seconds["others"] / self.all_seconds

    @property
    def times_the_floor(self) -> float:
        return self.judged_seconds / self.floor_seconds


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing happens to `services`."""

    services: int
    minutes: float
    writes: Mapping[str, float]
    cpu_share: float
    """Of one core."""
    rss_bytes: float


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Services that scale by a load that changes all the time."""

    services: int
    pods: int
    """At the end."""
    seconds: float
    lag_p99_seconds: float
    """Not more than this: a bound of the histogram's."""
    age_p99_seconds: float
    """Of what a look at the operator's metrics shows of all services' last readings."""
    steps: float
    """Deployments scaled."""
    writes: float
    cpu_share: float
    """Of one core."""
    rss_bytes: float


def lag_percentile(buckets: Mapping[float, float], share: float) -> float:
    """The lowest bound below which `share` of the samples are. `buckets`: bound → how many are not above it."""
    total = max(buckets.values())
    return min(bound for bound, count in buckets.items() if count >= share * total)


def judged(count: int, *, p95: float, everything: float) -> float:
    """One at a time, each counts; many at once, the last one does."""
    return p95 if count == 1 else everything


def seconds(accepted: Mapping[str, float], told: Mapping[str, float], *, count: int) -> float:
    """Name → monotonic seconds, both; judged."""
    waits = [told[name] - at for name, at in accepted.items()]
    return judged(count, p95=percentile(waits, 0.95), everything=max(told.values()) - min(accepted.values()))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def burst(
    accepted: Mapping[str, float],
    told: Mapping[str, float],
    *,
    count: int,
    cost: Cost,
    floor: Floor,
) -> Burst:
    """`accepted` and `told`: name → monotonic seconds. `count` were applied at once."""
    waits = [told[name] - at for name, at in accepted.items()]
    began = min(accepted.values())
    return Burst(
        count=count,
        p50_seconds=percentile(waits, 0.5),
        p95_seconds=percentile(waits, 0.95),
        all_seconds=max(told[name] for name in accepted) - began,
        done_at=tuple(sorted(told[name] - began for name in accepted)),
        writes={kind: value / len(accepted) for kind, value in cost.writes.items() if value},
        passes=cost.passes / len(accepted),
        rss_bytes=cost.rss_bytes,
        cpu_seconds=cost.cpu_seconds,
        neighbours_cpu_seconds=cost.neighbours_cpu_seconds,
        floor_seconds=floor.seconds,
        floor_cpu_seconds=floor.cpu_seconds,
    )


def verdict(bursts: Sequence[Burst], idle: Idle | None, fleet: Fleet | None = None) -> list[str]:
    """The goals that were missed, a sentence each."""
    missed = [
        f"{each.count} at once: {each.judged_seconds:.2f} s, goal {each.goal_seconds:g} s"
        for each in bursts
        if each.goal_seconds is not None and each.judged_seconds >= each.goal_seconds
    ]
    largest = max((each.rss_bytes for each in (*bursts, idle, fleet) if each is not None), default=0)
    if largest >= RSS_GOAL_BYTES:
        missed.append(f"memory: {largest / 2**20:.0f} MiB, goal {RSS_GOAL_BYTES / 2**20:.0f} MiB")
    if fleet is not None and fleet.lag_p99_seconds > LAG_GOAL_SECONDS:
        missed.append(f"event loop: p99 {fleet.lag_p99_seconds:g} s late, goal {LAG_GOAL_SECONDS:g} s")
    if idle is not None and idle.writes:
        missed.append(f"idle writes: {dict(idle.writes)}, goal none")
    return missed
