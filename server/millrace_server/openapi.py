"""The clients' port as an OpenAPI 3.1 document, made of the structs that bodies are read into and of the errors that answer them.

`python -m millrace_server.openapi` writes it without a server.
"""

import html
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.responses import Response

from millrace_server import errors
from millrace_server.caller import TIMEOUT_HEADER
from millrace_server.errors import ErrorBody, RequestError
from millrace_server.openai.replies import ChatChunk, ChatCompletion, Completion, Model, ModelList
from millrace_server.openai.requests import ChatRequest, CompletionRequest
from millrace_server.openai.routes import CHAT_COMPLETIONS, COMPLETIONS, MODELS
from millrace_server.protocol import HEALTH, INFER, METRICS, Health, InferAnswer, InferRequest, MetricsReport
from millrace_server.tokenizing import DETOKENIZE, TOKENIZE, Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

DOCUMENT = "/openapi.json"
DOCS = "/docs"
REFERENCE = "#/components/schemas/{name}"

Errors = tuple[type[RequestError], ...]

ANYWHERE: Errors = (
    errors.BadHead,
    errors.SlowRequest,
    errors.BodyTooLarge,
    errors.HeadTooLarge,
    RequestError,
    errors.TooManyConnections,
)
"""What any request may end with."""
READING: Errors = (errors.NotJSON, errors.UnknownField, errors.BadRequest)
NO_MODEL: Errors = (errors.ModelLoading, errors.Draining, errors.EngineGone)
ANSWERING: Errors = (
    *READING,
    *NO_MODEL,
    errors.ContextTooLong,
    errors.RequestQuarantined,
    errors.EngineError,
    errors.QueueFull,
    errors.WaitTooLong,
    errors.DeadlinePassed,
)
TOKENIZING: Errors = (*READING, *NO_MODEL, errors.ModelNotFound, errors.QueueFull, errors.DeadlinePassed)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path."""

    path: str
    name: str
    summary: str
    method: str = "get"
    request: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct]
    event: type[msgspec.Struct] | None = None
    """What a streamed answer consists of."""
    errors: Errors = ()
    parameter: str | None = None
    """Of the path."""
    is_open: bool = False
    """Needs no key."""
    has_prometheus: bool = False
    unready: bool = False
    """Has the shape of its answer with status 503 too."""


OPERATIONS = (
    Operation(
        method="post", path=INFER, name="infer", summary="Complete a prompt", request=InferRequest, answer=InferAnswer, errors=ANSWERING
    ),
    Operation(
        method="post",
        path=COMPLETIONS,
        name="createCompletion",
        summary="Complete prompts, as OpenAI does",
        request=CompletionRequest,
        answer=Completion,
        event=Completion,
        errors=(*ANSWERING, errors.ModelNotFound),
    ),
    Operation(
        method="post",
        path=CHAT_COMPLETIONS,
        name="createChatCompletion",
        summary="Continue a conversation, as OpenAI does",
        request=ChatRequest,
        answer=ChatCompletion,
        event=ChatChunk,
        errors=(*ANSWERING, errors.ModelNotFound, errors.ChatUnavailable),
    ),
    Operation(path=MODELS, name="listModels", summary="The one model, as a list", answer=ModelList),
    Operation(
        path=MODELS + "/{model}", name="getModel", summary="The one model", answer=Model, errors=(errors.ModelNotFound,), parameter="model"
    ),
    Operation(
        method="post",
        path=TOKENIZE,
        name="tokenize",
        summary="A prompt's or a conversation's tokens",
        request=TokenizeRequest,
        answer=Tokenized,
        errors=(*TOKENIZING, errors.ChatUnavailable),
    ),
    Operation(
        method="post",
        path=DETOKENIZE,
        name="detokenize",
        summary="The text of tokens",
        request=DetokenizeRequest,
        answer=Detokenized,
        errors=TOKENIZING,
    ),
    Operation(path=HEALTH, name="health", summary="Whether this replica serves", answer=Health, is_open=True, unready=True),
    Operation(path=METRICS, name="metrics", summary="What this replica counted", answer=MetricsReport, has_prometheus=True),
)


def document(*, has_keys: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 document; `has_keys` says whether clients need one."""
    shapes = {shape for each in OPERATIONS for shape in (each.request, each.answer, each.event) if shape}
    ordered = sorted(shapes | {ErrorBody}, key=lambda shape: shape.__name__)
    _, schemas = msgspec.json.schema_components(ordered, schema_hook=_anything, ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, has_keys=has_keys)
    components: dict[str, Any] = {"schemas": schemas}
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Millrace", "version": "1", "description": "LLM inference over HTTP, with OpenAI's routes."},
        "paths": paths,
        "components": components,
    }


def add_routes(app: FastAPI, *, has_keys: bool) -> None:
    """The document, and a page for people that needs nothing from elsewhere."""
    text = msgspec.json.encode(document(has_keys=has_keys))
    page = _page()

    @app.get(DOCUMENT)
    async def openapi() -> Response:
        return Response(text, media_type="application/json")

    @app.get(DOCS)
    async def docs() -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": "default-src 'none'"})


def _anything(kind: type) -> dict[str, Any]:
    """The schema of a field that takes any JSON. Raises NotImplementedError for other types."""
    if kind is object:
        return {"description": "Any JSON."}
    raise NotImplementedError


def _operation(each: Operation, *, has_keys: bool) -> dict[str, Any]:
    needs_key = has_keys and not each.is_open
    parameters = [_parameter("X-Request-Id", "header", {"type": "string"}, "Becomes part of the answer's id.")]
    if each.request:
        seconds = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"}
        parameters.append(_parameter(TIMEOUT_HEADER, "header", seconds, "Seconds above 0 that the answer may take; shortens the limit."))
    if each.parameter:
        parameters.append(_parameter(each.parameter, "path", {"type": "string"}, "May contain slashes."))
    result: dict[str, Any] = {"operationId": each.name, "summary": each.summary, "parameters": parameters}
    if each.request:
        result["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(each.request)}}}
    result["responses"] = _responses(each, needs_key=needs_key)
    if needs_key:
        result["security"] = [{"key": []}]
    return result


def _parameter(name: str, place: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}


def _responses(each: Operation, *, needs_key: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _reference(each.answer)}}
    if each.event:
        events = f"With stream: true: an event `data: {each.event.__name__}` after the other, a failure as ErrorBody, then `data: [DONE]`."
        content["text/event-stream"] = {"schema": {"type": "string", "description": events}, "x-event-schema": _reference(each.event)}
    if each.has_prometheus:
        content["text/plain"] = content["application/openmetrics-text"] = {"schema": {"type": "string"}}
    responses = {"200": {"description": "The answer.", "headers": _headers(200), "content": content}}
    keys: Errors = (errors.InvalidKey,) if needs_key else ()
    failures = {*ANYWHERE, *each.errors, *keys}
    for status in sorted({failure.status for failure in failures}):
        codes = ", ".join(sorted(str(failure.code) for failure in failures if failure.status == status))
        schema = _reference(ErrorBody)
        if each.unready and status == 503:
            schema = {"anyOf": [_reference(each.answer), schema]}
        responses[str(status)] = {
            "description": f"Codes: {codes}.",
            "headers": _headers(status),
            "content": {"application/json": {"schema": schema}},
        }
    return responses


def _headers(status: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": {"schema": {"type": "string"}}}
    if status == 503:
        headers["Retry-After"] = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    return headers


def _reference(shape: type) -> dict[str, Any]:
    return {"$ref": REFERENCE.format(name=shape.__name__)}


def _page() -> str:
    rows = "".join(
        f"<tr><td>{each.method.upper()}</td><td><code>{html.escape(each.path)}</code></td><td>{html.escape(each.summary)}</td></tr>"
        for each in OPERATIONS
    )
    link = f'<p>Every field, bound and status is in <a href="{DOCUMENT}">{DOCUMENT}</a>.</p>'
    return f'<!doctype html><html lang="en"><title>Millrace</title><h1>Millrace</h1>{link}<table>{rows}</table></html>'


def main() -> int:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document(has_keys=True)), indent=2).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
