"""The table of the laws: what they cost and refuse under equal load. A change of the law that makes it worse fails here.

The bounds hold for every seed; the means over the seeds are what docs/autoscaling.md tells.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from millrace_operator.autoscale import Bounds
from millrace_operator.simulate.figures import Figures, mean, of_record
from millrace_operator.simulate.laws import AverageValue, Knative, Law, Millrace, TenMinuteMean
from simulate.scenes import SCENE, load, played

SEEDS = range(3)


@dataclass(frozen=True, kw_only=True)
class Case:
    shape: str
    high: float
    cold_start: float
    retries: int
    refused_percent: float
    """At most, in the mean over the seeds."""

    @property
    def need(self) -> int:
        return math.ceil(SCENE.replicas_for(self.high))


CASES = [
    Case(shape="step", high=20, cold_start=15, retries=0, refused_percent=3),
    Case(shape="step", high=20, cold_start=15, retries=2, refused_percent=2),
    Case(shape="step", high=20, cold_start=120, retries=0, refused_percent=13),
    Case(shape="step", high=20, cold_start=120, retries=2, refused_percent=9),
    Case(shape="steady", high=10, cold_start=120, retries=0, refused_percent=10),
    Case(shape="steady", high=10, cold_start=120, retries=2, refused_percent=8),
    Case(shape="square", high=10, cold_start=120, retries=0, refused_percent=10),
    Case(shape="square", high=10, cold_start=120, retries=2, refused_percent=9),
    Case(shape="ramp", high=20, cold_start=120, retries=2, refused_percent=4),
    Case(shape="step", high=20, cold_start=900, retries=0, refused_percent=75),
    Case(shape="step", high=20, cold_start=900, retries=2, refused_percent=67),
]


@cache
def plays(case: Case, law: Callable[[Bounds], Law]) -> tuple[Figures, ...]:
    return tuple(
        of_record(played(load(case.shape, high=case.high, seed=seed), law=law, seed=seed, cold_start=case.cold_start, retries=case.retries))
        for seed in SEEDS
    )


def name(case: Case) -> str:
    return f"{case.shape}-cold-{case.cold_start:g}-retries-{case.retries}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_no_cold_start_and_no_retry_buys_more_than_half_as_much_again(case: Case) -> None:
    assert max(each.peak for each in plays(case, Millrace)) <= 1.5 * case.need


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_share_refused_stays_within_its_bound(case: Case) -> None:
    assert mean(plays(case, Millrace)).refused_percent <= case.refused_percent


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_count_turns_at_most_twice_in_25_minutes(case: Case) -> None:
    assert max(each.reversals for each in plays(case, Millrace)) <= 2


COMPARED = [case for case in CASES if case.cold_start == 120 and case.shape in ("step", "square")]


@pytest.mark.parametrize("case", COMPARED, ids=name)
def test_the_same_load_costs_less_and_peaks_lower_than_by_the_backlog_alone(case: Case) -> None:
    ours, theirs = mean(plays(case, Millrace)), mean(plays(case, AverageValue))
    assert ours.peak <= 0.85 * theirs.peak
    assert ours.replica_hours <= 0.9 * theirs.replica_hours


@pytest.mark.parametrize("case", COMPARED, ids=name)
def test_the_count_is_calmer_than_knatives(case: Case) -> None:
    assert mean(plays(case, Millrace)).reversals <= 0.5 * mean(plays(case, Knative)).reversals


@pytest.mark.parametrize("case", COMPARED, ids=name)
def test_fewer_are_refused_than_by_a_mean_of_ten_minutes(case: Case) -> None:
    assert mean(plays(case, Millrace)).refused_percent <= 0.6 * mean(plays(case, TenMinuteMean)).refused_percent
