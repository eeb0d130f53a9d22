"""The recent past: how often, how long. Pure: time is an argument, memory is bounded."""

import math
from collections import deque


class RateWindow:
    """Events per second over the last `seconds` (whole seconds)."""

    def __init__(self, *, seconds: int, now: float) -> None:
        self._seconds = seconds
        self._started = now
        self._counts: deque[tuple[int, int]] = deque()

    def add(self, *, now: float) -> None:
        second = int(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1] = (second, self._counts[-1][1] + 1)
        else:
            self._counts.append((second, 1))
        self._forget(now)

    def per_second(self, *, now: float) -> float:
        """Over the time since the start while that is shorter than the window, but never over less than a second."""
        self._forget(now)
        span = min(float(self._seconds), max(1.0, now - self._started))
        return sum(count for _, count in self._counts) / span

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= now - self._seconds:
            self._counts.popleft()


class DurationWindow:
    """Percentiles and mean of the durations of the last `seconds`, at most `capacity` of them."""

    def __init__(self, *, seconds: float, capacity: int = 10_000) -> None:
        self._seconds = seconds
        self._durations: deque[tuple[float, float]] = deque(maxlen=capacity)

    def add(self, duration: float, *, now: float) -> None:
        self._durations.append((now, duration))

    def percentiles(self, *fractions: float, now: float) -> tuple[list[float], float]:
        """The nearest-rank percentiles and the mean; zeros when the window is empty."""
        while self._durations and self._durations[0][0] <= now - self._seconds:
            self._durations.popleft()
        ordered = sorted(duration for _, duration in self._durations)
        if not ordered:
            return [0.0] * len(fractions), 0.0
        ranks = [max(0, math.ceil(fraction * len(ordered)) - 1) for fraction in fractions]
        return [ordered[rank] for rank in ranks], sum(ordered) / len(ordered)
