"""Who runs in the next step, and how much of each: pure decisions. No torch, no thread, no clock (`now` is an argument).

Every step has one budget of tokens. Sequences that generate come first, one token each; the rest goes to prompts, in chunks. A prompt
that takes more than a step yields to those who generate, so that they hardly notice it: a step computes a few tokens of it, or a few
stages of a chunk where the runner can divide one. Requests join at every step and leave at the end of one. Memory is promised to
nobody: when the running ones outgrow it, the one that ranks last gives its place up and is computed again later.
"""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace

from millrace_server.engine.company import Company
from millrace_server.engine.messages import Output
from millrace_server.engine.plan import Chunk, Plan, Stages
from millrace_server.engine.prefixes import BLOCK_TOKENS, PrefixIndex
from millrace_server.engine.sequence import INVALID_TOKEN, Choice, Sequence
from millrace_server.engine.share import LongPromptShare
from millrace_server.engine.waiting import WaitingQueue, rank

RECOVERY_STEPS = 32
"""Steps that must go well before one more sequence may run again."""
ROOM_TO_GROW = 64
"""Tokens that must be free beyond a sequence's present ones when it is admitted: it shall not be preempted at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    slots: int
    """Sequences that run at once."""
    tokens_per_step: int
    """Tokens computed per step, at least one per slot."""
    kv_tokens: int
    """Tokens that the KV cache may hold, in the units of `reserve`. The longest sequence must fit."""
    prefix_tokens: int
    """Of these, at most so many for beginnings that are kept for reuse; they make way for running sequences."""
    company_seconds: float
    """How long an idle engine waits for company at most."""


class Scheduler:
    """The queue and the running batch.

    `reserve(tokens)` says how much of `kv_tokens` a sequence of so many tokens occupies; `share`, how much of a long prompt a step may
    compute while others generate.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        reserve: Callable[[int], int],
        share: LongPromptShare,
        eos_token_ids: Iterable[int] = (),
        revision: str = "",
    ) -> None:
        if limits.tokens_per_step < limits.slots:
            raise ValueError(f"tokens_per_step={limits.tokens_per_step} cannot give each of {limits.slots} slots a token")
        self.limits = limits
        self.cap = limits.slots
        """Sequences that may run at once now: the slots, or fewer after memory ran out."""
        self.preemptions = self.prefix_queries = self.prefix_hits = 0
        """How often somebody had to leave; tokens of prompts looked up among the stored blocks, and found."""
        self._good_steps = 0
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.prefixes = PrefixIndex(revision=revision)
        self._begun: dict[Sequence, Chunk] = {}
        """The last part of each chunk that is not complete."""
        self._distrusted: tuple[bytes, ...] = ()
        self._reserve = reserve
        self._share = share
        self._eos_token_ids = frozenset(eos_token_ids)
        self._company = Company(limits.company_seconds)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    @property
    def occupied(self) -> int:
        """KV tokens of the running sequences, as long as they are now."""
        return sum(self._reserve(len(sequence.tokens)) for sequence in self.running)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that they take."""
        return self.occupied / self.limits.kv_tokens

    def add(self, sequence: Sequence, *, now: float) -> None:
        self._company.arrived(now, idle=self.is_idle)
        self.waiting.add(sequence)

    def cancel(self, request_id: str) -> Sequence | None:
        """Forget a request at once, wherever it is. None when it has already ended."""
        running = (sequence for sequence in self.running if sequence.request.request_id == request_id)
        found = next(running, None) or self.waiting.find(request_id)
        if found:
            self._remove(found)
        return found

    def schedule(self, *, now: float) -> Plan:
        """Decide the next step. Its chunks are then computed and handed to `commit` or `fail`; those that are not, come again."""
        expired = tuple(sequence for sequence in (*self.running, *self.waiting) if sequence.request.deadline <= now)
        for sequence in expired:
            sequence.finish_reason = "deadline"
            self._remove(sequence)
        distrusted, self._distrusted = self._distrusted, ()
        if not self.running and self.waiting:
            wake_at = self._company.wait_until(now, waiting=min(len(self.waiting), self.cap))
            if wake_at is not None and len(self.waiting) < self.cap:
                return Plan(expired=expired, distrusted=distrusted, wake_at=wake_at)
        preempted = tuple(self._preempt())
        chunks = tuple(self._chunks())
        free = self.limits.kv_tokens - self.occupied
        forgotten = self.prefixes.shrink(min(self.limits.prefix_tokens, free))
        return Plan(chunks=chunks, expired=expired, preempted=preempted, distrusted=distrusted, forgotten=forgotten)

    def commit(self, chunks: Iterable[Chunk], choices: Ordered[Choice]) -> list[Output]:
        """Record computed chunks. `choices` holds one per chunk that samples, in the same order."""
        sampling: list[Sequence] = []
        for chunk in chunks:
            if chunk.samples:
                sampling.append(chunk.sequence)
            if not chunk.is_last_part:
                self._begun[chunk.sequence] = chunk
                continue
            self._begun.pop(chunk.sequence, None)
            chunk.sequence.computed = chunk.end
            for _, key in chunk.keep:
                self.prefixes.store(key)
        return [self._accept(sequence, choice) for sequence, choice in zip(sampling, choices, strict=True)]

    def observe(self, chunks: Iterable[Chunk], *, seconds: float) -> None:
        """Learn from how long the chunks of a whole step took together, and from its having gone well."""
        self._good_steps += 1
        if self.cap < self.limits.slots and self._good_steps % RECOVERY_STEPS == 0:
            self.cap += 1
        generating = other_tokens = 0
        long_tokens = 0.0
        for chunk in chunks:
            if chunk.generates:
                generating += 1
            elif chunk.sequence.is_long:
                long_tokens += chunk.work
            else:
                other_tokens += chunk.length
        self._share.observe(generating=generating, long_tokens=long_tokens, other_tokens=other_tokens, seconds=seconds)

    def fail(self, sequence: Sequence, error: str) -> Output:
        """End a sequence that could not be computed."""
        sequence.finish_reason = "error"
        self._remove(sequence)
        return Output(request_id=sequence.request.request_id, tokens=[], finish_reason="error", error=error)

    def start_over(self, *, cap: int | None = None) -> None:
        """The KV cache was lost: every running sequence waits to be computed again, at first at most `cap` of them at once."""
        self.cap = self.cap if cap is None else cap
        self._good_steps = 0
        for sequence in sorted(self.running, key=rank, reverse=True):
            self._give_up_place(sequence)
        self.prefixes.clear()
        self._distrusted = ()

    def _accept(self, sequence: Sequence, choice: Choice) -> Output:
        if choice.token == INVALID_TOKEN and sequence.mask and sequence.mask.failure:
            return self.fail(sequence, _no_further(sequence.mask.failure))
        if choice.token == INVALID_TOKEN:
            self._distrusted += self.prefixes.discard(sequence)
            why = (
                "no token can be chosen: the model's output is not a number (NaN), or logit_bias, penalties or the mask forbid every token"
            )
            return self.fail(sequence, why)
        try:
            belongs = sequence.accept(choice.token, self._eos_token_ids)
        except Exception as error:  # noqa: BLE001 - a mask is somebody else's code, and the request is its own
            return self.fail(sequence, _no_further(f"{type(error).__name__}: {error}"))
        if sequence.finish_reason:
            self._remove(sequence)
        return Output(
            request_id=sequence.request.request_id,
            tokens=[choice.token] if belongs else [],
            logprobs=[choice.logprobs] if belongs and choice.logprobs else [],
            finish_reason=sequence.finish_reason,
        )

    def _remove(self, sequence: Sequence) -> None:
        self._begun.pop(sequence, None)
        if sequence in self.running:
            self.running.remove(sequence)
            self.prefixes.withdraw(sequence)
        else:
            self.waiting.remove(sequence)

    def _preempt(self) -> Iterator[Sequence]:
        """Those that must leave so that the others fit. The one that ranks first never does: it always comes to its end."""
        while len(self.running) > 1 and self.occupied > self.limits.kv_tokens:
            last = max(reversed(self.running), key=rank)  # of equals the one that was admitted last
            self._give_up_place(last)
            self.preemptions += 1
            yield last

    def _give_up_place(self, sequence: Sequence) -> None:
        self._remove(sequence)
        sequence.computed = 0
        self.waiting.put_back(sequence)

    def _chunks(self) -> Iterator[Chunk]:
        budget = self.limits.tokens_per_step
        prompts: list[Sequence] = []
        for running in self.running:
            if running.computed and running.pending == 1 and running not in self._begun:
                yield self._chunk(running, 1)
                budget -= 1
            else:
                prompts.append(running)
        yields = len(prompts) < len(self.running)
        for_long = self._share.length if yields else budget
        candidates = self._each_prompt(prompts)
        while budget > 0 and (sequence := next(candidates, None)):
            chunk = self._next_chunk(sequence, budget, for_long)
            if chunk and chunk.length <= budget:
                budget -= chunk.length
                if sequence.is_long and yields:
                    chunk, for_long = self._part(chunk), 0
                yield chunk

    def _next_chunk(self, sequence: Sequence, budget: int, for_long: int) -> Chunk | None:
        """Of a prompt, within the budget, and of `for_long` tokens at most if it is a long one, or what is left of one that was begun. None
        when it must wait.
        """
        begun = self._begun.get(sequence)
        if begun:
            return (
                replace(begun, reuse=(), stages=begun.stages._replace(begin=begun.stages.end, end=begun.stages.all)) if for_long else None
            )
        if not sequence.computed and self._is_worth_waiting(sequence):
            return None
        reuse = () if sequence.computed else self.prefixes.reuse(sequence)
        left = sequence.pending - len(reuse) * BLOCK_TOKENS
        if not sequence.computed:
            sequence.is_long = left > self.limits.tokens_per_step
        length = min(left, budget, for_long if sequence.is_long else budget)
        if length == 0:
            return None
        if not sequence.computed:
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += len(reuse) * BLOCK_TOKENS
        return self._chunk(sequence, length, reuse)

    def _part(self, chunk: Chunk) -> Chunk:
        """No more than a long prompt's share of it."""
        begin = chunk.stages.begin
        end = begin + self._share.stages_of(chunk.length)
        return chunk if end >= self._share.stages else replace(chunk, stages=Stages(begin, end, self._share.stages))

    def _is_worth_waiting(self, sequence: Sequence) -> bool:
        """Whether another is just computing what this one needs next, and will not be slower than this one by itself."""
        leader = self.prefixes.awaited(sequence)
        return leader is not None and (not leader.is_long or len(sequence.tokens) > self.limits.tokens_per_step)

    def _each_prompt(self, running: list[Sequence]) -> Iterator[Sequence]:
        yield from running
        while self._admit():
            yield self.running[-1]

    def _chunk(self, sequence: Sequence, length: int, reuse: tuple[bytes, ...] = ()) -> Chunk:
        if not self.limits.prefix_tokens:
            return Chunk(sequence, sequence.computed, length)
        if not sequence.computed:
            self.prefixes.announce(sequence)
        start = sequence.computed + len(reuse) * BLOCK_TOKENS
        keep = self.prefixes.completed(sequence, start=start, end=start + length)
        return Chunk(sequence, start, length, reuse, keep)

    def _admit(self) -> bool:
        """Move the head of the queue into the batch. It is never overtaken: a large request is not starved by small ones."""
        head = self.waiting.head()
        if head is None or len(self.running) >= self.cap:
            return False
        soon = min(head.final_length, len(head.tokens) + ROOM_TO_GROW)
        if self.running and self.occupied + self._reserve(soon) > self.limits.kv_tokens:
            return False
        self.running.append(self.waiting.pop())
        return True


def _no_further(why: str) -> str:
    return f"the structured output cannot go on ({why})"
