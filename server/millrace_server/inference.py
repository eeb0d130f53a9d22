"""One inference request from its fields to its answer: cache, admission, tokens, engine, text.

Knows nothing of HTTP. Whatever ends a request early (its deadline, its client, the engine) frees its slot on the way out.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec

from millrace_server.admission import Admission
from millrace_server.answer import Answer
from millrace_server.answering import ENGINE_RETRY_SECONDS, Answering
from millrace_server.cache import Cache, SingleFlight
from millrace_server.chat.template import ChatTemplate
from millrace_server.engine.handle import Dead, EngineHandle, Serving
from millrace_server.engine.messages import Ready, Sampling, Step, Submit
from millrace_server.errors import BadRequest, DeadlinePassed, Draining, EngineGone, ModelLoading
from millrace_server.load import Load
from millrace_server.metrics import Metrics
from millrace_server.protocol import DEFAULT_MAX_TOKENS, InferAnswer, InferRequest
from millrace_server.question import Call, Conversation, Prompt, Question, check_token_ids, fit
from millrace_server.schemas.check import SchemaCheck
from millrace_server.settings import CacheType, ServerSettings
from millrace_server.text import Text

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
    schemas: SchemaCheck = field(default_factory=SchemaCheck)
    is_draining: bool = False
    boot_id: str = field(default_factory=lambda: os.urandom(8).hex())

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._flights: SingleFlight[Generation] = SingleFlight()
        self.metrics.registry.register(self.cache)
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

    def fingerprint(self) -> str:
        """The model's revision and its chat template, in a few characters; empty parts while they are loaded."""
        revision = self.engine.state.ready.revision if isinstance(self.engine.state, Serving) else ""
        return f"{revision}-{self.chat.fingerprint if self.chat else ''}"

    def load(self) -> Load:
        ready = self.is_loaded() and not self.is_draining
        return self.admission.load(boot_id=self.boot_id, draining=self.is_draining, ready=ready, now=time.monotonic())

    async def infer(self, request: InferRequest, call: Call) -> InferAnswer:
        """Raises RequestError."""
        ready, _ = self.require_model(call)
        key = self._cache_key(request, ready, call)
        if key is None:
            self.cache.bypassed()
            generation, cached = await self.generate(_question(request), call), False
        else:
            generation, cached = await self._shared(key, _question(request), call)
        return InferAnswer(
            text=request.prompt + generation.text,
            request_id=call.request_id,
            latency_ms=round((time.monotonic() - call.arrived) * 1000, 3),
            tokens_generated=generation.tokens,
            cached=cached,
        )

    async def generate(self, question: Question, call: Call) -> Generation:
        """The whole answer to a question that has one. Raises RequestError."""
        async with self.ask(question, call) as answering:
            (whole,) = await answering.whole()
            return Generation(text=whole.text, tokens=answering.tokens, finish_reason=whole.finish_reason)

    @contextlib.asynccontextmanager
    async def ask(self, question: Question, call: Call) -> AsyncIterator[Answering]:
        """One pass through the system: admission, tokens, engine, text. However the context is left, the slots are free at the engine's
        next step. Raises RequestError, as reading the pieces does."""
        ready, text = self.require_model(call)
        now = time.monotonic()
        if call.deadline <= now:
            raise DeadlinePassed("the deadline passed while the request was still being sent")
        self.admission.enter(now=now, timeout=call.deadline - now, answers=question.answers)
        try:
            async with asyncio.timeout(call.deadline - now):
                await self._check_schema(question, ready)
                prompts = [await self._encode(prompt, ready, text) for prompt in question.prompts]
            requests = self._requests(question, prompts, ready, call)
            self.admission.confirm(answers=question.answers)
        except BaseException as error:
            self.admission.withdraw(now=time.monotonic(), answers=question.answers)
            if isinstance(error, TimeoutError):
                raise DeadlinePassed("the deadline passed while the prompt was still being read") from None
            raise
        shown = (
            self.chat.markers if self.chat and any(isinstance(asked, Conversation) and asked.tools for asked in question.prompts) else ()
        )
        answers = [
            Answer(text.answer(request.prompt, shown=shown), question.stop, is_streamed=question.is_streamed) for request in requests
        ]
        answering = Answering(prompts, requests, answers, call=call, engine=self.engine, admission=self.admission, metrics=self.metrics)
        try:
            answering.start()
            yield answering
        finally:
            answering.close()

    def require_model(self, call: Call) -> tuple[Ready, Text]:
        """Raises Draining, EngineGone or ModelLoading."""
        if not call.is_welcome:
            raise Draining("this replica is shutting down; another one can answer", retry_after=DRAINING_RETRY_SECONDS)
        state = self.engine.state
        if isinstance(state, Serving) and self.text is not None:
            return state.ready, self.text
        if isinstance(state, Dead):
            raise EngineGone("the engine has stopped; GET /health says when it is back", retry_after=ENGINE_RETRY_SECONDS)
        raise ModelLoading("the model is being loaded; GET /health says when it is done", retry_after=ENGINE_RETRY_SECONDS)

    async def _check_schema(self, question: Question, ready: Ready) -> None:
        """Raises BadRequest."""
        if question.sampling.schema is None:
            return
        if ready.no_schemas:
            raise BadRequest(f"response_format is refused: this model cannot follow a schema, {ready.no_schemas}", param="response_format")
        await self.schemas.check(question.sampling.schema)

    async def _encode(self, prompt: Prompt, ready: Ready, text: Text) -> list[int]:
        match prompt:
            case str():
                return await text.encode(prompt)
            case Conversation():
                if self.chat is None:
                    raise ModelLoading("the chat template is being loaded; try again", retry_after=ENGINE_RETRY_SECONDS)
                return await self.chat.render(prompt.messages, prompt.tools, **prompt.variables)
            case _:
                check_token_ids(prompt, vocabulary=ready.vocabulary, field="prompt")
                return prompt

    def _requests(self, question: Question, prompts: Sequence[list[int]], ready: Ready, call: Call) -> list[Submit]:
        """The copies of the first prompt, then those of the second, and so on. Raises BadRequest."""
        check_token_ids(question.stop_token_ids, vocabulary=ready.vocabulary, field="stop_token_ids")
        check_token_ids(question.sampling.logit_bias, vocabulary=ready.vocabulary, field="logit_bias")
        requests: list[Submit] = []
        for asked, prompt in zip(question.prompts, prompts, strict=True):
            source = "messages" if isinstance(asked, Conversation) else "prompt"
            request = Submit(
                request_id=f"{self.boot_id}-{next(self._numbers)}",
                prompt=prompt,
                max_tokens=fit(len(prompt), question, max_length=ready.max_length, field=source),
                sampling=question.sampling,
                stop_token_ids=list(question.stop_token_ids),
                ignore_eos=question.ignore_eos,
                deadline=call.deadline,
                tenant=call.tenant,
                priority=question.priority,
            )
            requests += request.copies(question.copies)
        return requests

    def _engine_stepped(self, step: Step) -> None:
        self.admission.slots = step.slots
        self.admission.engine_runs(step.running, now=time.monotonic())

    def _cache_key(self, request: InferRequest, ready: Ready, call: Call) -> bytes | None:
        """None when this request is neither answered from the cache nor kept in it."""
        wanted = request.is_greedy() if request.use_cache is None else request.use_cache
        if not wanted or self.settings.cache_type is CacheType.none:
            return None
        sampling = (0.0, 1.0, None) if request.is_greedy() else (request.temperature, request.top_p, request.seed)
        model = (ready.revision, ready.dtype, ready.max_length)
        return self.cache.key("infer", *Generation.__struct_fields__, call.tenant, *model, request.prompt, request.max_tokens, *sampling)

    async def _shared(self, key: bytes, question: Question, call: Call) -> tuple[Generation, bool]:
        """The answer, and whether it cost no run of the model: it was known, or another request was just computing it."""
        ran = False

        async def compute() -> Generation:
            nonlocal ran
            if (value := await self.cache.get(key)) is not None:
                return msgspec.json.decode(value, type=Generation)
            ran = True
            generation = await self.generate(question, call)
            await self.cache.put(key, msgspec.json.encode(generation))
            return generation

        try:
            generation = await self._flights.run(key, compute, timeout=call.deadline - time.monotonic())
        except TimeoutError:
            raise DeadlinePassed("the deadline passed while an equal request was being answered") from None
        if not ran:
            self.admission.answered_from_cache()
        return generation, not ran


def _question(request: InferRequest) -> Question:
    temperature = 0.0 if request.is_greedy() else request.temperature
    return Question(
        prompts=[request.prompt],
        max_tokens=request.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        sampling=Sampling(temperature=temperature, top_p=request.top_p, seed=request.seed),
    )
