"""The step loop: takes what arrived, lets the scheduler decide, computes, and says what came out. One Step message per step.

It never dies silently: an error in a step ends the request that causes it and the loop goes on; when not even a harmless token can be
computed, DeviceLost ends the process; and silence is impossible because an idle loop speaks every second.
"""

import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from millrace_server.engine.compiling import Compiled, Compiler, Inbox
from millrace_server.engine.failure import DeviceLost, StepOutOfMemory
from millrace_server.engine.isolation import run_isolated
from millrace_server.engine.messages import MOST_LISTED_TOKENS, MOST_LOGPROBS, Cancel, Output, Step, Submit
from millrace_server.engine.plan import Chunk, Plan
from millrace_server.engine.quarantine import Quarantine
from millrace_server.engine.scheduler import Scheduler
from millrace_server.engine.sequence import INVALID_TOKEN, Choice, Sequence, TokenMask

HEARTBEAT_SECONDS = 1.0

log = logging.getLogger(__name__)


class Runner(Protocol):
    """What the loop needs of a model."""

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        """The choice of each chunk that samples."""

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, also one that was never run."""

    def forget(self, blocks: Iterable[bytes]) -> None:
        """Forget stored blocks, also ones that were never stored."""

    def reset(self) -> None:
        """Forget everything: all sequences are computed anew."""

    def is_sound(self) -> bool:
        """Whether a harmless token of its own gives numbers. May raise as `run` does."""


class Loop:
    """Owns the scheduler and the runner. `inbox` may be filled by any thread; everything else happens in the caller of `step`."""

    def __init__(  # noqa: PLR0913 - the parts of an engine
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        inbox: Inbox,
        emit: Callable[[Step], None],
        max_length: int,
        vocabulary: int,
        compiler: Compiler | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self._inbox = inbox
        self._scheduler = scheduler
        self._runner = runner
        self._emit = emit
        self._max_length = max_length
        self._vocabulary = vocabulary
        self._compiler = compiler
        self._clock = clock
        self._draw_seed = draw_seed
        self._quarantine = Quarantine()
        self._wake_at: float | None = None
        self._spoke_at = clock()
        self._spoken = (0, 0)

    def step(self) -> None:
        """One turn: waits only while there is nothing to compute."""
        outputs = self._take_inbox()
        plan = self._scheduler.schedule(now=self._clock())
        outputs += [_expire(sequence) for sequence in plan.expired]
        outputs += self._compute(plan)
        self._release(plan)
        self._wake_at = plan.wake_at
        self._speak(outputs, worked=bool(plan.chunks))

    def _take_inbox(self) -> list[Output]:
        refused: list[Output] = []
        patience = self._patience()
        while True:
            try:
                message = self._inbox.get(timeout=patience) if patience > 0 else self._inbox.get_nowait()
            except queue.Empty:
                return refused
            patience = 0.0
            if isinstance(message, Cancel):
                if self._compiler is not None:
                    self._compiler.forget(message.request_id)
                sequence = self._scheduler.cancel(message.request_id)
                if sequence:
                    self._runner.release(sequence)
            elif isinstance(message, Compiled):
                refused += self._take_compiled(message)
            elif reason := self._objection(message):
                refused.append(_refusal(message, reason))
            elif self._quarantine.is_quarantined(message, now=self._clock()):
                why = "this request has failed its step repeatedly and is refused for some minutes; change the prompt"
                refused.append(Output(request_id=message.request_id, tokens=[], finish_reason="quarantined", error=why))
            elif self._compiler is not None and message.sampling.schema is not None:
                self._compiler.begin(message, message.sampling.schema)
            else:
                self._add(message)

    def _take_compiled(self, compiled: Compiled) -> list[Output]:
        """Queue the request, or return its refusal."""
        if self._compiler is None or not self._compiler.forget(compiled.request.request_id):
            return []  # cancelled meanwhile
        if isinstance(compiled.mask, str):
            return [_refusal(compiled.request, compiled.mask)]
        self._add(compiled.request, compiled.mask)
        return []

    def _add(self, request: Submit, mask: TokenMask | None = None) -> None:
        seed = self._draw_seed() if request.sampling.seed is None else request.sampling.seed
        now = self._clock()
        self._scheduler.add(Sequence(request, seed=seed, arrived=now, mask=mask), now=now)

    def _patience(self) -> float:
        """Seconds to wait for a message before the next step."""
        if self._scheduler.running or (self._scheduler.waiting and self._wake_at is None):
            return 0.0
        until = self._spoke_at + HEARTBEAT_SECONDS
        return max(0.0, (until if self._wake_at is None else min(until, self._wake_at)) - self._clock())

    def _objection(self, request: Submit) -> str | None:
        """Why a request cannot run. The front has checked already; one bad request must not reach a step that others share."""
        if not request.prompt:
            return "the prompt has no tokens"
        if request.max_tokens < 1:
            return f"max_tokens={request.max_tokens} is below 1"
        if len(request.prompt) + request.max_tokens > self._max_length:
            return f"{len(request.prompt)} prompt tokens and max_tokens={request.max_tokens} exceed the limit of {self._max_length} tokens"
        if min(request.prompt) < 0 or max(request.prompt) >= self._vocabulary:
            return f"a prompt token is outside the vocabulary of {self._vocabulary}"
        if not 0 <= (request.sampling.logprobs or 0) <= MOST_LOGPROBS:
            return f"logprobs={request.sampling.logprobs} is not within 0 and {MOST_LOGPROBS}"
        if request.sampling.schema is not None and self._compiler is None:
            return "this model cannot follow a schema"
        if max(len(request.stop_token_ids), len(request.sampling.logit_bias)) > MOST_LISTED_TOKENS:
            return f"stop_token_ids and logit_bias may name {MOST_LISTED_TOKENS} tokens each at most"
        return None

    def _compute(self, plan: Plan) -> list[Output]:
        for sequence in plan.preempted:
            self._runner.release(sequence)
        if plan.distrusted:
            self._runner.forget(plan.distrusted)
        if not plan.chunks:
            return []
        began = self._clock()
        try:
            outcome = run_isolated(self._runner.run, plan.chunks)
        except StepOutOfMemory as error:
            return self._shrink(plan, error)
        if len(outcome.computed) == len(plan.chunks):
            self._scheduler.observe(plan.chunks, seconds=self._clock() - began)
        outputs = self._scheduler.commit(outcome.computed, outcome.choices)
        outputs += [self._blame(chunk, error) for chunk, error in outcome.blamed]
        if not outcome.computed and len(plan.chunks) > 1:
            log.error("a step of %d requests fails with whomever it is computed: the KV cache is built anew", len(plan.chunks))
            self._start_over(cap=None)
        if all(choice.token == INVALID_TOKEN for choice in outcome.choices) and (outcome.choices or outcome.blamed):
            self._require_soundness()
        return outputs

    def _blame(self, chunk: Chunk, error: Exception) -> Output:
        log.error("a request of %d tokens fails its step", len(chunk.sequence.tokens), exc_info=error)
        self._quarantine.strike(chunk.sequence.request, now=self._clock())
        return self._scheduler.fail(chunk.sequence, f"the engine failed while computing this request ({type(error).__name__})")

    def _shrink(self, plan: Plan, error: StepOutOfMemory) -> list[Output]:
        """Half as many at once, and everybody anew. Who does not fit even alone ends, and then the others are not to blame."""
        outputs: list[Output] = []
        cap = len(plan.chunks) // 2
        if len(plan.chunks) == 1:
            why = "the device has not enough memory for this request alone; send a shorter prompt or lower max_tokens"
            outputs.append(self._scheduler.fail(plan.chunks[0].sequence, why))
            cap = self._scheduler.limits.slots
        self._start_over(cap=cap)
        log.error(
            "out of memory in a step of %d requests: at most %d run at once from now on (%s)", len(plan.chunks), self._scheduler.cap, error
        )
        return outputs

    def _start_over(self, *, cap: int | None) -> None:
        self._runner.reset()
        self._scheduler.start_over(cap=cap)

    def _require_soundness(self) -> None:
        """A whole step came to nothing: its requests may be at fault, or the weights. Raises DeviceLost."""
        try:
            is_sound = self._runner.is_sound()
        except StepOutOfMemory:
            self._start_over(cap=None)
            return  # no verdict: there was no room to find out
        except Exception as error:
            raise DeviceLost(f"not even one harmless token can be computed: {error}") from error
        if not is_sound:
            raise DeviceLost("even a harmless token gives NaN: the weights in memory are broken")

    def _release(self, plan: Plan) -> None:
        for sequence in (*plan.expired, *(chunk.sequence for chunk in plan.chunks)):
            if sequence.finish_reason:
                self._runner.release(sequence)
        if plan.forgotten:
            self._runner.forget(plan.forgotten)

    def _speak(self, outputs: list[Output], *, worked: bool) -> None:
        now, running, waiting = self._clock(), len(self._scheduler.running), len(self._scheduler.waiting)
        waiting += self._compiler.pending if self._compiler is not None else 0
        news = worked or outputs or self._spoken != (running, waiting)
        if news or now >= self._spoke_at + HEARTBEAT_SECONDS:
            self._spoke_at, self._spoken = now, (running, waiting)
            scheduler = self._scheduler
            self._emit(
                Step(
                    outputs=outputs,
                    running=running,
                    waiting=waiting,
                    slots=scheduler.cap,
                    kv_usage=scheduler.kv_usage,
                    preemptions=scheduler.preemptions,
                    prefix_queries=scheduler.prefix_queries,
                    prefix_hits=scheduler.prefix_hits,
                )
            )


def _refusal(request: Submit, why: str) -> Output:
    return Output(request_id=request.request_id, tokens=[], finish_reason="error", error=why)


def _expire(sequence: Sequence) -> Output:
    return Output(request_id=sequence.request.request_id, tokens=[], finish_reason="deadline")
