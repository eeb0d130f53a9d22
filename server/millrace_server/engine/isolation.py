"""A step that fails is cut in halves until it is known which request it fails by; the others are computed all the same."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from millrace_server.engine.failure import DeviceLost, StepOutOfMemory
from millrace_server.engine.plan import Chunk
from millrace_server.engine.sequence import Choice

Run = Callable[[tuple[Chunk, ...]], list[Choice]]


@dataclass(slots=True)
class Outcome:
    """What became of a step's chunks. Those that are neither computed nor blamed may be tried again."""

    computed: list[Chunk] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    """One for each computed chunk that samples, in the same order."""
    blamed: list[tuple[Chunk, Exception]] = field(default_factory=list)


def run_isolated(run: Run, chunks: tuple[Chunk, ...]) -> Outcome:
    """Compute the chunks with at most 2·log2(n) + 1 runs: enough to find one culprit among n, and to compute all others.

    Raises StepOutOfMemory and DeviceLost, which are nobody's fault.
    """
    outcome = Outcome()
    parts = [chunks]
    for _ in range(2 * math.ceil(math.log2(len(chunks))) + 1):
        if not parts:
            break
        part = parts.pop()
        try:
            choices = run(part)
        except (StepOutOfMemory, DeviceLost):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises; it is told to the request, or blamed on the state
            if len(part) == 1:
                outcome.blamed.append((part[0], error))
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
        else:
            outcome.computed += part
            outcome.choices += choices
    return outcome
