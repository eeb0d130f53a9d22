"""What was measured, as frozen values, and the goals. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GOALS = {1: 1.0, 100: 10.0, 1000: 90.0}
"""Services applied at once → seconds until the last one has its children (for one: the 95th percentile of single ones)."""
RSS_GOAL_BYTES = 300 * 2**20


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

    @property
    def writes_per_service(self) -> float:
        return sum(self.writes.values())

    @property
    def goal_seconds(self) -> float | None:
        return GOALS.get(self.count)

    @property
    def judged_seconds(self) -> float:
        return self.p95_seconds if self.count == 1 else self.all_seconds


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing happens to `services`."""

    services: int
    minutes: float
    writes: Mapping[str, float]
    cpu_share: float
    """Of one core."""
    rss_bytes: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def burst(
    accepted: Mapping[str, float],
    told: Mapping[str, float],
    *,
    count: int,
    passes: float,
    writes: Mapping[str, float],
    rss: float,
    cpu: float,
) -> Burst:
    """`accepted` and `told`: name → monotonic seconds. `count` were applied at once; `writes` and `passes` are what all of them cost."""
    waits = [told[name] - at for name, at in accepted.items()]
    began = min(accepted.values())
    return Burst(
        count=count,
        p50_seconds=percentile(waits, 0.5),
        p95_seconds=percentile(waits, 0.95),
        all_seconds=max(told[name] for name in accepted) - began,
        done_at=tuple(sorted(told[name] - began for name in accepted)),
        writes={kind: value / len(accepted) for kind, value in writes.items() if value},
        passes=passes / len(accepted),
        rss_bytes=rss,
        cpu_seconds=cpu,
    )


def verdict(bursts: Sequence[Burst], idle: Idle | None) -> list[str]:
    """The goals that were missed, a sentence each."""
    missed = [
        f"{each.count} at once: {each.judged_seconds:.2f} s, goal {each.goal_seconds:g} s"
        for each in bursts
        if each.goal_seconds is not None and each.judged_seconds >= each.goal_seconds
    ]
    largest = max([each.rss_bytes for each in bursts] + ([idle.rss_bytes] if idle else []), default=0)
    if largest >= RSS_GOAL_BYTES:
        missed.append(f"memory: {largest / 2**20:.0f} MiB, goal {RSS_GOAL_BYTES / 2**20:.0f} MiB")
    if idle is not None and idle.writes:
        missed.append(f"idle writes: {dict(idle.writes)}, goal none")
    return missed
