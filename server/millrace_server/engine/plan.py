"""What is computed in one step: the words in which the scheduler tells it to the model runner. No torch."""

from dataclasses import dataclass
from typing import NamedTuple

from millrace_server.engine.sequence import Sequence


class Stages(NamedTuple):
    """Those from `begin` up to `end`, out of all that a chunk needs."""

    begin: int
    end: int
    all: int


WHOLE = Stages(0, 1, 1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of a sequence from position `start`, computed in one step, or in several, a few stages in each."""

    sequence: Sequence
    start: int
    length: int
    reuse: tuple[bytes, ...] = ()
    """Stored blocks with which the sequence begins; set in its first chunk, which starts where they end."""
    keep: tuple[tuple[int, bytes], ...] = ()
    """Index and key of the blocks that this chunk completes, to be stored."""
    stages: Stages = WHOLE
    """The ones of this step."""

    @property
    def generates(self) -> bool:
        """Whether it is the newest token of an answer, and not a part of a prompt."""
        return self.length == 1 and self.start >= len(self.sequence.request.prompt)

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the sequence's end, so that the next token can be sampled."""
        return self.is_last_part and self.end == len(self.sequence.tokens)

    @property
    def is_last_part(self) -> bool:
        """Whether this step completes the chunk."""
        return self.stages.end == self.stages.all

    @property
    def work(self) -> float:
        """Of this step, in tokens."""
        return self.length * (self.stages.end - self.stages.begin) / self.stages.all


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step. First the memory of the expired and the preempted sequences and of the distrusted blocks is released, then the chunks are
    computed, decoding ones first, and then the forgotten blocks are dropped (chunks of this very step may reuse them)."""

    chunks: tuple[Chunk, ...] = ()
    expired: tuple[Sequence, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    distrusted: tuple[bytes, ...] = ()
    forgotten: tuple[bytes, ...] = ()
    wake_at: float | None = None
    """Set when requests wait for company: schedule again then, or when another request arrives."""
