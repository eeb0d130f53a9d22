"""What was seen of one load step, and what follows from it. Pure; seconds run from the step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

REFUSED = "503"


@dataclass(frozen=True)
class Pod:
    """`completed` answers, as it counts them; None while it does not say."""

    ready: bool
    completed: int | None


@dataclass(frozen=True)
class Sample:
    """One look: how many replicas are asked for, and the pods that are there, on their way in or out."""

    at: float
    wanted: int
    pods: Mapping[str, Pod]


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A step up and down again. None: it did not come to that."""

    autoscaler: str
    decision_seconds: float | None
    """Until one more replica was asked for."""
    ready_seconds: float | None
    """Until it was ready."""
    answer_seconds: float | None
    """Until it had given its first answer."""
    load_seconds: float
    """How long the load lasted."""
    down_seconds: float | None
    """From its end until one replica was asked for."""
    pod_seconds: float
    """Of all pods, from the step until one was left."""
    answered: int
    refused: int
    failed: int


def cycle(autoscaler: str, samples: Sequence[Sample], outcomes: Mapping[str, int], *, load_seconds: float) -> Cycle:
    """`outcomes` as Traffic counts them. The first sample is the state before the step."""
    old = samples[0].pods.keys()
    up = [each for each in samples if each.at <= load_seconds]
    down = [each for each in samples if each.at > load_seconds]
    answered = sum(count for outcome, count in outcomes.items() if outcome.startswith("200 "))
    lowered = _first(each.at for each in down if each.wanted == samples[0].wanted)
    return Cycle(
        autoscaler=autoscaler,
        decision_seconds=_first(each.at for each in up if each.wanted > samples[0].wanted),
        ready_seconds=_first(each.at for each in up if any(pod.ready for pod in _new(each, old))),
        answer_seconds=_first(each.at for each in up if any(pod.completed for pod in _new(each, old))),
        load_seconds=load_seconds,
        down_seconds=None if lowered is None else lowered - load_seconds,
        pod_seconds=sum(len(one.pods) * (other.at - one.at) for one, other in pairwise(samples)),
        answered=answered,
        refused=outcomes.get(REFUSED, 0),
        failed=sum(outcomes.values()) - answered - outcomes.get(REFUSED, 0),
    )


def table(cycles: Sequence[Cycle]) -> str:
    """As Markdown."""
    head = (
        "autoscaler",
        "decision",
        "replica ready",
        "its first answer",
        "down after the load",
        "pod-seconds",
        "answered",
        "refused",
        "failed",
    )
    rows = [
        (
            each.autoscaler,
            *map(_seconds, (each.decision_seconds, each.ready_seconds, each.answer_seconds, each.down_seconds)),
            f"{each.pod_seconds:.0f}",
            *map(str, (each.answered, each.refused, each.failed)),
        )
        for each in cycles
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _new(sample: Sample, old: Iterable[str]) -> Iterator[Pod]:
    return (pod for name, pod in sample.pods.items() if name not in set(old))


def _first(values: Iterable[float]) -> float | None:
    return next(iter(values), None)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
