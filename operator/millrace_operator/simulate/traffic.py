"""When requests arrive: shapes of load, and recorded traces. Chance is an argument."""

import bisect
import csv
import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SHAPES = ("steady", "step", "ramp", "square", "spike")
QUIET_SHARE = 0.2
"""The low rate lasts so much of the time before a shape begins."""
RAMP_ENDS = 0.6
SPIKE_SECONDS = 60.0
SQUARE_PERIODS = 5
ARRIVALS_HEADER = ["arrival_seconds"]
RATES_HEADER = ["seconds", "requests_per_second"]


class InvalidTrace(ValueError):
    """A recorded trace that cannot be read: the line, and what it should be."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What to replay: `arrivals` in ascending seconds, over `seconds`. `highest` is the most requests per second that it means to last."""

    name: str
    arrivals: tuple[float, ...]
    seconds: float
    highest: float


def shaped(shape: str, *, low: float, high: float, seconds: float, chance: random.Random) -> Traffic:
    """A Poisson stream whose rate, in requests per second, has one of SHAPES."""
    rate = _rate(shape, low, high, seconds)
    return Traffic(name=shape, arrivals=tuple(_poisson(rate, high, seconds, chance)), seconds=seconds, highest=high)


def recorded(name: str, text: str, *, chance: random.Random) -> Traffic:
    """A trace in CSV: a column `arrival_seconds` with a line per request, or the columns `seconds` and `requests_per_second`, where a rate
    lasts until the next line's moment and the last line ends the trace. Raises InvalidTrace."""
    rows = list(csv.reader(io.StringIO(text)))
    header = [cell.strip() for cell in rows[0]] if rows else []
    if header not in (ARRIVALS_HEADER, RATES_HEADER):
        raise InvalidTrace(f"line 1 is {','.join(header)!r:.80}; write {','.join(ARRIVALS_HEADER)!r} or {','.join(RATES_HEADER)!r}")
    numbers = [_numbers(row, len(header), line) for line, row in enumerate(rows[1:], start=2) if row]
    if len(numbers) < 2:
        raise InvalidTrace(f"{len(numbers)} lines of figures below the header; write two or more")
    if any(later[0] < earlier[0] for earlier, later in itertools.pairwise(numbers)):
        raise InvalidTrace(f"the moments in column {header[0]!r} must ascend; sort the lines")
    begin, end = numbers[0][0], numbers[-1][0]
    if end == begin:
        raise InvalidTrace(f"all moments are {begin:g} s; a trace must last")
    if header == ARRIVALS_HEADER:
        arrivals = tuple(row[0] - begin for row in numbers)
        return Traffic(name=name, arrivals=arrivals, seconds=end - begin, highest=busiest(arrivals))
    rates = [(at - begin, rate) for at, rate in numbers]
    highest = max(rate for _, rate in rates[:-1])
    stream = _poisson(lambda at: _rate_at(rates, at), highest, end - begin, chance)
    return Traffic(name=name, arrivals=tuple(stream), seconds=end - begin, highest=highest)


def busiest(arrivals: Sequence[float], window: float = 60.0) -> float:
    """The most arrivals per second over any whole window."""
    first, most = 0, 0
    for last, at in enumerate(arrivals):
        while arrivals[first] <= at - window:
            first += 1
        most = max(most, last - first + 1)
    return most / window


def _rate(shape: str, low: float, high: float, seconds: float) -> Callable[[float], float]:
    begin, end = QUIET_SHARE * seconds, RAMP_ENDS * seconds
    half = seconds / SQUARE_PERIODS / 2
    rates: dict[str, Callable[[float], float]] = {
        "steady": lambda _: high,
        "step": lambda at: high if at >= begin else low,
        "ramp": lambda at: low + (high - low) * min(1.0, max(0.0, (at - begin) / (end - begin))),
        "square": lambda at: high if at // half % 2 else low,
        "spike": lambda at: high if begin <= at < begin + SPIKE_SECONDS else low,
    }
    return rates[shape]


def _rate_at(rates: Sequence[tuple[float, float]], at: float) -> float:
    return rates[bisect.bisect_right(rates, at, key=lambda each: each[0]) - 1][1]


def _poisson(rate: Callable[[float], float], highest: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """By thinning: candidates come at the highest rate, and stay with the probability that the present rate has of it."""
    at = 0.0
    while highest > 0:
        at += chance.expovariate(highest)
        if at >= seconds:
            return
        if chance.random() * highest < rate(at):
            yield at


def _numbers(row: Sequence[str], width: int, line: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(cell) for cell in row)
    except ValueError:
        raise InvalidTrace(f"line {line} is {','.join(row)!r:.80}; write numbers") from None
    if len(numbers) != width or not all(0 <= number < 1e9 for number in numbers):
        raise InvalidTrace(f"line {line} is {','.join(row)!r:.80}; write {width} numbers from 0 to 1e9")
    return numbers
