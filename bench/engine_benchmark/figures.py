"""From the times at which tokens arrived to figures, and from the figures of rounds to medians and paired ratios. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class Timeline:
    """One request as its client saw it; monotonic seconds."""

    sent: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """When tokens arrived, and how many."""

    @property
    def first_token_seconds(self) -> float:
        return self.arrivals[0][0] - self.sent

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    def gaps(self, *, since: float = float("-inf"), until: float = float("inf")) -> list[float]:
        """Seconds between arrivals, of those that ended in the given time."""
        times = [time for time, _ in self.arrivals]
        return [later - earlier for earlier, later in pairwise(times) if since <= later <= until]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run."""

    requests: int
    output_tokens: int
    seconds: float
    """From the first request to the last token."""
    output_tokens_per_second: float
    ttft_p50_seconds: float
    ttft_p99_seconds: float
    itl_p50_seconds: float | None
    """Inter-token latency; None when no request had two tokens."""
    itl_p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    median: float
    lowest: float
    highest: float


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0…1) of the values lie, between neighbours by straight line. Raises ValueError when there is none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, so no percentile")
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def measure(timelines: Sequence[Timeline]) -> Figures:
    """The figures of a run whose requests have all ended."""
    gaps = [gap for timeline in timelines for gap in timeline.gaps()]
    first = [timeline.first_token_seconds for timeline in timelines]
    seconds = max(timeline.arrivals[-1][0] for timeline in timelines) - min(timeline.sent for timeline in timelines)
    output_tokens = sum(timeline.tokens for timeline in timelines)
    return Figures(
        requests=len(timelines),
        output_tokens=output_tokens,
        seconds=seconds,
        output_tokens_per_second=output_tokens / seconds,
        ttft_p50_seconds=percentile(first, 0.5),
        ttft_p99_seconds=percentile(first, 0.99),
        itl_p50_seconds=percentile(gaps, 0.5) if gaps else None,
        itl_p99_seconds=percentile(gaps, 0.99) if gaps else None,
    )


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(values), lowest=min(values), highest=max(values))


def paired(above: Sequence[Figures], below: Sequence[Figures], figure: str) -> Spread:
    """The ratio of a figure, round by round: what drifts from one round to the next cancels out."""
    return spread([getattr(one, figure) / getattr(other, figure) for one, other in zip(above, below, strict=True)])


def median(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure by itself; counts are the same in every round."""
    first = rounds[0]
    return Figures(
        requests=first.requests,
        output_tokens=first.output_tokens,
        seconds=statistics.median(one.seconds for one in rounds),
        output_tokens_per_second=statistics.median(one.output_tokens_per_second for one in rounds),
        ttft_p50_seconds=statistics.median(one.ttft_p50_seconds for one in rounds),
        ttft_p99_seconds=statistics.median(one.ttft_p99_seconds for one in rounds),
        itl_p50_seconds=_median([one.itl_p50_seconds for one in rounds]),
        itl_p99_seconds=_median([one.itl_p99_seconds for one in rounds]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
