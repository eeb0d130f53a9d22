"""What this machine gains by batching, measured once after loading, with the very steps that requests take.

More sequences at once than the machine gains by only make each of them slower. How many that are depends on processor and model so much
that no constant is right.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from millrace_server.engine.messages import Submit
from millrace_server.engine.scheduler import Chunk
from millrace_server.engine.sequence import Choice, Sequence

STEPS = 4
"""Per size; the fastest counts, because whatever disturbs a step makes it slower."""
WORTHWHILE = 0.95
"""Share of the best throughput that the running cap must reach."""


class Runner(Protocol):
    """What is measured."""

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]: ...

    def release(self, sequence: Sequence) -> None: ...


def running_cap(seconds: Mapping[int, float], *, slots: int) -> int:
    """The fewest sequences at once, of those measured, with nearly the best throughput; all slots when nothing was measured."""
    rates = {size: size / taken for size, taken in seconds.items()}
    return min((size for size, rate in rates.items() if rate >= WORTHWHILE * max(rates.values())), default=slots)


def measure(runner: Runner, *, slots: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> dict[int, float]:
    """Seconds per step of slots, slots / 2, … 1 sequences that generate. No size is begun after so many seconds."""
    end = clock() + seconds
    sequences = [_sequence() for _ in range(slots)]
    measured: dict[int, float] = {}
    try:
        _advance(runner, sequences)
        while sequences and clock() < end:
            measured[len(sequences)] = min(_seconds(runner, sequences, clock) for _ in range(STEPS))
            for sequence in sequences[len(sequences) // 2 :]:
                runner.release(sequence)
            del sequences[len(sequences) // 2 :]
    finally:
        for sequence in sequences:
            runner.release(sequence)
    return measured


def _seconds(runner: Runner, sequences: list[Sequence], clock: Callable[[], float]) -> float:
    began = clock()
    _advance(runner, sequences)
    return clock() - began


def _advance(runner: Runner, sequences: list[Sequence]) -> None:
    choices = runner.run(tuple(Chunk(sequence, sequence.computed, sequence.pending) for sequence in sequences))
    for sequence, choice in zip(sequences, choices, strict=True):
        sequence.computed = len(sequence.tokens)
        sequence.tokens.append(max(0, choice.token))


def _sequence() -> Sequence:
    return Sequence(Submit(request_id="", prompt=[0], max_tokens=1, deadline=0), seed=0, arrived=0)
