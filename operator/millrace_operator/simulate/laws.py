"""Who decides on the replicas: Millrace's own law, and three others as their documents and sources describe them.

The others see the very figures that ours sees, without the seconds that their metric pipelines add.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from millrace_operator.autoscale import Bounds, Decision, Fleet, History, Reading, Tempo, decide


@dataclass(frozen=True, kw_only=True)
class View:
    """What a law may look at: the wanted replicas, and the loads of those that are ready."""

    replicas: int
    reading: Reading
    rolling: bool = False


class Law(Protocol):
    """Asked for the wanted replicas every `interval` seconds."""

    name: str
    interval: float

    def desired(self, view: View) -> int: ...


@dataclass
class Millrace:
    """The operator's law itself. `decisions` are those that were news, in order."""

    bounds: Bounds
    tempo: Tempo = field(default=Tempo())
    name: str = "Millrace"
    interval: float = 5
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    _history: History = field(default=History(since=0.0))

    def desired(self, view: View) -> int:
        now = view.reading.at
        self._history = self._history.observe(view.reading, bounds=self.bounds, tempo=self.tempo)
        fleet = Fleet(replicas=view.replicas, rolling=view.rolling)
        decision = decide(self.bounds, fleet, self._history, tempo=self.tempo, now=now)
        if not self.decisions or _gist(self.decisions[-1][1]) != _gist(decision):
            self.decisions.append((now, decision))
        self._history = self._history.scaled(before=view.replicas, after=decision.desired, now=now)
        return decision.desired


def _gist(decision: Decision) -> tuple[object, ...]:
    return decision.desired, decision.cause, decision.blocked_by


@dataclass
class AverageValue:
    """A HorizontalPodAutoscaler on the requests in the system, metric type AverageValue, with Kubernetes' default behaviour."""

    bounds: Bounds
    name: str = "HPA AverageValue"
    interval: float = 15
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)

    def desired(self, view: View) -> int:
        now, current = view.reading.at, view.replicas
        ratio = view.reading.load / (self.bounds.target * current)
        wish = current if abs(ratio - 1) <= 0.1 else math.ceil(view.reading.load / self.bounds.target)
        self._wishes.append((now, wish))
        while self._wishes[0][0] <= now - 300:
            self._wishes.popleft()
        stabilized = wish if wish >= current else min(current, max(each for _, each in self._wishes))
        return self.bounds.clamp(min(stabilized, max(current + 4, 2 * current)))


@dataclass
class Knative:
    """The Knative pod autoscaler: the mean concurrency of 60 s, or of 6 s in panic, which lasts 60 s and never shrinks."""

    bounds: Bounds
    name: str = "Knative"
    interval: float = 2
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _panic_until: float = -math.inf
    _panic_replicas: int = 0

    def desired(self, view: View) -> int:
        now, ready = view.reading.at, max(1, view.reading.ready)
        self._seen.append((now, view.reading.load))
        while self._seen[0][0] <= now - 60:
            self._seen.popleft()
        stable, panic = self._wish(now, 60, ready), self._wish(now, 6, ready)
        if panic / ready >= 2:
            self._panic_until = now + 60
        if now >= self._panic_until:
            self._panic_replicas = 0
            return self.bounds.clamp(stable)
        self._panic_replicas = max(self._panic_replicas, stable, panic)
        return self.bounds.clamp(self._panic_replicas)

    def _wish(self, now: float, window: float, ready: int) -> int:
        loads = [load for at, load in self._seen if at > now - window]
        mean = sum(loads) / len(loads)
        return max(math.ceil(mean / self.bounds.target), ready // 2)


@dataclass
class TenMinuteMean:
    """KubeAI: the mean of the active requests over 10 minutes, looked at every 10 s; a shrink must be wished three times in a row."""

    bounds: Bounds
    name: str = "KubeAI, 10 min mean"
    interval: float = 10
    _seen: deque[int] = field(default_factory=lambda: deque([0] * 60, maxlen=60))
    _lower: int = 0

    def desired(self, view: View) -> int:
        self._seen.append(view.reading.load)
        wish = self.bounds.clamp(math.ceil(sum(self._seen) / len(self._seen) / self.bounds.target))
        self._lower = self._lower + 1 if wish < view.replicas else 0
        return wish if wish >= view.replicas or self._lower >= 3 else view.replicas


LAWS: tuple[Callable[[Bounds], Law], ...] = (Millrace, AverageValue, Knative, TenMinuteMean)
