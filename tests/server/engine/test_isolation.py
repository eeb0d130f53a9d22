"""Bisecting, for every size of step and every place of the culprit."""

import math

import pytest

from millrace_server.engine.failure import DeviceLost, StepOutOfMemory
from millrace_server.engine.isolation import run_isolated
from millrace_server.engine.plan import Chunk
from millrace_server.engine.sequence import Choice, Sequence
from small_engine import request


def chunks(count: int) -> tuple[Chunk, ...]:
    return tuple(Chunk(Sequence(request(f"r{index}", [index]), seed=0, arrived=0), 0, 1) for index in range(count))


class Counted:
    def __init__(self, *culprits: int) -> None:
        self.culprits = culprits
        self.runs = 0

    def run(self, part: tuple[Chunk, ...]) -> list[Choice]:
        self.runs += 1
        if any(chunk.sequence.tokens[0] in self.culprits for chunk in part):
            raise ArithmeticError("poison")
        return [Choice(chunk.sequence.tokens[0]) for chunk in part]


@pytest.mark.parametrize("count", range(1, 34))
def test_one_culprit_is_found_and_all_others_are_computed_within_the_promised_runs(count: int) -> None:
    for culprit in range(count):
        counted, step = Counted(culprit), chunks(count)
        outcome = run_isolated(counted.run, step)
        assert counted.runs <= 2 * math.ceil(math.log2(count)) + 1
        assert [chunk.sequence.tokens[0] for chunk, _ in outcome.blamed] == [culprit]
        assert [chunk.sequence.tokens[0] for chunk in outcome.computed] == [place for place in range(count) if place != culprit]
        assert [choice.token for choice in outcome.choices] == [chunk.sequence.tokens[0] for chunk in outcome.computed]


def test_a_healthy_step_runs_once() -> None:
    counted = Counted()
    assert len(run_isolated(counted.run, chunks(8)).computed) == 8
    assert counted.runs == 1


def test_several_culprits_take_several_steps_and_never_harm_a_neighbour() -> None:
    counted, step = Counted(1, 6, 7), chunks(8)
    steps = 0
    blamed: list[int] = []
    while step:
        outcome = run_isolated(counted.run, step)
        blamed += [chunk.sequence.tokens[0] for chunk, _ in outcome.blamed]
        ended = {chunk.sequence for chunk, _ in outcome.blamed} | {chunk.sequence for chunk in outcome.computed}
        step = tuple(chunk for chunk in step if chunk.sequence not in ended)
        steps += 1
    assert sorted(blamed) == [1, 6, 7]
    assert steps <= 3


@pytest.mark.parametrize("kind", [StepOutOfMemory, DeviceLost])
def test_what_is_nobodys_fault_is_not_bisected(kind: type[Exception]) -> None:
    def run(_: tuple[Chunk, ...]) -> list[Choice]:
        raise kind("full")

    with pytest.raises(kind):
        run_isolated(run, chunks(8))
