"""What was measured, as frozen values, and the goals. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engine_benchmark.figures import percentile
from http_benchmark.client import Answer

SHORT_REQUESTS_GOAL = 1_500
STREAMED_TOKENS_GOAL = 10_000
HEALTH_GOAL_MS = 100
PREDICTION_GOAL = 0.2
"""By which the law's product may miss the slots that run."""
REFUSAL_GOAL_MS = 50
CACHE_GOAL = 10
GOODPUT_GOAL = 0.8
"""At three times the capacity, as a share of the best."""
GROWTH_GOAL = 0.02
"""Of the memory after the warm-up, over the whole soak."""
WARM_UP_SHARE = 0.2
"""Of the soak: allocators, caches and pools fill."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, once per round."""

    kind: str
    what: str
    unit: str
    rounds: tuple[float, ...]
    goal: float | None = None
    at_least: bool = True
    """The goal is a lower limit; else an upper one."""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def met(self) -> bool | None:
        """None without a goal."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal


@dataclass(frozen=True, kw_only=True)
class Overload:
    """An open loop of `load` times the capacity."""

    load: float
    offered_per_second: float
    good_per_second: float
    """Whole answers within their deadline."""
    refused_share: float
    late_share: float
    """Deadlines that passed, in the queue or later, and streams that ended with an error."""
    refusal_p99_ms: float | None
    answer_p50_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Soak:
    seconds: float
    done: dict[str, int]
    samples: tuple[tuple[float, dict[str, int]], ...]
    """Seconds since the start, resident bytes by process."""

    def growth(self, process: str) -> float:
        """The median of the last tenth above that of the tenth after the warm-up, as a share of it."""
        values = [resident[process] for _, resident in self.samples]
        tenth, first = max(1, len(values) // 10), int(len(values) * WARM_UP_SHARE)
        begin = statistics.median(values[first : first + tenth])
        return statistics.median(values[-tenth:]) / begin - 1


def milliseconds(answers: Sequence[Answer], share: float) -> float:
    """From the request's first byte sent to the answer's last read: a percentile."""
    return percentile((each.seconds for each in answers), share) * 1000


def overload(answers: Sequence[Answer], *, load: float, began: float, ended: float, deadline: float) -> Overload:
    """Counts what was sent from `began` to `ended` (monotonic seconds). Raises ValueError for a refusal without Retry-After."""
    counted = [each for each in answers if began <= each.sent < ended]
    refused = [each for each in counted if each.status == 503]
    if silent := [each for each in refused if not each.retry_after]:
        raise ValueError(f"{len(silent)} of {len(refused)} refusals came without Retry-After")
    good = [each for each in counted if each.status == 200 and not each.failed and each.seconds <= deadline]
    return Overload(
        load=load,
        offered_per_second=len(counted) / (ended - began),
        good_per_second=len(good) / (ended - began),
        refused_share=len(refused) / len(counted),
        late_share=1 - (len(refused) + len(good)) / len(counted),
        refusal_p99_ms=milliseconds(refused, 0.99) if refused else None,
        answer_p50_seconds=statistics.median(each.seconds for each in good) if good else None,
    )
