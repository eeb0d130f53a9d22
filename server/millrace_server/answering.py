"""All answers to one question while the engine writes them: merged into one sequence of pieces, and counted until they end."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from millrace_server.admission import Admission
from millrace_server.answer import Answer, WrittenToken
from millrace_server.engine.handle import EngineHandle
from millrace_server.engine.messages import Output, Submit
from millrace_server.engine.stream import EngineUnavailable, QuarantinedRequest, RequestStream
from millrace_server.errors import DeadlinePassed, EngineError, EngineGone, RequestQuarantined
from millrace_server.metrics import Metrics
from millrace_server.question import Call

ENGINE_GRACE_SECONDS = 2.0
"""The engine itself ends a request at its deadline; when it hangs, the front does so this much later."""
ENGINE_RETRY_SECONDS = 5
"""What a client waits for an engine that loads or starts again."""


class Source(StrEnum):
    """Where answers come from."""

    hit = "hit"
    """The cache, or the work for an equal question that was there before."""
    miss = "miss"
    """The model, and the cache may have them from now on."""
    bypass = "bypass"
    """The model, and the cache is not to know."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one answer."""

    index: int
    """Which answer: the copies of the first prompt, then those of the second, and so on."""
    text: str
    tokens: list[WrittenToken]
    """Only when log probabilities were asked for."""
    finish_reason: str | None
    """stop or length with the answer's last piece."""

    def says_something(self) -> bool:
        """Not when all its text is held back, because a character or perhaps a stop string is not complete."""
        return bool(self.text or self.tokens or self.finish_reason)


@dataclass
class Whole:
    """One answer, put together."""

    text: str = ""
    tokens: list[WrittenToken] = field(default_factory=list)
    finish_reason: str = ""

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason or ""


class Answers(Protocol):
    """All answers to one question, wherever they come from: piece by piece, or whole. Every way to fail is a RequestError."""

    @property
    def source(self) -> Source: ...

    @property
    def prompt_tokens(self) -> int:
        """Of every prompt, once; when the answers are complete."""

    @property
    def tokens(self) -> int:
        """Of all answers, when they are complete."""

    async def whole(self) -> list[Whole]: ...

    def __aiter__(self) -> AsyncIterator[Piece]: ...


class Answering(AsyncIterator[Piece]):
    """Pieces come as fast as they are taken: a slow reader gets longer ones. Every way to fail is a RequestError."""

    def __init__(
        self,
        prompts: Sequence[list[int]],
        requests: Sequence[Submit],
        answers: Sequence[Answer],
        *,
        call: Call,
        engine: EngineHandle,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        """One of `requests` and one of `answers` for each copy of each prompt."""
        self.source = Source.bypass
        self.answers = len(requests)
        self.prompt_tokens = sum(map(len, prompts))
        self._prompts = prompts
        self._requests = requests
        self._answers = answers
        self._call = call
        self._engine = engine
        self._admission = admission
        self._metrics = metrics
        self._working = set(range(len(requests)))
        """Answers that the engine writes."""
        self._unfinished = set(self._working)
        """Answers whose last piece is not out."""
        self._unread = set(range(len(prompts)))
        """Prompts of which no answer has begun."""
        self._untold = set(self._working)
        """Answers of which the metrics do not know how they ended."""
        self._spoke_at: dict[int, float] = {}
        """Monotonic time of each answer's last token."""
        self._arrived: dict[int, list[Output]] = {}
        self._pieces: deque[Piece] = deque()
        self._failure: EngineUnavailable | None = None
        self._something = asyncio.Event()
        self._followers: list[asyncio.Task[None]] = []

    @property
    def tokens(self) -> int:
        """Of all answers so far."""
        return sum(answer.tokens for answer in self._answers)

    def start(self) -> None:
        """Hand the requests to the engine."""
        try:
            for index, request in enumerate(self._requests):
                self._followers.append(asyncio.create_task(self._follow(index, self._engine.submit(request))))
        except EngineUnavailable as error:
            raise EngineGone(str(error), retry_after=ENGINE_RETRY_SECONDS) from error
        except QuarantinedRequest as error:
            raise RequestQuarantined(str(error)) from error

    def read_at_once(self) -> None:
        """Somebody wants the text as it comes, after all."""
        for answer in self._answers:
            answer.read_at_once()

    def late(self, seconds: float) -> DeadlinePassed:
        """For somebody who has waited for so long."""
        wanted = sum(request.max_tokens for request in self._requests)
        return DeadlinePassed(f"the answer was not complete within {seconds:g} s ({self.tokens} of at most {wanted} tokens)")

    def close(self) -> None:
        """Nobody wants the rest: its slots are free at the engine's next step."""
        for follower in self._followers:
            follower.cancel()
        for index in tuple(self._working):
            self._cancel(index)
        for index in tuple(self._untold):
            self._tell_end(index, "abort" if self._failure is None else "error")

    async def whole(self) -> list[Whole]:
        """All answers, when they are complete."""
        wholes = [Whole() for _ in self._requests]
        async for piece in self:
            wholes[piece.index].add(piece)
        return wholes

    async def __anext__(self) -> Piece:
        while not self._pieces:
            if not self._unfinished:
                raise StopAsyncIteration
            await self._wait()
            arrived, self._arrived = self._arrived, {}
            self._pieces.extend(self._piece(index, outputs) for index, outputs in arrived.items() if index in self._unfinished)
        return self._pieces.popleft()

    async def _follow(self, index: int, stream: RequestStream) -> None:
        """Collect one answer's outputs, and count them, whether or not anybody takes the pieces."""
        try:
            async for output in stream:
                self._count(index, len(output.tokens))
                if output.finish_reason:
                    self._leave(index, has_run=output.finish_reason != "deadline")
                self._arrived.setdefault(index, []).append(output)
                self._something.set()
        except EngineUnavailable as error:
            self._failure = error
            self._something.set()

    def _count(self, index: int, tokens: int) -> None:
        """A prompt counts once, with the first token behind it: also when its client leaves before the last."""
        if not tokens:
            return
        now, before = time.monotonic(), self._spoke_at.get(index)
        self._spoke_at[index] = now
        if before is None:
            self._metrics.vllm.first_token.observe(now - self._call.arrived)
        else:
            for _ in range(tokens):
                self._metrics.vllm.between_tokens.observe((now - before) / tokens)
        prompt = index * len(self._prompts) // len(self._requests)
        if prompt in self._unread:
            self._unread.discard(prompt)
            self._metrics.prompt_ran(len(self._prompts[prompt]), tenant=self._call.tenant)
        self._metrics.generated(tokens, tenant=self._call.tenant)
        self._admission.generated(tokens)

    async def _wait(self) -> None:
        """Until there are outputs."""
        if not self._arrived and self._failure is None:
            self._something.clear()
            try:
                async with asyncio.timeout(self._call.deadline + ENGINE_GRACE_SECONDS - time.monotonic()):
                    await self._something.wait()
            except TimeoutError:
                raise self.late(self._call.timeout) from None
        if not self._arrived and self._failure is not None:
            raise EngineGone(str(self._failure), retry_after=ENGINE_RETRY_SECONDS) from self._failure

    def _piece(self, index: int, outputs: list[Output]) -> Piece:
        answer = self._answers[index]
        finish_reason = None
        for output in outputs:
            answer.take(output.tokens, output.logprobs)
            if answer.is_stopped:
                break
            finish_reason = self._checked(index, output)
        if finish_reason:
            answer.finish()
        if answer.is_stopped:
            finish_reason = "stop"
            self._cancel(index)
        if finish_reason:
            self._unfinished.discard(index)
            self._tell_end(index, finish_reason)
            self._metrics.vllm.whole_request.observe(time.monotonic() - self._call.arrived)
        return Piece(index, *answer.news(is_over=finish_reason is not None), finish_reason)

    def _checked(self, index: int, output: Output) -> str | None:
        """The finish reason, when it is a good one."""
        if output.finish_reason in ("error", "quarantined"):
            self._tell_end(index, "error")
        match output.finish_reason:
            case "error":
                raise EngineError(output.error or "the engine could not answer this request")
            case "quarantined":
                raise RequestQuarantined(output.error or "this request is refused for some minutes")
            case "deadline":
                raise self.late(self._call.timeout)
        return output.finish_reason

    def _tell_end(self, index: int, reason: str) -> None:
        if index in self._untold:
            self._untold.discard(index)
            self._metrics.vllm.ended(reason)

    def _cancel(self, index: int) -> None:
        if index in self._working:
            self._engine.cancel(self._requests[index].request_id)
            self._leave(index)

    def _leave(self, index: int, *, has_run: bool = False) -> None:
        """The engine works on this answer no more. It has run when it says so, or has spoken."""
        if index in self._working:
            self._working.discard(index)
            self._admission.leave(now=time.monotonic(), has_run=has_run or index in self._spoke_at)
