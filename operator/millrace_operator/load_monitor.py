"""Follows the services that scale by their load: keeps each one's history and calls for a pass when a decision would change something.

It never writes: the pass looks again and decides on what it then sees.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from millrace_operator import autoscale
from millrace_operator.api import AutoscalingStatus, InferenceService, effective
from millrace_operator.autoscale import Bounds, Decision, Fleet, History, Reading, Tempo, bounds_of
from millrace_operator.demand import Demand
from millrace_operator.load import Limits, LoadReader
from millrace_operator.rollout import Rollout
from millrace_operator.status import autoscaling_status

LEAST_IDLE_HOURS = 2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a pass last saw of one service."""

    addresses: tuple[str, ...]
    """Of the ready replicas."""
    bounds: Bounds
    fleet: Fleet
    limits: Limits
    measured_for: str
    """The model and device whose seconds per request are measured."""
    gpus: int
    """Of each replica."""
    told: AutoscalingStatus | None
    """What the status says so far."""


def subject(service: InferenceService, rollout: Rollout, *, rival: str | None) -> Subject:
    """What scaling looks at; `rival` is another autoscaler of the same Deployment."""
    slots, accelerators = effective(service).slots, service.spec.granted_accelerators
    return Subject(
        addresses=rollout.addresses,
        bounds=bounds_of(service),
        fleet=Fleet(replicas=rollout.wanted, rolling=rollout.progresses, failing=rollout.failing, rival=rival),
        limits=Limits(slots=slots, queue=service.spec.queue.max_size),
        measured_for=_measured_for(service),
        gpus=accelerators.count if accelerators else 0,
        told=service.status.autoscaling,
    )


def _measured_for(service: InferenceService) -> str:
    spec = service.spec
    parts = (spec.model.model_copy(update={"aliases": ()}), spec.device, spec.batching, spec.resources, spec.accelerators)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class LoadFigures:
    """One followed service for Prometheus. `age` of the last reading and `idle_gpu_seconds` are seconds; both None without a reading."""

    load: int | None
    age: float | None
    cause: str
    idle_gpu_seconds: float


@dataclass
class _Followed:
    subject: Subject
    history: History
    told_at: float = -math.inf
    idle_gpu_seconds: float = 0.0
    busy_at: float = -math.inf
    """When a replica last had a request."""

    def count_idleness(self, before: Reading | None, now: Reading) -> None:
        if now.load or not now.loads:
            self.busy_at = now.at
        if before is not None:
            idle = sum(1 for load in now.loads if not load.queued + load.running)
            self.idle_gpu_seconds += (now.at - before.at) * idle * self.subject.gpus

    def hint(self, now: float) -> str | None:
        """Told after so many hours, after twice as many, and so on: each is a write."""
        hours = (now - self.busy_at) / 3600
        if not self.subject.gpus or not LEAST_IDLE_HOURS <= hours < math.inf:
            return None
        told = LEAST_IDLE_HOURS * 2 ** int(math.log2(hours / LEAST_IDLE_HOURS))
        count = self.subject.gpus * self.subject.fleet.replicas
        advice = "lower spec.autoscaling.minReplicas, or delete the service while nobody needs it"
        return f"{count} GPUs have been idle for more than {told} h; {advice}"


class LoadMonitor:
    """Follows services, each one looked at every `interval` seconds. `call` asks for a pass of a key, given as (namespace, name)."""

    def __init__(
        self,
        reader: LoadReader,
        *,
        tempo: Tempo,
        interval: float,
        report_interval: float,
        call: Callable[[tuple[str, str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._tempo = tempo
        self._interval = interval
        self._report_interval = report_interval
        self._call = call
        self._clock = clock
        self._followed: dict[tuple[str, str], _Followed] = {}

    def decide(self, key: tuple[str, str], subject: Subject) -> Decision:
        """Follow the service from now on, and decide on what is known. A new one begins without history."""
        followed = self._followed.get(key)
        if followed is None:
            followed = self._followed[key] = _Followed(subject, History(since=self._clock(), demand=_prior(subject)), busy_at=self._clock())
        elif followed.subject.measured_for != subject.measured_for:
            followed.history = replace(followed.history, demand=Demand())
        followed.subject = subject
        return autoscale.decide(subject.bounds, subject.fleet, followed.history, tempo=self._tempo, now=self._clock())

    def scaled(self, key: tuple[str, str], *, before: int, after: int) -> None:
        followed = self._followed[key]
        followed.history = followed.history.scaled(before=before, after=after, now=self._clock())

    def by_address(self, key: tuple[str, str]) -> dict[str, int]:
        """Requests in the system of each replica that told them at the last look."""
        reading = self._followed[key].history.reading
        if reading is None:
            return {}
        return {address: load.queued + load.running for address, load in zip(reading.addresses, reading.loads, strict=True)}

    def tell(self, key: tuple[str, str], decision: Decision) -> AutoscalingStatus | None:
        """What the status should say: the old words unless the decision is news."""
        followed = self._followed[key]
        return self._words(followed, decision)

    def figures(self) -> Iterator[tuple[tuple[str, str], LoadFigures]]:
        now = self._clock()
        for key, followed in self._followed.items():
            subject, reading = followed.subject, followed.history.reading
            decision = autoscale.decide(subject.bounds, subject.fleet, followed.history, tempo=self._tempo, now=now)
            yield (
                key,
                LoadFigures(
                    load=reading.load if reading else None,
                    age=now - reading.at if reading else None,
                    cause=decision.cause,
                    idle_gpu_seconds=followed.idle_gpu_seconds,
                ),
            )

    def told(self, key: tuple[str, str]) -> None:
        """The status was written."""
        if key in self._followed:
            self._followed[key].told_at = self._clock()

    def forget(self, key: tuple[str, str]) -> None:
        self._followed.pop(key, None)

    async def run(self) -> None:
        while True:
            await self.look()

    async def look(self) -> None:
        """Ask every replica of every followed service once, one service after the other over the interval: hundreds of replicas asked at
        once, and their answers, would keep everything else waiting for half a second."""
        keys = list(self._followed)
        now = asyncio.get_running_loop().time
        began = now()
        async with asyncio.TaskGroup() as group:
            for number, key in enumerate(keys, start=1):
                group.create_task(self._observe(key))
                await asyncio.sleep(began + self._interval * number / len(keys) - now())
            if not keys:
                await asyncio.sleep(self._interval)

    async def _observe(self, key: tuple[str, str]) -> None:
        asked = self._followed.get(key)
        if asked is None:
            return  # forgotten since the round began
        subject = asked.subject
        reading = await self._reader.read(subject.addresses, limits=subject.limits)
        followed = self._followed.get(key)
        if followed is None:
            return
        followed.count_idleness(followed.history.reading, reading)
        followed.history = followed.history.observe(reading, bounds=subject.bounds, tempo=self._tempo)
        decision = autoscale.decide(subject.bounds, subject.fleet, followed.history, tempo=self._tempo, now=self._clock())
        words = self._words(followed, decision)
        if decision.desired != subject.fleet.replicas or words != subject.told:
            self._call(key)

    def _words(self, followed: _Followed, decision: Decision) -> AutoscalingStatus | None:
        now, subject = self._clock(), followed.subject
        return autoscaling_status(
            subject.told,
            decision,
            measured_for=subject.measured_for,
            hint=followed.hint(now),
            may_update_load=now - followed.told_at >= self._report_interval,
        )


def _prior(subject: Subject) -> Demand:
    """What an earlier leader measured of the same model."""
    told = subject.told
    return Demand(seconds_per_request=told.seconds_per_request if told and told.measured_for == subject.measured_for else None)
