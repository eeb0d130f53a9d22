"""POST /v1/completions, POST /v1/chat/completions, GET /v1/models: reads, asks `Inference`, and answers, whole or as events."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from millrace_server.answering import Answers
from millrace_server.connected import while_connected
from millrace_server.engine.handle import Serving
from millrace_server.inference import Inference
from millrace_server.openai import questions
from millrace_server.openai.events import EventStream
from millrace_server.openai.replies import Model, ModelList
from millrace_server.openai.requests import ChatRequest, CompletionRequest
from millrace_server.openai.tellers import ChatTeller, CompletionTeller, Head
from millrace_server.protocol import json_response, read
from millrace_server.question import Call, Conversation, Question
from millrace_server.text import Text
from millrace_server.tools.calls import CallParser

COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"
MODELS = "/v1/models"


class Teller(Protocol):
    async def whole(self, answers: Answers) -> msgspec.Struct: ...

    def events(self, answers: Answers) -> AsyncGenerator[msgspec.Struct, None]: ...


def add_routes(app: FastAPI, inference: Inference, *, call_of: Callable[[Request], Call]) -> None:
    served = inference.settings.served_names
    started = int(time.time())  # noqa: TID251 - a date

    @app.post(COMPLETIONS)
    async def completions(request: Request) -> Response:
        body = read(await request.body(), CompletionRequest)
        call = call_of(request)
        questions.known_model(body.model, served=served)
        question, manner = questions.completion(body)
        text = inference.require_model(call)[1]
        head = _head("cmpl", inference, call)
        teller = CompletionTeller(head=head, manner=manner, spelling=text.spelling, echoes=_echoes(question, text) if manner.echo else {})
        return await _answer(request, inference, question, call, teller)

    @app.post(CHAT_COMPLETIONS)
    async def chat_completions(request: Request) -> Response:
        body = read(await request.body(), ChatRequest)
        call = call_of(request)
        questions.known_model(body.model, served=served)
        question, manner = questions.chat(body)
        text = inference.require_model(call)[1]
        call_parser = _call_parser(question, inference)
        teller = ChatTeller(head=_head("chatcmpl", inference, call), manner=manner, spelling=text.spelling, call_parser=call_parser)
        return await _answer(request, inference, question, call, teller)

    @app.get(MODELS)
    async def models() -> Response:
        return json_response(ModelList(data=[_model(inference, name, started) for name in served]))

    @app.get(MODELS + "/{model:path}")
    async def model(model: str) -> Response:
        questions.known_model(model, served=served)
        return json_response(_model(inference, model, started))


async def _answer(request: Request, inference: Inference, question: Question, call: Call, teller: Teller) -> Response:
    async def whole() -> msgspec.Struct:
        async with inference.answer(question, call) as answers:
            request.state.cache = answers.source
            return await teller.whole(answers)

    async def events() -> AsyncGenerator[msgspec.Struct, None]:
        async with inference.answer(question, call) as answers, aclosing(teller.events(answers)) as told:
            request.state.cache = answers.source
            async for event in told:
                yield event

    if question.is_streamed:
        return EventStream(events())
    return json_response(await while_connected(request.receive, whole()))


def _head(kind: str, inference: Inference, call: Call) -> Head:
    return Head(
        id=f"{kind}-{call.request_id}",
        created=int(time.time()),  # noqa: TID251 - a date
        model=inference.settings.model_name,
        system_fingerprint=inference.fingerprint(),
    )


def _call_parser(question: Question, inference: Inference) -> Callable[[], CallParser] | None:
    """For answers that may hold calls of tools."""
    match question.prompts[0]:
        case Conversation() as asked if asked.tools and inference.chat:
            return partial(inference.chat.call_parser, asked.messages, asked.tools, **asked.variables)
    return None


def _echoes(question: Question, text: Text) -> dict[int, str]:
    """The prompt's text in front of each of its answers."""
    texts: list[str] = []
    for prompt in question.prompts:
        match prompt:
            case str():
                texts.append(prompt)
            case list():
                texts.append(text.decode(text.visible(prompt)))
    return {index: texts[index // question.copies] for index in range(question.answers)}


def _model(inference: Inference, name: str, started: int) -> Model:
    state = inference.engine.state
    max_model_len = state.ready.max_length if isinstance(state, Serving) else None
    return Model(id=name, created=started, max_model_len=max_model_len)
