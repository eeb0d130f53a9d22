"""What this machine gains by batching, measured once after loading, with the very steps that requests take.

More sequences at once than the machine gains by only make each of them slower; and a long prompt shall take no more of a step than
those who generate take themselves. Both depend on processor and model so much that no constant is right.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from millrace_server.engine.messages import Submit
from millrace_server.engine.scheduler import Chunk
from millrace_server.engine.sequence import Choice, Sequence

STEPS = 4
"""Per size; the fastest counts, because whatever disturbs a step makes it slower."""
WORTHWHILE = 0.95
"""Share of the best throughput that the running cap must reach."""
SMALLEST_PROMPT_SHARE = 16
"""A long prompt gets at least so many tokens of a step: fewer cost nearly as much time."""


class Runner(Protocol):
    """What is measured."""

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]: ...

    def release(self, sequence: Sequence) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds per step, by the number of sequences that generate, and by the tokens of a prompt. Empty: not measured."""

    generating: dict[int, float] = field(default_factory=dict)
    prompt: dict[int, float] = field(default_factory=dict)

    def cap(self, slots: int) -> int:
        """The fewest sequences at once, of those measured, with nearly the best throughput; all slots when nothing was measured."""
        rates = {size: size / seconds for size, seconds in self.generating.items()}
        return min((size for size, rate in rates.items() if rate >= WORTHWHILE * max(rates.values())), default=slots)

    def beside(self, generating: int) -> int:
        """Tokens of a prompt that take no longer than a step of so many sequences does, so that beside them it takes twice as long."""
        nearest = min(self.generating, key=lambda size: abs(size - generating), default=None)
        allowed = self.generating[nearest] if nearest is not None else 0.0
        return max((tokens for tokens, seconds in self.prompt.items() if seconds <= allowed), default=SMALLEST_PROMPT_SHARE)


def measure(runner: Runner, *, slots: int, longest_prompt: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> Pace:
    """Take steps of slots, slots / 2, … 1 sequences, then prompts of 16, 32, … tokens, for about so many seconds in all.

    A slow machine is measured in part only: the largest steps come first, and the shortest prompts.
    """
    end = clock() + seconds
    generating = _measure_generating(runner, slots, clock, end)
    prompt: dict[int, float] = {}
    tokens = SMALLEST_PROMPT_SHARE
    while generating and tokens <= longest_prompt and clock() < end and max(prompt.values(), default=0.0) <= max(generating.values()):
        prompt[tokens] = min(_prompt_seconds(runner, tokens, clock) for _ in range(2))
        tokens *= 2
    return Pace(generating=generating, prompt=prompt)


def _measure_generating(runner: Runner, slots: int, clock: Callable[[], float], end: float) -> dict[int, float]:
    sequences = [_sequence(tokens=1) for _ in range(slots)]
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


def _prompt_seconds(runner: Runner, tokens: int, clock: Callable[[], float]) -> float:
    sequence = _sequence(tokens=tokens)
    try:
        return _seconds(runner, [sequence], clock)
    finally:
        runner.release(sequence)


def _seconds(runner: Runner, sequences: list[Sequence], clock: Callable[[], float]) -> float:
    began = clock()
    _advance(runner, sequences)
    return clock() - began


def _advance(runner: Runner, sequences: list[Sequence]) -> None:
    choices = runner.run(tuple(Chunk(sequence, sequence.computed, sequence.pending) for sequence in sequences))
    for sequence, choice in zip(sequences, choices, strict=True):
        sequence.computed = len(sequence.tokens)
        sequence.tokens.append(max(0, choice.token))


def _sequence(*, tokens: int) -> Sequence:
    return Sequence(Submit(request_id="", prompt=[0] * tokens, max_tokens=1, deadline=0), seed=0, arrived=0)
