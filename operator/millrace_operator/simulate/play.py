"""Lets requests, clients, replicas and a law act on each other in virtual time, event by event."""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from millrace_operator.autoscale import Reading
from millrace_operator.simulate.laws import Law, View
from millrace_operator.simulate.replica import Replica, Request
from millrace_operator.simulate.scene import Scene
from millrace_operator.simulate.traffic import Traffic

SAMPLE_SECONDS = 5.0
FIRST_BACKOFF, LAST_BACKOFF, JITTER = 0.5, 8.0, 0.25
"""Of the openai client, which obeys a Retry-After before that."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at everything; the counts are of the seconds since the look before."""

    at: float
    asked: int
    """New requests, without repeated attempts."""
    attempts: int
    refused: int
    """Attempts that were refused."""
    wanted: int
    ready: int
    queued: int
    running: int
    longest_wait: float
    """Of the requests that got their first slot."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What happened. `waits` are seconds from a request's first attempt to its first slot."""

    law: str
    samples: tuple[Sample, ...]
    waits: tuple[float, ...]
    asked: int
    refused: int
    """Requests whose last attempt was refused."""
    late: int
    """Requests whose last attempt came to its deadline."""
    attempts: int
    replica_seconds: float


def play(scene: Scene, traffic: Traffic, law: Law, *, chance: random.Random) -> Record:
    """Begins with `minReplicas` ready. The same `chance` gives the same record."""
    return _Stage(scene, traffic, law, chance).play()


@dataclass
class _Tally:
    asked: int = 0
    attempts: int = 0
    refused: int = 0
    longest_wait: float = 0.0


@dataclass
class _Stage:
    scene: Scene
    traffic: Traffic
    law: Law
    chance: random.Random
    now: float = 0.0
    replicas: list[Replica] = field(default_factory=list)
    tally: _Tally = field(default_factory=_Tally)
    samples: list[Sample] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0
    attempts: int = 0
    replica_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def play(self) -> Record:
        for _ in range(self.scene.bounds.minimum):
            self._create(cold_start=0.0)
        work = random.Random(self.chance.getrandbits(64))
        for at in self.traffic.arrivals:
            self._at(at, self._asker(Request(asked_at=at, seconds=work.expovariate(1 / self.scene.seconds_per_request))))
        self._at(self.law.interval, self._decide)
        self._at(SAMPLE_SECONDS, self._sample)
        while self._events and self._events[0][0] <= self.traffic.seconds:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        self.replica_seconds += sum(self.traffic.seconds - replica.created for replica in self.replicas)
        return Record(
            law=self.law.name,
            samples=tuple(self.samples),
            waits=tuple(self.waits),
            asked=len(self.traffic.arrivals),
            refused=self.refused,
            late=self.late,
            attempts=self.attempts,
            replica_seconds=self.replica_seconds,
        )

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happens))

    # ---- requests

    def _asker(self, request: Request) -> Callable[[], None]:
        return lambda: self._ask(request)

    def _ask(self, request: Request) -> None:
        self.attempts += 1
        self.tally.attempts += 1
        self.tally.asked += request.attempt == 0
        open_replicas = self._serving()
        if not open_replicas:
            return self._refuse(request)
        replica = self.chance.choice(open_replicas)
        if replica.refuses():
            return self._refuse(request, retry_after=replica.retry_after())
        request.deadline = self.now + self.scene.timeout
        if replica.running < self.scene.slots:
            return self._run(replica, request)
        replica.queue[id(request)] = request
        return self._at(request.deadline, lambda: self._expire(replica, request))

    def _run(self, replica: Replica, request: Request) -> None:
        if request.waited is None:
            request.waited = self.now - request.asked_at
            self.waits.append(request.waited)
            self.tally.longest_wait = max(self.tally.longest_wait, request.waited)
        replica.start(self.now)
        self._at(min(self.now + request.seconds, request.deadline), lambda: self._finish(replica, request))

    def _finish(self, replica: Replica, request: Request) -> None:
        replica.finish(self.now)
        if replica.queue:
            self._run(replica, replica.queue.pop(next(iter(replica.queue))))
        self._leave(replica)
        if self.now >= request.deadline:
            self._give_up(request)

    def _expire(self, replica: Replica, request: Request) -> None:
        if replica.queue.pop(id(request), None) is not None:
            self._leave(replica)
            self._give_up(request)

    def _refuse(self, request: Request, *, retry_after: float | None = None) -> None:
        self.tally.refused += 1
        self.refused += request.attempt >= self.scene.retries
        self._retry(request, retry_after)

    def _give_up(self, request: Request) -> None:
        self.late += request.attempt >= self.scene.retries
        self._retry(request, None)

    def _retry(self, request: Request, retry_after: float | None) -> None:
        if request.attempt >= self.scene.retries:
            return
        backoff = min(FIRST_BACKOFF * 2**request.attempt, LAST_BACKOFF) * (1 - JITTER * self.chance.random())
        request.attempt += 1
        self._at(self.now + (retry_after or backoff), self._asker(request))

    # ---- replicas

    def _serving(self) -> Sequence[Replica]:
        return [replica for replica in self.replicas if replica.ready_at <= self.now and not replica.draining]

    def _create(self, *, cold_start: float) -> None:
        ready_at = self.now + cold_start
        name = f"replica-{next(self._order)}"
        self.replicas.append(Replica(name=name, scene=self.scene, created=self.now, ready_at=ready_at, _counted_until=ready_at))

    def _leave(self, replica: Replica) -> None:
        """A replica that drains ends with its last request."""
        if replica.draining and not replica.in_system:
            self.replicas.remove(replica)
            self.replica_seconds += self.now - replica.created

    def _decide(self) -> None:
        wanted = self._wanted()
        serving = self._serving()
        reading = Reading(at=self.now, ready=len(serving), loads=tuple(replica.load(self.now) for replica in serving))
        desired = self.law.desired(View(replicas=len(wanted), reading=reading))
        for _ in range(desired - len(wanted)):
            self._create(cold_start=self.scene.cold_start)
        # As Kubernetes does: those that do not serve yet go first, the youngest before the others, then the least busy.
        wanted.sort(key=lambda replica: (replica.ready_at <= self.now, replica.in_system, -replica.created))
        for replica in wanted[: max(0, len(wanted) - desired)]:
            replica.draining = True
            self._leave(replica)
        self._at(self.now + self.law.interval, self._decide)

    def _wanted(self) -> list[Replica]:
        return [replica for replica in self.replicas if not replica.draining]

    def _sample(self) -> None:
        serving = self._serving()
        self.samples.append(
            Sample(
                at=self.now,
                asked=self.tally.asked,
                attempts=self.tally.attempts,
                refused=self.tally.refused,
                wanted=len(self._wanted()),
                ready=len(serving),
                queued=sum(len(replica.queue) for replica in self.replicas),
                running=sum(replica.running for replica in self.replicas),
                longest_wait=self.tally.longest_wait,
            )
        )
        self.tally = _Tally()
        self._at(self.now + SAMPLE_SECONDS, self._sample)
