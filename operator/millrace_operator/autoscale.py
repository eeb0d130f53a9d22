"""How many replicas a service needs, and why. Pure: load, history and time are arguments; nothing here reads or writes anything.

The law follows the demand (`demand.py`), or, while that is unknown, the load: `ceil(load / target)`. Up at once, down slowly, never down
on missing data. All times are monotonic seconds, all durations seconds.
"""

import math
from dataclasses import dataclass, field, replace

from millrace_operator.api import InferenceService, effective
from millrace_operator.demand import PANIC_WINDOW, RATE_WINDOW, Demand, Load

DEAD_BAND = 0.10
"""A load this close to the target changes nothing."""
ROUNDING = 1e-9
COMPLETE = 1.0
PANIC = 2.0
"""A demand of so many times the present replicas in the last seconds is believed at once."""
WORTH_MORE = 1.25
"""While replicas are still starting, only a need this much above all of them, the starting ones included, asks for more."""
ENOUGH = 0.5
"""With a smaller share of the ready replicas heard, nothing is decided."""
CONFLICTING = "ConflictingAutoscaler"
MISSES_TO_REPORT = 3
"""Readings that may fail before the status says so."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at all ready replicas: how many there were, and the loads of those that answered in time."""

    at: float
    ready: int
    loads: tuple[Load, ...]
    addresses: tuple[str, ...] = ()
    """Whose loads they are, in the same order, where that is known."""

    @property
    def share(self) -> float:
        return len(self.loads) / self.ready if self.ready else 0.0

    @property
    def load(self) -> int:
        return sum(load.queued + load.running for load in self.loads)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the spec says. `target` is requests in the system per replica, of which at most `slots` run at once."""

    minimum: int
    maximum: int
    target: int
    slots: int | None = None

    def clamp(self, replicas: int) -> int:
        return max(self.minimum, min(self.maximum, replicas))


def bounds_of(service: InferenceService) -> Bounds:
    spec, computed = service.spec.autoscaling, effective(service)
    return Bounds(minimum=spec.min_replicas, maximum=spec.max_replicas, target=computed.target, slots=computed.slots)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What runs: the Deployment's count (ready and pending), whether a rollout progresses, and how many replicas cannot start."""

    replicas: int
    rolling: bool
    failing: int = 0
    rival: str | None = None
    """Another autoscaler that scales them."""


@dataclass(frozen=True, kw_only=True)
class Tempo:
    """How fast a service may grow and shrink."""

    up_interval: float = 15
    down_interval: float = 60
    down_window: float = 300
    stale_after: float = 15


@dataclass(frozen=True, kw_only=True)
class History:
    """What was seen and done so far. `since` begins the present stretch of knowledge: a shrink needs a whole window of it. `demand` may
    begin with the seconds per request that the status tells for the present model revision."""

    since: float
    reading: Reading | None = None
    demand: Demand = field(default=Demand())
    needs: tuple[tuple[float, int], ...] = field(default=())
    """(when, replicas needed) of complete readings within the window."""
    misses: int = 0
    raised_at: float = -math.inf
    lowered_at: float = -math.inf

    def observe(self, reading: Reading, *, bounds: Bounds, tempo: Tempo) -> "History":
        """Remember a reading. One with too few answers begins the stretch of knowledge anew."""
        if reading.share < ENOUGH:
            return replace(self, reading=reading, misses=self.misses + 1, since=reading.at, needs=())
        needs = tuple((at, need) for at, need in self.needs if at > reading.at - tempo.down_window)
        known = replace(self, reading=reading, misses=0, needs=needs, demand=self.demand.observe(reading.at, reading.loads))
        if reading.share < COMPLETE:
            return known
        return replace(known, needs=(*needs, (reading.at, math.ceil(known.need(bounds) - ROUNDING))))

    def need(self, bounds: Bounds, *, panic_above: float = math.inf) -> float:
        """Replicas that the last reading calls for, as a fraction: by the demand, or by the load while the demand is unknown. The demand of
        the last seconds is believed only when it needs `panic_above` replicas."""
        wanted = self.demand.slots()
        if wanted is None:
            return self.reading.load / bounds.target if self.reading else 0.0
        per_replica = min(bounds.target, bounds.slots or bounds.target)
        sudden = (self.demand.slots(PANIC_WINDOW) or 0.0) / per_replica
        return max(wanted / per_replica, sudden if sudden >= panic_above else 0.0)

    def scaled(self, *, before: int, after: int, now: float) -> "History":
        """Remember a step that was taken. What was worth a step up counts as needed for a whole window."""
        if after > before:
            return replace(self, raised_at=now, needs=(*self.needs, (now, after)))
        return replace(self, lowered_at=now) if after < before else self


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`desired` replicas, the cause as one word, a sentence, and what holds back a larger change."""

    desired: int
    cause: str
    sentence: str
    blocked_by: str | None = None
    load: int | None = None
    target: int
    fresh: int = 0
    seconds_per_request: float | None = None
    certain: bool = True
    """False for the first missed readings, which are no news yet."""


def decide(bounds: Bounds, fleet: Fleet, history: History, *, tempo: Tempo, now: float) -> Decision:
    """The clamp to [minimum, maximum] always holds, also when everything else stands still; but of two that scale, one must stand down."""
    decision = _decide(bounds, fleet, history, tempo=tempo, now=now)
    return replace(decision, seconds_per_request=history.demand.seconds_per_request)


def _decide(bounds: Bounds, fleet: Fleet, history: History, *, tempo: Tempo, now: float) -> Decision:
    if fleet.rival is not None:
        sentence = f"{fleet.rival} scales the Deployment as well; it alone does from now on"
        return Decision(desired=fleet.replicas, cause=CONFLICTING, sentence=sentence, target=bounds.target)
    current = bounds.clamp(fleet.replicas)
    if current != fleet.replicas:
        sentence = f"{fleet.replicas} replicas are outside of {bounds.minimum} to {bounds.maximum}"
        return Decision(desired=current, cause="OutsideBounds", sentence=sentence, target=bounds.target)
    reading = history.reading
    if reading is None or now - reading.at > tempo.stale_after or reading.share < ENOUGH:
        return _hold(bounds, current, history)
    exact = history.need(bounds, panic_above=PANIC * current)
    need = current if abs(exact - current) <= DEAD_BAND * current + ROUNDING else math.ceil(exact - ROUNDING)
    known = Decision(
        desired=current,
        cause="LoadOnTarget",
        sentence=f"{current} replicas suit a target of {bounds.target} requests each",
        target=bounds.target,
        load=reading.load,
        fresh=len(reading.loads),
    )
    if need > current:
        return _grow(known, exact, bounds, fleet, history, tempo, now)
    if need < current:
        return _shrink(known, bounds, fleet, history, tempo, now)
    return known


def _hold(bounds: Bounds, current: int, history: History) -> Decision:
    reading = history.reading
    heard, ready = (len(reading.loads), reading.ready) if reading else (0, 0)
    sentence = (
        f"{heard} of {ready} ready replicas told their load; the count is kept" if ready else "no replica is ready; the count is kept"
    )
    return Decision(
        desired=current,
        cause="MetricsUnavailable" if ready else "NoReadyReplicas",
        sentence=sentence,
        blocked_by="missing load figures" if ready else None,
        target=bounds.target,
        fresh=heard,
        certain=reading is not None and (not ready or history.misses >= MISSES_TO_REPORT),
    )


def _grow(known: Decision, exact: float, bounds: Bounds, fleet: Fleet, history: History, tempo: Tempo, now: float) -> Decision:
    current, need = known.desired, math.ceil(exact - ROUNDING)
    sentence = f"{_wish(known, history)} need {need} replicas at {bounds.target} each"
    grown = replace(known, cause="LoadAboveTarget", sentence=sentence)
    allowed = bounds.clamp(need)
    if allowed == current:
        return replace(grown, blocked_by=f"maxReplicas {bounds.maximum}")
    if fleet.failing:
        return replace(grown, blocked_by=f"{fleet.failing} replicas that cannot start")
    starting = current - history.reading.ready if history.reading else 0
    if starting > 0 and exact < WORTH_MORE * current:
        return replace(grown, blocked_by=f"{starting} replicas that are starting")
    if now - history.raised_at < tempo.up_interval:
        return replace(grown, blocked_by=f"one step up per {tempo.up_interval:g} s")
    step = max(current + 4, 2 * current)
    blocked = f"maxReplicas {bounds.maximum}" if allowed < need else None
    if step < allowed:
        allowed, blocked = step, f"at most {step} replicas in this step"
    return replace(grown, desired=allowed, blocked_by=blocked)


def _wish(known: Decision, history: History) -> str:
    """What asks for replicas: the demand, where it is known."""
    rate, seconds = history.demand.rate(RATE_WINDOW), history.demand.seconds_per_request
    if rate is None or seconds is None:
        return f"{known.load} requests in the system"
    return f"{rate:.3g} requests per second, each of which runs for {seconds:.2g} s, and {known.load} in the system"


def _shrink(known: Decision, bounds: Bounds, fleet: Fleet, history: History, tempo: Tempo, now: float) -> Decision:
    current = known.desired
    if current == bounds.minimum:
        return replace(known, cause="AtMinimum", sentence=f"the load needs no more than minReplicas {bounds.minimum}")
    shrunk = replace(
        known, cause="LoadBelowTarget", sentence=f"the load needs less than {current} replicas at {bounds.target} requests each"
    )
    if history.reading is not None and history.reading.share < COMPLETE:
        return replace(shrunk, blocked_by="missing load figures of some replicas")
    if fleet.rolling:
        return replace(shrunk, blocked_by="a rollout in progress")
    need = bounds.clamp(max((need for _, need in history.needs), default=current))
    if now - history.since < tempo.down_window or need >= current:
        return replace(shrunk, blocked_by=f"the largest need of the last {tempo.down_window:g} s")
    if now - history.lowered_at < tempo.down_interval:
        return replace(shrunk, blocked_by=f"one step down per {tempo.down_interval:g} s")
    step = max(need, current - max(1, current // 5))
    return replace(shrunk, desired=step)
