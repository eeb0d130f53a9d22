"""Arms that are measured in turn, round after round, and the ratios between them.

The speed of a shared machine wanders, so only arms of one round are compared: each round runs every arm once, the order rotates, and
a ratio is the median of the rounds' ratios, with the lowest and the highest.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from engine_benchmark.figures import Figures, Spread, median, paired
from engine_benchmark.watch import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Something to measure. `run` gets the round's name, from which it seeds its requests."""

    engine: str
    series: str
    run: Callable[[str], Awaitable[Figures]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on a ratio's median; exactly one of the two is set."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, ratio: float) -> bool:
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The ratio of a figure of two arms (places in the experiment's list)."""

    above: int
    below: int
    figure: str
    """A field of Figures."""
    goal: Goal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    kind: str
    concurrency: int
    arms: Sequence[Arm]
    pairs: Sequence[Pair]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm: the median of each figure over the rounds, and the rounds."""

    kind: str
    engine: str
    series: str
    concurrency: int
    figures: Figures
    rounds: Sequence[Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """`above` over `below`, names of arms."""

    kind: str
    series: str
    concurrency: int
    figure: str
    above: str
    below: str
    spread: Spread
    goal: Goal | None


@dataclass(slots=True)
class Results:
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)


async def measure(experiment: Experiment, *, rounds: int, watch: Watch, results: Results) -> None:
    """Run the rounds of one experiment and add what came out."""
    measured: list[list[Figures]] = [[] for _ in experiment.arms]
    for number in range(rounds):
        for place in order(len(experiment.arms), number):
            arm = experiment.arms[place]
            with watch.only(arm.engine):
                measured[place].append(await arm.run(f"round {number}"))
    for arm, figures in zip(experiment.arms, measured, strict=True):
        results.rows.append(
            Row(
                kind=experiment.kind,
                engine=arm.engine,
                series=arm.series,
                concurrency=experiment.concurrency,
                figures=median(figures),
                rounds=figures,
            )
        )
    results.ratios += [_ratio(experiment, pair, measured) for pair in experiment.pairs]


def order(arms: int, number: int) -> list[int]:
    """The places of a round: rotated by one each time, so that no arm always follows the same one first."""
    return [(place + number) % arms for place in range(arms)]


def _ratio(experiment: Experiment, pair: Pair, measured: Sequence[Sequence[Figures]]) -> Ratio:
    above, below = experiment.arms[pair.above], experiment.arms[pair.below]
    same_engine = above.engine == below.engine
    return Ratio(
        kind=experiment.kind,
        series=above.series if above.series == below.series else "",
        concurrency=experiment.concurrency,
        figure=pair.figure,
        above=above.series if same_engine else above.engine,
        below=below.series if same_engine else below.engine,
        spread=paired(measured[pair.above], measured[pair.below], pair.figure),
        goal=pair.goal,
    )
