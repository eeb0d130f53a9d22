"""A record as a few numbers, by which laws and sizes are compared."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from millrace_operator.simulate.play import Record


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one play, or the means of several."""

    peak: float
    """The most replicas that were wanted at once."""
    refused_percent: float
    """Requests whose last attempt was refused."""
    late_percent: float
    """Requests whose last attempt came to its deadline."""
    wait_99_seconds: float
    """What 99 of 100 requests that got a slot waited less than, their refused attempts included."""
    reversals: float
    """How often the count turned from growing to shrinking or back."""
    replica_hours: float


def of_record(record: Record) -> Figures:
    wanted = [sample.wanted for sample in record.samples]
    steps = [after - before for before, after in itertools.pairwise(wanted) if after != before]
    waits = sorted(record.waits)
    return Figures(
        peak=max(wanted),
        refused_percent=100 * record.refused / max(1, record.asked),
        late_percent=100 * record.late / max(1, record.asked),
        wait_99_seconds=waits[int(0.99 * (len(waits) - 1))] if waits else 0.0,
        reversals=sum((before > 0) != (after > 0) for before, after in itertools.pairwise(steps)),
        replica_hours=record.replica_seconds / 3600,
    )


def mean(of: Sequence[Figures]) -> Figures:
    return Figures(**{each.name: statistics.fmean(getattr(one, each.name) for one in of) for each in fields(Figures)})
