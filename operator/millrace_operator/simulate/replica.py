"""One simulated replica: slots, a bounded queue, and the counters that a real one tells."""

import math
from dataclasses import dataclass, field

from millrace_operator.demand import Load
from millrace_operator.simulate.scene import Scene

LONGEST_RETRY_SECONDS = 60
USABLE_SHARE = 0.8
"""Of a request's time that the server plans with."""


@dataclass(eq=False)
class Request:
    """One client's wish. `asked_at` is its first attempt, `deadline` that of the present one; `waited` until it got its first slot."""

    asked_at: float
    seconds: float
    waited: float | None = None
    attempt: int = 0
    deadline: float = math.inf


@dataclass(eq=False)
class Replica:
    """Created at `created`, serves from `ready_at` on, and takes nothing new once it drains."""

    name: str
    scene: Scene
    created: float
    ready_at: float
    draining: bool = False
    running: int = 0
    queue: dict[int, Request] = field(default_factory=dict)
    arrivals: int = 0
    completed: int = 0
    _held: float = 0.0
    _counted_until: float = 0.0

    @property
    def in_system(self) -> int:
        return self.running + len(self.queue)

    def refuses(self) -> bool:
        """Count an arrival, and say as the server does whether it finds the replica full, or would be answered too late."""
        self.arrivals += 1
        wait = self._expected_wait()
        too_late = wait > 0 and wait + self.scene.seconds_per_request > self.scene.timeout * USABLE_SHARE
        return self.in_system >= self.scene.capacity or too_late

    def retry_after(self) -> float:
        return min(max(math.ceil(self._expected_wait() / 2), 1), LONGEST_RETRY_SECONDS)

    def start(self, now: float) -> None:
        self._count(now)
        self.running += 1

    def finish(self, now: float) -> None:
        self._count(now)
        self.running -= 1
        self.completed += 1

    def load(self, now: float) -> Load:
        self._count(now)
        return Load(
            queued=len(self.queue),
            running=self.running,
            boot_id=self.name,
            arrivals=self.arrivals,
            completed=self.completed,
            running_seconds=self._held,
        )

    def _expected_wait(self) -> float:
        ahead = self.in_system - self.scene.slots + 1
        return max(0, ahead) * self.scene.seconds_per_request / self.scene.slots

    def _count(self, now: float) -> None:
        self._held += self.running * (now - self._counted_until)
        self._counted_until = now
