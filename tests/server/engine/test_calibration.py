"""What is concluded from the times of steps, and that the measuring takes no more time than it may."""

from pathlib import Path

import pytest

import fake_model
from millrace_server.engine.calibration import measure, running_cap
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
        ({}, 8),
    ],
)
def test_the_cap_is_the_smallest_batch_with_nearly_the_best_throughput(seconds_per_step: dict[int, float], cap: int) -> None:
    assert running_cap(seconds_per_step, slots=8) == cap


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
    assert measure(machine, slots=6, seconds=1000, clock=machine.clock) == pytest.approx({6: 1.06, 3: 1.03, 1: 1.01})
    assert not machine.held


def test_a_slow_machine_is_measured_no_longer_than_a_size_beyond_the_time_allowed() -> None:
    machine = Machine()
    assert list(measure(machine, slots=64, seconds=10, clock=machine.clock)) == [64, 32]
    assert machine.now < 10 + 4 * 1.64
    assert not machine.held


def test_a_real_model_is_measured_and_holds_nothing_afterwards(tmp_path: Path) -> None:
    runner: Runner = load(fake_model.build(tmp_path))
    assert list(measure(runner, slots=4, seconds=60)) == [4, 2, 1]
    assert runner.bytes_held() == 0
