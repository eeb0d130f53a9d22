"""Who is in the system: admits or refuses in O(1), and keeps the counts that the autoscaler reads. Pure: time is an argument.

Never waits and never looks into a request.
"""

import math

from millrace_server.errors import QueueFull, WaitTooLong
from millrace_server.load import Load

MEMORY_SECONDS = 60.0
"""Completions older than this weigh little in the service time."""
FEWEST_COMPLETED = 0.5
"""Completions, each fading with age, below which nothing is known: one is forgotten after 40 s."""
LONGEST_RETRY_SECONDS = 60
USABLE_SHARE = 0.8
"""Of a request's time that may be planned with. Estimates err, and at the brink of refusal every request that is taken in is about as late
as it may be: a little too late, all of them would hold a slot for nothing."""


class Admission:
    """Counts answers from admission to their end, whichever way they end: a request for several is as much work as several requests.

    It enters as one: who finds a free place may bring all its answers, so that the limit refuses nobody for asking for many.
    """

    def __init__(self, *, slots: int, max_queue: int, max_concurrent: int, now: float) -> None:
        self.slots = slots
        self._max_queue = max_queue
        self._max_concurrent = max_concurrent
        self._started = now
        self.in_system = 0
        self.arrivals = 0
        self.completed = 0
        self.running_seconds = 0.0
        self._engine_running = 0
        self._counted_until = now
        self._recent_running_seconds = 0.0
        self._recent_completed = 0.0
        self._recent_tokens = 0.0

    @property
    def capacity(self) -> int:
        return min(self._max_concurrent, self.slots + self._max_queue)

    @property
    def running(self) -> int:
        """The engine's last word, which lags a step behind the front: never more than are in the system."""
        return min(self._engine_running, self.in_system)

    @property
    def queued(self) -> int:
        return self.in_system - self.running

    def enter(self, *, now: float, timeout: float, max_tokens: int | None = None, answers: int = 1) -> None:
        """Take one request in that must end within `timeout` seconds, or raise QueueFull or WaitTooLong with a Retry-After. Who is refused
        has arrived; who is taken in has once it is confirmed, or is withdrawn. A free slot is given whatever the estimates say."""
        if self.in_system >= self.capacity:
            message = f"{self.capacity} requests are already in the system, the limit of this replica"
            self.arrivals += answers
            raise QueueFull(message, retry_after=self.retry_after())
        wait = self.expected_wait(answers)
        needed = wait + self.service_seconds(max_tokens)
        if wait > 0 and needed > timeout * USABLE_SHARE:
            message = (
                f"a request would wait about {wait:.1f} s for a slot and be answered after about {needed:.1f} s, too close to its deadline"
                f" of {timeout:.1f} s or beyond it; ask again later, with fewer max_tokens or with more time"
            )
            self.arrivals += answers
            raise WaitTooLong(message, retry_after=self.retry_after())
        self._count(now)
        self.in_system += answers

    def confirm(self, *, answers: int = 1) -> None:
        """A request that was taken in is well-formed: it is demand."""
        self.arrivals += answers

    def leave(self, *, now: float, has_run: bool = True) -> None:
        """One answer has ended. Who never held a slot completes nothing: counted, the ones that waited in vain would make requests seem
        short, more would be taken in, and more would wait in vain."""
        self._count(now)
        self.in_system -= 1
        if has_run:
            self.completed += 1
            self._recent_completed += 1

    def generated(self, tokens: int) -> None:
        """The running answers have so many tokens more."""
        self._recent_tokens += tokens

    def answered_from_cache(self, answers: int) -> None:
        self.arrivals += answers
        self.completed += answers

    def withdraw(self, *, now: float, answers: int = 1) -> None:
        """Let go of a request that turned out to be malformed: it was no demand."""
        self._count(now)
        self.in_system -= answers

    def engine_runs(self, running: int, *, now: float) -> None:
        self._count(now)
        self._engine_running = running

    def service_seconds(self, max_tokens: int | None = None) -> float:
        """Seconds that a request holds a slot, by Little's law over the recent past; 0 while unknown. Less for one that may not have as
        many tokens as the usual answer has."""
        if self._recent_completed < FEWEST_COMPLETED:
            return 0.0
        mean = self._recent_running_seconds / self._recent_completed
        usual = self._recent_tokens / self._recent_completed
        return mean if max_tokens is None or max_tokens >= usual else mean * max_tokens / usual

    def expected_wait(self, answers: int = 1) -> float:
        """Seconds until the last answer of a request that enters now gets a slot; 0 while the service time is unknown."""
        ahead = self.in_system - self.slots + answers
        return max(0, ahead) * self.service_seconds() / self.slots

    def retry_after(self) -> int:
        """Whole seconds after which about half of the queue has been served."""
        return min(max(math.ceil(self.expected_wait() / 2), 1), LONGEST_RETRY_SECONDS)

    def load(self, *, boot_id: str, draining: bool, ready: bool, now: float) -> Load:
        self._count(now)
        return Load(
            boot_id=boot_id,
            uptime_seconds=now - self._started,
            draining=draining,
            ready=ready,
            slots=self.slots,
            capacity=self.capacity,
            queued=self.queued,
            running=self.running,
            arrivals=self.arrivals,
            completed=self.completed,
            running_seconds=self.running_seconds,
        )

    def _count(self, now: float) -> None:
        passed = now - self._counted_until
        self._counted_until = now
        held = passed * self.running
        self.running_seconds += held
        kept = math.exp(-passed / MEMORY_SECONDS)
        self._recent_running_seconds = self._recent_running_seconds * kept + held
        self._recent_completed *= kept
        self._recent_tokens *= kept
