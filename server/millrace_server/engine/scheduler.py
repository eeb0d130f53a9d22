"""Who runs in the next step, and how much of each: pure decisions. No torch, no thread, no clock (`now` is an argument).

Every step has one budget of tokens. Sequences that generate come first, one token each, so that a long prompt never stops them;
the rest of the budget goes to prompts in order of arrival, in chunks. Requests join at every step and leave at the end of one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

from millrace_server.engine.messages import Output
from millrace_server.engine.sequence import Sequence

INVALID_TOKEN = -1
"""What the runner answers instead of a token when a row's logits are not numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    slots: int
    """Sequences that run at once."""
    tokens_per_step: int
    """Tokens computed per step, at least one per slot."""
    kv_tokens: int
    """Tokens that the KV cache may hold, in the units of `reserve`."""
    company_seconds: float
    """How long an idle engine waits for company at most."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of a sequence from position `start`, computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the sequence's end, so that the next token can be sampled."""
        return self.end == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step: the chunks to compute, decoding ones first, and the sequences whose deadline passed."""

    chunks: tuple[Chunk, ...] = ()
    expired: tuple[Sequence, ...] = ()
    wake_at: float | None = None
    """Set when requests wait for company: schedule again then, or when another request arrives."""


class Scheduler:
    """The queue and the running batch.

    `reserve(tokens)` says how much of `kv_tokens` a sequence of that final length may come to occupy. It is reserved at admission,
    so that a running sequence can always go on.
    """

    def __init__(self, limits: Limits, *, reserve: Callable[[int], int], eos_token_ids: Iterable[int] = ()) -> None:
        if limits.tokens_per_step < limits.slots:
            raise ValueError(f"tokens_per_step={limits.tokens_per_step} cannot give each of {limits.slots} slots a token")
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.reserved = 0
        self._reserve = reserve
        self._eos_token_ids = frozenset(eos_token_ids)
        self._company = _Company(limits.company_seconds)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence, *, now: float) -> None:
        self._company.arrived(now, idle=self.is_idle)
        self.waiting.append(sequence)

    def cancel(self, request_id: str) -> Sequence | None:
        """Forget a request at once, wherever it is. None when it has already ended."""
        for sequence in (*self.running, *self.waiting):
            if sequence.request.request_id == request_id:
                self._remove(sequence)
                return sequence
        return None

    def schedule(self, *, now: float) -> Plan:
        """Decide the next step. The chunks must then be computed and handed to `commit` or `fail`."""
        expired = tuple(sequence for sequence in (*self.running, *self.waiting) if sequence.request.deadline <= now)
        for sequence in expired:
            sequence.finish_reason = "deadline"
            self._remove(sequence)
        if not self.running and self.waiting:
            wake_at = self._company.wait_until(now, waiting=min(len(self.waiting), self.limits.slots))
            if wake_at is not None and len(self.waiting) < self.limits.slots:
                return Plan(expired=expired, wake_at=wake_at)
        return Plan(chunks=tuple(self._chunks()), expired=expired)

    def commit(self, plan: Plan, tokens: Ordered[int]) -> list[Output]:
        """Record a computed step. `tokens` holds one token, or INVALID_TOKEN, per chunk that samples, in the plan's order."""
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.end
        return [self._accept(sequence, token) for sequence, token in zip(sampling, tokens, strict=True)]

    def fail(self, plan: Plan, error: str) -> list[Output]:
        """End every sequence of a step that could not be computed."""
        return [self._end_with_error(chunk.sequence, error) for chunk in plan.chunks]

    def _accept(self, sequence: Sequence, token: int) -> Output:
        if token == INVALID_TOKEN:
            return self._end_with_error(sequence, "the model's output for this request is not a number (NaN or infinite logits)")
        belongs = sequence.accept(token, self._eos_token_ids)
        if sequence.finish_reason:
            self._remove(sequence)
        return Output(request_id=sequence.request.request_id, tokens=[token] if belongs else [], finish_reason=sequence.finish_reason)

    def _end_with_error(self, sequence: Sequence, error: str) -> Output:
        sequence.finish_reason = "error"
        self._remove(sequence)
        return Output(request_id=sequence.request.request_id, tokens=[], finish_reason="error", error=error)

    def _remove(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
            self.reserved -= self._reserve(sequence.final_length)
        else:
            self.waiting.remove(sequence)

    def _chunks(self) -> Iterator[Chunk]:
        budget = self.limits.tokens_per_step
        prompts: list[Sequence] = []
        for sequence in self.running:
            if sequence.pending == 1:
                yield Chunk(sequence, sequence.computed, 1)
                budget -= 1
            else:
                prompts.append(sequence)
        for sequence in prompts:
            if budget > 0:
                chunk = Chunk(sequence, sequence.computed, min(sequence.pending, budget))
                budget -= chunk.length
                yield chunk
        while budget > 0 and self._admit():
            sequence = self.running[-1]
            chunk = Chunk(sequence, 0, min(sequence.pending, budget))
            budget -= chunk.length
            yield chunk

    def _admit(self) -> bool:
        """Move the first waiting sequence into the batch. It is never overtaken: a large request is not starved by small ones."""
        if not self.waiting or len(self.running) >= self.limits.slots:
            return False
        needed = self._reserve(self.waiting[0].final_length)
        if self.reserved + needed > self.limits.kv_tokens:
            return False
        self.reserved += needed
        self.running.append(self.waiting.popleft())
        return True


class _Company:
    """How many requests an idle engine expects to arrive together.

    As many as came within the timeout the last time that it was idle: clients who send in waves are batched from their first step,
    while a lone client after lone clients never waits. A wrong guess costs one timeout and corrects itself.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._first_arrived = float("-inf")
        self._wave = 1
        self._expected = 1

    def arrived(self, now: float, *, idle: bool) -> None:
        if idle:
            self._expected, self._wave, self._first_arrived = self._wave, 1, now
        elif now < self._first_arrived + self._timeout:
            self._wave += 1

    def wait_until(self, now: float, *, waiting: int) -> float | None:
        """When to start at the latest; None: now."""
        start_at = self._first_arrived + self._timeout
        return None if waiting >= self._expected or now >= start_at else start_at
