"""POST /tokenize and POST /detokenize, in vLLM's shapes: what a prompt costs, by the very path on which prompts become tokens."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from millrace_server.connected import while_connected
from millrace_server.errors import BadRequest, DeadlinePassed, QueueFull
from millrace_server.inference import Inference
from millrace_server.openai import questions
from millrace_server.openai.requests import ChatRequest, Message, TokenID
from millrace_server.protocol import json_response, read
from millrace_server.question import Call, Conversation, check_token_ids

TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
RETRY_SECONDS = 1

Result = TypeVar("Result")


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    """Of a prompt: with the tokens that the model expects in front, such as BOS. Unset: true. A chat template writes its own."""
    add_generation_prompt: bool | None = None
    """Of messages: up to where the assistant's answer begins. Unset: true."""
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool | None = None


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    """Tokens of prompt and answer together."""
    tokens: list[int]
    token_strs: list[str] | None
    """As they stand in the vocabulary; null when not asked for."""


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[TokenID]


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
    """With special tokens by their names."""


class Tokenizing:
    """As many requests at a time as may ask the model: they share a worker with the prompts."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._limit = inference.settings.max_concurrent_requests
        self._running = 0

    async def tokenize(self, request: TokenizeRequest, call: Call) -> Tokenized:
        """Raises RequestError."""
        self._check_model(request.model)
        ready, text = self._inference.require_model(call)
        prompt = self._prompt(request)

        async def work() -> Tokenized:
            if isinstance(prompt, Conversation):
                tokens = await self._inference.render(prompt, add_generation_prompt=request.add_generation_prompt is not False)
            else:
                tokens = await text.encode(prompt, add_special_tokens=request.add_special_tokens is not False)
            names = await text.names(tokens) if request.return_token_strs else None
            return Tokenized(count=len(tokens), max_model_len=ready.max_length, tokens=tokens, token_strs=names)

        return await self._in_time(work, call)

    async def detokenize(self, request: DetokenizeRequest, call: Call) -> Detokenized:
        """Raises RequestError."""
        self._check_model(request.model)
        ready, text = self._inference.require_model(call)
        check_token_ids(request.tokens, vocabulary=ready.vocabulary, field="tokens")

        async def work() -> Detokenized:
            return Detokenized(prompt=await text.spell_out(request.tokens))

        return await self._in_time(work, call)

    def _check_model(self, model: str | None) -> None:
        if model is not None:
            questions.known_model(model, served=self._inference.settings.served_names)

    def _prompt(self, request: TokenizeRequest) -> str | Conversation:
        """Raises BadRequest."""
        if request.messages is None:
            if request.prompt is None:
                raise BadRequest("prompt is missing; send either prompt or messages", param="prompt")
            for name in ("add_generation_prompt", "chat_template_kwargs"):
                if getattr(request, name) is not None:
                    raise BadRequest(f"{name} is refused: it needs messages", param=name)
            return request.prompt
        if request.prompt is not None:
            raise BadRequest("messages is refused: send either prompt or messages", param="messages")
        if request.add_special_tokens:
            raise BadRequest("add_special_tokens is refused: a chat template writes its own; leave it out", param="add_special_tokens")
        model = self._inference.settings.model_name
        question, _ = questions.chat(ChatRequest(model=model, messages=request.messages, chat_template_kwargs=request.chat_template_kwargs))
        (conversation,) = question.prompts
        if not isinstance(conversation, Conversation):
            raise TypeError("messages have become something else than a conversation")
        return conversation

    async def _in_time(self, work: Callable[[], Awaitable[Result]], call: Call) -> Result:
        if self._running >= self._limit:
            raise QueueFull(f"{self._limit} texts are already being read, the limit of this replica", retry_after=RETRY_SECONDS)
        self._running += 1
        try:
            async with asyncio.timeout(call.deadline - time.monotonic()):
                return await work()
        except TimeoutError:
            raise DeadlinePassed("the deadline passed while the text was still being read") from None
        finally:
            self._running -= 1


def add_routes(app: FastAPI, inference: Inference, *, call_of: Callable[[Request], Call]) -> None:
    tokenizing = Tokenizing(inference)

    @app.post(TOKENIZE)
    async def tokenize(request: Request) -> Response:
        body = read(await request.body(), TokenizeRequest)
        return json_response(await while_connected(request.receive, tokenizing.tokenize(body, call_of(request))))

    @app.post(DETOKENIZE)
    async def detokenize(request: Request) -> Response:
        body = read(await request.body(), DetokenizeRequest)
        return json_response(await while_connected(request.receive, tokenizing.detokenize(body, call_of(request))))
