"""Rounds in turn, clients that ask again, and engines that break their word."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext
from typing import cast

import pytest

from engine_benchmark.clients import drive
from engine_benchmark.engine import EngineFailed, Request
from engine_benchmark.experiment import Arm, Experiment, Goal, Pair, Results, measure, order
from engine_benchmark.figures import Figures, Timeline
from engine_benchmark.figures import measure as figures_of
from engine_benchmark.watch import Watch


class Counting:
    """Answers token by token, and notes how many requests ran at once."""

    name = "counting"
    pid = 1

    def __init__(self, *, lost: int = 0) -> None:
        self.running = 0
        self.most = 0
        self.asked: list[Request] = []
        self._lost = lost

    async def start(self) -> None:
        """It is there."""

    async def stop(self) -> None:
        """It goes."""

    async def generate(self, request: Request) -> AsyncGenerator[int]:
        self.asked.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(request.max_tokens - self._lost):
            await asyncio.sleep(0)
            yield 1
        self.running -= 1


class Unwatched:
    """Nobody else computes."""

    def only(self, _: str) -> nullcontext[None]:
        return nullcontext()


def arm(engine: str, series: str, seconds: dict[str, float], log: list[str]) -> Arm:
    async def run(seed: str) -> Figures:
        log.append(f"{engine} {seed}")
        return figures_of([Timeline(0, [(seconds[seed], 1)])])

    return Arm(engine=engine, series=series, run=cast("Callable[[str], Awaitable[Figures]]", run))


def requests(count: int) -> list[Request]:
    return [Request((index,), 3) for index in range(count)]


async def test_clients_ask_until_nothing_is_left_and_never_more_at_once_than_they_are() -> None:
    engine = Counting()
    timelines = await drive(engine, requests(7), concurrency=3)
    assert [line.tokens for line in timelines] == [3] * 7
    assert engine.most == 3
    assert engine.asked == requests(7)


async def test_an_engine_that_loses_tokens_is_not_measured() -> None:
    with pytest.raises(EngineFailed, match="counting answered 2 tokens where 3 were asked for"):
        await drive(Counting(lost=1), requests(4), concurrency=2)


def test_the_arms_of_a_round_take_turns_at_being_first() -> None:
    assert [order(3, number) for number in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


async def test_arms_are_interleaved_and_compared_within_a_round() -> None:
    log: list[str] = []
    arms = [
        arm("ours", "equal", {"round 0": 1.0, "round 1": 10.0, "round 2": 2.0}, log),
        arm("theirs", "equal", {"round 0": 2.0, "round 1": 30.0, "round 2": 5.0}, log),
    ]
    pair = Pair(above=0, below=1, figure="output_tokens_per_second", goal=Goal(at_least=2.6))
    results = Results()
    experiment = Experiment(kind="peers", concurrency=1, arms=arms, pairs=[pair])
    await measure(experiment, rounds=3, watch=cast("Watch", Unwatched()), results=results)
    assert log == ["ours round 0", "theirs round 0", "theirs round 1", "ours round 1", "ours round 2", "theirs round 2"]
    (ratio,) = results.ratios
    assert (ratio.above, ratio.below, ratio.series) == ("ours", "theirs", "equal")
    assert (ratio.spread.lowest, ratio.spread.median, ratio.spread.highest) == (2.0, 2.5, 3.0)
    assert [row.figures.seconds for row in results.rows] == [2.0, 5.0]


async def test_two_arms_of_one_engine_are_told_apart_by_their_series() -> None:
    arms = [arm("ours", "shared", {"round 0": 1.0}, []), arm("ours", "distinct", {"round 0": 4.0}, [])]
    results = Results()
    experiment = Experiment(kind="prefix", concurrency=1, arms=arms, pairs=[Pair(above=1, below=0, figure="ttft_p50_seconds")])
    await measure(experiment, rounds=1, watch=cast("Watch", Unwatched()), results=results)
    (ratio,) = results.ratios
    assert (ratio.above, ratio.below, ratio.series, ratio.spread.median) == ("distinct", "shared", "", 4.0)


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [(Goal(at_least=3), 3, True), (Goal(at_least=3), 2.99, False), (Goal(at_most=1.3), 1.3, True), (Goal(at_most=1.3), 1.31, False)],
)
def test_a_goal_is_met_on_its_bound_and_missed_beyond(goal: Goal, ratio: float, *, met: bool) -> None:
    assert goal.met_by(ratio) is met
