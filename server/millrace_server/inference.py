"""One inference request from its fields to its answer: cache, admission, tokens, engine, text.

Knows nothing of HTTP. Whatever ends a request early (its deadline, its client, the engine) frees its slot on the way out.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from millrace_server.admission import Admission
from millrace_server.answer import Answer
from millrace_server.answering import ENGINE_RETRY_SECONDS, Answering, Answers, Source
from millrace_server.cache import Cache
from millrace_server.chat.template import ChatTemplate
from millrace_server.engine.handle import Dead, EngineHandle, Serving
from millrace_server.engine.messages import Ready, Sampling, Step, Submit
from millrace_server.errors import BadRequest, DeadlinePassed, Draining, EngineGone, ModelLoading
from millrace_server.load import Load
from millrace_server.metrics import Metrics
from millrace_server.protocol import DEFAULT_MAX_TOKENS, InferAnswer, InferRequest
from millrace_server.question import Call, Conversation, Prompt, Question, check_token_ids, fit
from millrace_server.recording import FORM
from millrace_server.schemas.check import SchemaCheck
from millrace_server.settings import CacheType, ServerSettings
from millrace_server.sharing import Runs
from millrace_server.text import Text

DRAINING_RETRY_SECONDS = 1


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
        self._runs = Runs(self.cache, self.ask, longest_seconds=self.settings.request_timeout)
        self.metrics.registry.register(self.cache)
        self.engine.on_ready = self.metrics.engine_ready
        self.engine.on_step = self._engine_stepped
        self.metrics.read_gauges_from(queued=lambda: self.admission.queued, running=lambda: self.admission.running)

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
        async with self.answer(_question(request), call) as answers:
            (whole,) = await answers.whole()
        return InferAnswer(
            text=request.prompt + whole.text,
            request_id=call.request_id,
            latency_ms=round((time.monotonic() - call.arrived) * 1000, 3),
            tokens_generated=answers.tokens,
            cached=answers.source is Source.hit,
        )

    @contextlib.asynccontextmanager
    async def answer(self, question: Question, call: Call) -> AsyncIterator[Answers]:
        """The answers, from the cache or the model. However the context is left, nothing more is done for this caller. Raises RequestError,
        as reading the answers does."""
        key = self._cache_key(question, call)
        if key is None:
            self.cache.bypassed()
            async with self.ask(question, call) as answering:
                yield answering
            return
        async with self._runs.read(key, question, call) as reader:
            yield reader
        if reader.source is Source.hit:
            self.admission.answered_from_cache(question.answers)

    @contextlib.asynccontextmanager
    async def ask(self, question: Question, call: Call, ends: float | None = None) -> AsyncIterator[Answering]:
        """One pass through the system: admission, tokens, engine, text. However the context is left, the slots are free at the engine's
        next step. It may take until the monotonic time `ends`, or else the call's deadline. Raises RequestError, as reading the pieces
        does."""
        ready, text = self.require_model(call)
        now = time.monotonic()
        if call.deadline <= now:
            raise DeadlinePassed("the deadline passed while the request was still being sent")
        max_tokens = question.max_tokens or question.default_max_tokens
        self.admission.enter(now=now, timeout=call.deadline - now, max_tokens=max_tokens, answers=question.answers)
        if ends is not None:
            call = dataclasses.replace(call, timeout=ends - call.arrived)
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

    async def render(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids. Raises ModelLoading, and what the template does."""
        if self.chat is None:
            raise ModelLoading("the chat template is being loaded; try again", retry_after=ENGINE_RETRY_SECONDS)
        return await self.chat.render(
            conversation.messages, conversation.tools, add_generation_prompt=add_generation_prompt, **conversation.variables
        )

    async def _encode(self, prompt: Prompt, ready: Ready, text: Text) -> list[int]:
        match prompt:
            case str():
                return await text.encode(prompt)
            case Conversation():
                return await self.render(prompt)
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
        self.metrics.vllm.stepped(step)
        self.admission.slots = step.slots
        self.admission.engine_runs(step.running, now=time.monotonic())

    def _cache_key(self, question: Question, call: Call) -> bytes | None:
        """None when this question is neither answered from the cache nor kept in it. Raises what `require_model` does."""
        ready, _ = self.require_model(call)
        wanted = question.is_greedy() if question.use_cache is None else question.use_cache
        if not wanted or self.settings.cache_type is CacheType.none:
            return None
        model = (ready.digest, ready.dtype, ready.max_length, self.fingerprint())
        return self.cache.key(FORM, call.tenant, *model, question.essence())


def _question(request: InferRequest) -> Question:
    temperature = 0.0 if request.is_greedy() else request.temperature
    return Question(
        prompts=[request.prompt],
        max_tokens=request.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        sampling=Sampling(temperature=temperature, top_p=request.top_p, seed=request.seed),
        use_cache=request.use_cache,
    )
