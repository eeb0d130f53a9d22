"""One inference request from its fields to its answer: cache, admission, tokens, engine, text.

Knows nothing of HTTP. Whatever ends a request early (its deadline, its client, the engine) frees its slot on the way out.
"""

import asyncio
import itertools
import os
import time
from dataclasses import dataclass, field

import msgspec

from millrace_server.admission import Admission
from millrace_server.answer import Answer
from millrace_server.cache import Cache, cache_key
from millrace_server.chat.template import ChatTemplate
from millrace_server.engine.handle import Dead, EngineHandle, Serving
from millrace_server.engine.messages import Ready, Sampling, Step, Submit
from millrace_server.engine.stream import EngineUnavailable, QuarantinedRequest
from millrace_server.errors import (
    ContextTooLong,
    DeadlinePassed,
    Draining,
    EngineError,
    EngineGone,
    ModelLoading,
    RequestQuarantined,
)
from millrace_server.load import Load
from millrace_server.metrics import Metrics
from millrace_server.protocol import DEFAULT_MAX_TOKENS, InferAnswer, InferRequest
from millrace_server.settings import ServerSettings
from millrace_server.text import Text

ENGINE_GRACE_SECONDS = 2.0
"""The engine itself ends a request at its deadline; when it hangs, the front does so this much later."""
LOADING_RETRY_SECONDS = 5
DRAINING_RETRY_SECONDS = 1


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What the model wrote for one prompt; also the cache's value."""

    text: str
    tokens: int
    finish_reason: str


@dataclass
class Inference:
    settings: ServerSettings
    engine: EngineHandle
    cache: Cache
    metrics: Metrics
    admission: Admission
    text: Text | None = None
    """None until the tokenizer is loaded."""
    chat: ChatTemplate | None = None
    """None until it was tried out."""
    is_draining: bool = False
    boot_id: str = field(default_factory=lambda: os.urandom(8).hex())

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._cache_secret = os.urandom(32)
        self.engine.on_step = self._engine_stepped
        self.metrics.read_gauges_from(
            queued=lambda: self.admission.queued, running=lambda: self.admission.running, slots=lambda: self.admission.slots
        )

    def status(self) -> str:
        """healthy, loading, draining or failed."""
        if self.is_draining:
            return "draining"
        if isinstance(self.engine.state, Dead) and not self.engine.state.restarts:
            return "failed"
        return "healthy" if self.is_loaded() else "loading"

    def is_loaded(self) -> bool:
        return isinstance(self.engine.state, Serving) and self.text is not None

    def load(self) -> Load:
        ready = self.is_loaded() and not self.is_draining
        return self.admission.load(boot_id=self.boot_id, draining=self.is_draining, ready=ready, now=time.monotonic())

    async def infer(self, request: InferRequest, *, request_id: str, arrived: float, is_welcome: bool = True) -> InferAnswer:
        """`arrived` is monotonic. `is_welcome` is False for a request that came too late for a draining server. Raises RequestError."""
        ready, text = self._require_model(is_welcome=is_welcome)
        key = self._cache_key(request, ready)
        generation = await self._recall(key)
        cached = generation is not None
        if generation is None:
            generation = await self.generate(request, ready, text, deadline=arrived + self.settings.request_timeout)
            await self._remember(key, generation)
        return InferAnswer(
            text=request.prompt + generation.text,
            request_id=request_id,
            latency_ms=round((time.monotonic() - arrived) * 1000, 3),
            tokens_generated=generation.tokens,
            cached=cached,
        )

    def _require_model(self, *, is_welcome: bool) -> tuple[Ready, Text]:
        if not is_welcome:
            raise Draining("this replica is shutting down; another one can answer", retry_after=DRAINING_RETRY_SECONDS)
        state = self.engine.state
        if isinstance(state, Serving) and self.text is not None:
            return state.ready, self.text
        if isinstance(state, Dead):
            raise EngineGone("the engine has stopped; GET /health says when it is back", retry_after=LOADING_RETRY_SECONDS)
        raise ModelLoading("the model is being loaded; GET /health says when it is done", retry_after=LOADING_RETRY_SECONDS)

    async def generate(self, request: InferRequest, ready: Ready, text: Text, *, deadline: float, stop: tuple[str, ...] = ()) -> Generation:
        """One pass through the system. The slot is free again when this returns or raises; the first stop string that the answer
        completes ends it, and is not part of it. Raises RequestError."""
        now = time.monotonic()
        if deadline <= now:
            raise DeadlinePassed("the deadline passed while the request was still being sent")
        self.admission.enter(now=now, timeout=deadline - now)
        try:
            prompt = await text.encode(request.prompt)
            max_tokens = fit(len(prompt), request.max_tokens, max_length=ready.max_length)
        except BaseException:
            self.admission.withdraw(now=time.monotonic())
            raise
        try:
            return await self._run(request, prompt, max_tokens, text, deadline=deadline, stop=stop)
        finally:
            self.admission.leave(now=time.monotonic())

    async def _run(
        self, request: InferRequest, prompt: list[int], max_tokens: int, text: Text, *, deadline: float, stop: tuple[str, ...]
    ) -> Generation:
        submit = Submit(
            request_id=f"{self.boot_id}-{next(self._numbers)}",
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0.0 if request.is_greedy() else request.temperature, top_p=request.top_p, seed=request.seed),
            deadline=deadline,
        )
        answer = Answer(text.answer(prompt), stop)
        finish_reason = None
        try:
            async with asyncio.timeout(deadline + ENGINE_GRACE_SECONDS - time.monotonic()):
                async for output in self.engine.submit(submit):
                    answer.take(output.tokens)
                    self.metrics.generated(len(output.tokens))
                    finish_reason = output.finish_reason
                    if finish_reason == "error":
                        raise EngineError(output.error or "the engine could not answer this request")
                    if finish_reason == "quarantined":
                        raise RequestQuarantined(output.error or "this request is refused for some minutes")
                    if answer.is_stopped:
                        break
        except TimeoutError:
            pass
        except EngineUnavailable as error:
            raise EngineGone(str(error), retry_after=LOADING_RETRY_SECONDS) from error
        except QuarantinedRequest as error:
            raise RequestQuarantined(str(error)) from error
        finally:
            if finish_reason is None:
                self.engine.cancel(submit.request_id)
        if finish_reason in (None, "deadline") and not answer.is_stopped:
            limit = self.settings.request_timeout
            raise DeadlinePassed(f"the answer was not complete within {limit:g} s ({answer.tokens} of at most {max_tokens} tokens)")
        written = answer.finish()
        finish_reason = "stop" if answer.is_stopped else str(finish_reason)
        self.metrics.prompt_ran(len(prompt))
        self.metrics.finished(finish_reason)
        return Generation(text=written, tokens=answer.tokens, finish_reason=finish_reason)

    def _engine_stepped(self, step: Step) -> None:
        self.admission.slots = step.slots
        self.admission.engine_runs(step.running, now=time.monotonic())

    def _cache_key(self, request: InferRequest, ready: Ready) -> bytes | None:
        """None when this request is neither answered from the cache nor kept in it."""
        wanted = request.is_greedy() if request.use_cache is None else request.use_cache
        if not wanted:
            return None
        sampling = (0.0, 1.0, None) if request.is_greedy() else (request.temperature, request.top_p, request.seed)
        return cache_key(
            self._cache_secret, "infer", ready.revision, ready.dtype, ready.max_length, request.prompt, request.max_tokens, *sampling
        )

    async def _recall(self, key: bytes | None) -> Generation | None:
        value = await self.cache.get(key) if key is not None else None
        if value is None:
            return None
        self.admission.answered_from_cache()
        return msgspec.json.decode(value, type=Generation)

    async def _remember(self, key: bytes | None, generation: Generation) -> None:
        if key is not None:
            await self.cache.put(key, msgspec.json.encode(generation))


def fit(prompt_tokens: int, max_tokens: int | None, *, max_length: int) -> int:
    """The tokens to generate, at least one. Raises ContextTooLong with both numbers."""
    left = max_length - prompt_tokens
    wanted = max_tokens if max_tokens is not None else max(1, min(DEFAULT_MAX_TOKENS, left))
    if prompt_tokens == 0:
        raise ContextTooLong("prompt has no tokens; send at least one character that the model's tokenizer knows", param="prompt")
    if wanted > left:
        raise ContextTooLong(
            f"prompt has {prompt_tokens} tokens and max_tokens is {wanted}: together more than the model's limit of {max_length}",
            param="prompt" if left < 1 else "max_tokens",
        )
    return wanted
