"""What clients ask for, measured at the replicas' own counters: requests per second, and the seconds that one holds a slot. Pure.

By Little's law their product is the number of slots that are wanted, whatever runs at present. A backlog is the past's want of
replicas and passes; the demand stays. Source of the idea: a law on the backlog alone buys replicas for requests that the replicas
already bought will serve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

RATE_WINDOW = 60.0
PANIC_WINDOW = 10.0
MEMORY = 300.0
"""Seconds over which the seconds per request are averaged."""
ENOUGH_COMPLETIONS = 20
LEAST_KNOWLEDGE = 9.0
"""Seconds of counting below which a rate is chance."""
DRAIN_SECONDS = 60.0
DRAIN_SERVICE_TIMES = 10.0
"""A backlog should be gone after this many seconds, or service times, whichever is longer."""
REFUSED_WEIGHT = 0.4
"""What a refused arrival counts as demand. Clients that retry arrive up to three times (the openai client retries twice), others once:
between a third and one. The simulation shows what either error costs."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one replica said about itself. Its counters only grow while `boot_id` stays the same; an empty one has no counters."""

    queued: int
    running: int
    boot_id: str = ""
    arrivals: int = 0
    completed: int = 0
    running_seconds: float = 0.0

    def continues(self, before: "Load") -> bool:
        """False for a counter that went back, whatever the replica calls itself."""
        return self.arrivals >= before.arrivals and self.completed >= before.completed and self.running_seconds >= before.running_seconds


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What all replicas together counted in the `seconds` until `at`. `queued` is the backlog at its end."""

    at: float
    seconds: float
    arrivals: float
    completed: int
    running_seconds: float
    queued: int


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What was counted so far. `seconds_per_request` may begin as what an earlier leader measured at the same model revision."""

    seconds_per_request: float | None = None
    growths: tuple[Growth, ...] = ()
    seen_at: float | None = None
    seen: Mapping[str, Load] = field(default_factory=dict)

    def observe(self, at: float, loads: Sequence[Load]) -> "Demand":
        """Count on. A replica that is new, was silent or began anew counts from now on."""
        counting = {load.boot_id: load for load in loads if load.boot_id}
        pairs = [(self.seen[boot], load) for boot, load in counting.items() if boot in self.seen and load.continues(self.seen[boot])]
        growths = _younger(self.growths, at, MEMORY)
        if self.seen_at is not None and at > self.seen_at and pairs:
            growths += (_growth(at, at - self.seen_at, pairs, queued=sum(load.queued for load in loads)),)
        known = replace(self, growths=growths, seen_at=at, seen=counting)
        return replace(known, seconds_per_request=known._measured() or self.seconds_per_request)

    def rate(self, window: float) -> float | None:
        """Requests that arrive per second, the refused ones weighed; None before anything could be counted."""
        recent = self._recent(window)
        seconds = sum(growth.seconds for growth in recent)
        return sum(growth.arrivals for growth in recent) / seconds if seconds >= LEAST_KNOWLEDGE else None

    def slots(self, window: float = RATE_WINDOW) -> float | None:
        """How many slots the demand of the window wants, and the backlog beside it; None while unknown.

        Never fewer than were held: requests that last longer than the window are no arrivals any more.
        """
        rate, seconds = self.rate(window), self.seconds_per_request
        if rate is None or seconds is None:
            return None
        recent = self._recent(window)
        held = sum(growth.running_seconds for growth in recent) / sum(growth.seconds for growth in recent)
        backlog = sum(growth.queued for growth in recent) / len(recent)
        return max(rate * seconds, held) + backlog * seconds / max(DRAIN_SECONDS, DRAIN_SERVICE_TIMES * seconds)

    def _recent(self, window: float) -> tuple[Growth, ...]:
        return _younger(self.growths, self.seen_at or 0.0, window)

    def _measured(self) -> float | None:
        completed = sum(growth.completed for growth in self.growths)
        return sum(growth.running_seconds for growth in self.growths) / completed if completed >= ENOUGH_COMPLETIONS else None


def _younger(growths: tuple[Growth, ...], now: float, window: float) -> tuple[Growth, ...]:
    return tuple(growth for growth in growths if growth.at > now - window)


def _growth(at: float, seconds: float, pairs: Sequence[tuple[Load, Load]], queued: int) -> Growth:
    return Growth(
        at=at,
        seconds=seconds,
        arrivals=sum(_arrived(before, after) for before, after in pairs),
        completed=sum(after.completed - before.completed for before, after in pairs),
        running_seconds=sum(after.running_seconds - before.running_seconds for before, after in pairs),
        queued=queued,
    )


def _arrived(before: Load, after: Load) -> float:
    """Who arrived and neither ended nor is in the system was refused."""
    arrived = after.arrivals - before.arrivals
    in_system = after.queued + after.running - before.queued - before.running
    refused = min(max(0, arrived - (after.completed - before.completed) - in_system), arrived)
    return arrived - refused + REFUSED_WEIGHT * refused
