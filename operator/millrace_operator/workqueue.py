"""Which key is reconciled when. One running pass per key, bursts coalesced, failures retried later and later.

`Schedule` and `TokenBucket` decide and are pure: time and chance are arguments. `WorkQueue` acts: it runs N workers over a
schedule, each pass under a deadline. Nothing here knows what a key is or what a pass does.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

logger = logging.getLogger(__name__)


class RetryLater(Exception):
    """Raised by a pass that knows how long to wait: `seconds` is a lower bound for its back-off, `level` how loud its log line is."""

    def __init__(self, message: str, *, reason: str = "", seconds: float = 0, level: int = logging.WARNING) -> None:
        super().__init__(message)
        self.reason = reason
        """One word, for the metrics."""
        self.seconds = seconds
        self.level = level


@dataclass(frozen=True)
class Pace:
    """Durations in seconds."""

    coalesce: float
    first_retry: float
    last_retry: float


@dataclass
class _Failures:
    count: int
    earliest: float
    """Before then nothing brings the next pass forward."""


class Schedule(Generic[Key]):
    """Due times per key. `now` is monotonic seconds; `chance` draws from [0, 1)."""

    def __init__(self, pace: Pace, chance: Callable[[], float]) -> None:
        self._pace = pace
        self._chance = chance
        self._due: dict[Key, float] = {}
        self._again: dict[Key, float] = {}
        self._running: set[Key] = set()
        self._failures: dict[Key, _Failures] = {}

    def add(self, key: Key, *, now: float) -> None:
        """Ask for a pass after the burst. An earlier due time stands.

        A failing key is not brought forward to less than `first_retry` after its failure, for our own writes cause events too, nor to less
        than what the server asked to wait.
        """
        due = now + self._pace.coalesce
        if key in self._failures:
            due = max(due, self._failures[key].earliest)
        waiting = self._again if key in self._running else self._due
        waiting[key] = min(due, waiting.get(key, due))

    def take(self, *, now: float) -> Key | None:
        """The key that has been due longest, now marked as running; None when none is due."""
        key = min(self._due, key=self._due.__getitem__, default=None)
        if key is None or self._due[key] > now:
            return None
        del self._due[key]
        self._running.add(key)
        return key

    def succeeded(self, key: Key) -> None:
        self._failures.pop(key, None)
        self._finish(key)

    def failed(self, key: Key, *, now: float, at_least: float = 0) -> float:
        """Schedules the retry and returns its delay: full jitter over a window that doubles, never below `at_least`.

        What was asked for while the pass ran comes as soon as what is asked for later.
        """
        count = self._failures[key].count + 1 if key in self._failures else 1
        earliest = now + max(at_least, self._pace.first_retry)
        self._failures[key] = _Failures(count, earliest)
        window = min(self._pace.first_retry * 2.0 ** min(count - 1, 30), self._pace.last_retry)
        delay = max(at_least, self._pace.coalesce, window * self._chance())
        self._finish(key)
        asked = max(self._due.get(key, math.inf), earliest)
        self._due[key] = min(now + delay, asked)
        return delay

    def next_due(self) -> float | None:
        return min(self._due.values(), default=None)

    def waited(self, *, now: float) -> float:
        """Seconds that the oldest due key has been waiting for a worker."""
        return max(0.0, now - min(self._due.values(), default=now))

    @property
    def depth(self) -> int:
        return len(self._due)

    def _finish(self, key: Key) -> None:
        self._running.discard(key)
        if key in self._again:
            self._due[key] = self._again.pop(key)


class TokenBucket:
    """A rate with a burst. `reserve` takes a token and says how many seconds to wait before using it."""

    def __init__(self, *, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at: float | None = None

    def reserve(self, *, now: float) -> float:
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_second)


class WorkQueue(Generic[Key]):
    """Runs `work(key)` for keys that are due."""

    def __init__(
        self,
        work: Callable[[Key], Awaitable[None]],
        *,
        pace: Pace,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.schedule: Schedule[Key] = Schedule(pace, chance)
        self._work = work
        self._deadline = deadline
        self._clock = clock
        self._changed = asyncio.Event()
        self._stopping = False
        self._running: dict[Key, float] = {}
        self._fruitless_since: float | None = None

    def add(self, key: Key) -> None:
        self.schedule.add(key, now=self._clock())
        self._changed.set()

    @property
    def waited(self) -> float:
        return self.schedule.waited(now=self._clock())

    @property
    def longest(self) -> float:
        """Seconds that the oldest running pass has taken; beyond the deadline it is one that cannot be ended."""
        return self._clock() - min(self._running.values(), default=self._clock())

    @property
    def fruitless(self) -> float:
        """Seconds in which passes were begun and none came to an end but by its deadline. A failure is an end."""
        return 0.0 if self._fruitless_since is None else self._clock() - self._fruitless_since

    async def run(self, workers: int) -> None:
        """Returns after `stop()`, when the passes that were running have ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._run_one(), name=f"worker {number}")

    def stop(self) -> None:
        """Start no further pass."""
        self._stopping = True
        self._changed.set()

    async def _run_one(self) -> None:
        while not self._stopping:
            key = self.schedule.take(now=self._clock())
            if key is None:
                await self._wait()
            else:
                await self._pass(key)

    async def _wait(self) -> None:
        due = self.schedule.next_due()
        self._changed.clear()
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _pass(self, key: Key) -> None:
        self._running[key] = self._clock()
        if self._fruitless_since is None:
            self._fruitless_since = self._clock()
        try:
            await self._run_pass(key)
        finally:
            del self._running[key]

    async def _run_pass(self, key: Key) -> None:
        fruitless_since = None
        try:
            async with asyncio.timeout(self._deadline):
                await self._work(key)
        except TimeoutError:
            fruitless_since = self._fruitless_since
            delay = self.schedule.failed(key, now=self._clock())
            logger.warning("%s: the pass took longer than %g s; retried in %.1f s", key, self._deadline, delay)
        except RetryLater as later:
            delay = self.schedule.failed(key, now=self._clock(), at_least=later.seconds)
            logger.log(later.level, "%s: %s; retried in %.1f s", key, later, delay)
        except Exception:  # the boundary: one service's bug must not stop the others
            delay = self.schedule.failed(key, now=self._clock())
            logger.exception("%s: the pass failed; retried in %.1f s", key, delay)
        else:
            self.schedule.succeeded(key)
        self._fruitless_since = fruitless_since
        self._changed.set()
