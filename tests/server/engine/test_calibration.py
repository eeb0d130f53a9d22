"""What is concluded from the times of steps, and that the measuring takes no more time than it may."""

from pathlib import Path

import pytest

import fake_model
from millrace_server.engine.calibration import SMALLEST_PROMPT_SHARE, Pace, measure
from millrace_server.engine.runner import Runner
from millrace_server.engine.scheduler import Chunk
from millrace_server.engine.sequence import Choice, Sequence
from small_engine import load


@pytest.mark.parametrize(
    ("seconds_per_step", "cap"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.1, 8: 1.3}, 8),  # reading the weights dominates: a larger batch is nearly free
        ({1: 1.0, 2: 1.1, 4: 2.2, 8: 4.4}, 2),  # the processor is full with two
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 1),
        ({1: 1.0, 2: 1.3, 4: 2.0, 8: 3.9}, 4),  # the last doubling gives less than it is worth
    ],
)
def test_the_cap_is_the_smallest_batch_with_nearly_the_best_throughput(seconds_per_step: dict[int, float], cap: int) -> None:
    assert Pace(generating=seconds_per_step).cap(8) == cap


def test_nothing_measured_limits_nothing() -> None:
    assert Pace().cap(64) == 64
    assert Pace().beside(3) == SMALLEST_PROMPT_SHARE


@pytest.mark.parametrize(("generating", "tokens"), [(1, 16), (4, 32), (30, 128), (1000, 128)])
def test_a_long_prompt_gets_as_much_of_a_step_as_those_who_generate_take(generating: int, tokens: int) -> None:
    pace = Pace(generating={1: 1.0, 4: 2.0, 32: 5.0}, prompt={16: 1.5, 32: 2.0, 64: 3.0, 128: 5.0, 256: 9.0})
    assert pace.beside(generating) == tokens


class Machine:
    """Every step takes a second, and one more per 100 tokens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held: set[Sequence] = set()

    def clock(self) -> float:
        return self.now

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        self.held |= {chunk.sequence for chunk in chunks}
        self.now += 1 + sum(chunk.length for chunk in chunks) / 100
        return [Choice(1) for _ in chunks]

    def release(self, sequence: Sequence) -> None:
        self.held.discard(sequence)


def test_every_size_is_measured_and_nothing_is_left_behind() -> None:
    machine = Machine()
    pace = measure(machine, slots=6, longest_prompt=128, seconds=1000, clock=machine.clock)
    assert pace.generating == pytest.approx({6: 1.06, 3: 1.03, 1: 1.01})
    assert pace.prompt == pytest.approx({16: 1.16})  # longer than a step of six already
    assert not machine.held


def test_a_slow_machine_is_measured_no_longer_than_a_step_beyond_the_time_allowed() -> None:
    machine = Machine()
    pace = measure(machine, slots=64, longest_prompt=512, seconds=10, clock=machine.clock)
    assert list(pace.generating) == [64, 32]
    assert pace.prompt == {}
    assert machine.now < 10 + 4 * 1.64
    assert not machine.held


def test_a_real_model_is_measured_and_holds_nothing_afterwards(tmp_path: Path) -> None:
    runner: Runner = load(fake_model.build(tmp_path))
    pace = measure(runner, slots=4, longest_prompt=64, seconds=60)
    assert list(pace.generating) == [4, 2, 1]
    assert min(pace.prompt) == SMALLEST_PROMPT_SHARE
    assert runner.bytes_held() == 0
