"""Every answer that is not a success: one class per reason, each with its status, and the OpenAI error shape that carries it.

A message names the field or limit and the next step. It never holds a prompt, a path of this machine or a stack trace.
"""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

MAX_MESSAGE_CHARACTERS = 2000
MAX_PARAM_CHARACTERS = 200


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    """The field of the request that is wrong."""
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorDetail


class RequestError(Exception):
    """A request that ends without its answer."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        """`retry_after` is in whole seconds."""
        self.message = printable(message)[:MAX_MESSAGE_CHARACTERS]
        super().__init__(self.message)
        self.param = None if param is None else printable(param)[:MAX_PARAM_CHARACTERS]
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(error=ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)))


class BadRequest(RequestError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class NotJSON(BadRequest):
    code = "invalid_json"


class UnknownField(BadRequest):
    code = "unknown_field"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class ChatUnavailable(BadRequest):
    """The model has no chat template that works."""

    code = "chat_unavailable"


class InvalidKey(RequestError):
    """No API key where one is needed, or none of ours; the answer does not tell which."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "www-authenticate": 'Bearer realm="millrace"'}


class NoSuchRoute(RequestError):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(RequestError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class MethodNotAllowed(RequestError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class SlowRequest(RequestError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class BodyTooLarge(RequestError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class RequestQuarantined(RequestError):
    """This very request failed its step, or the engine died with it, more than once. Not a 5xx: clients try those again."""

    status, type, code = 422, "invalid_request_error", "request_quarantined"


class HeadTooLarge(RequestError):
    status, type, code = 431, "invalid_request_error", "head_too_large"


class BadHead(RequestError):
    status, type, code = 400, "invalid_request_error", "invalid_http"


class ClientLeft(RequestError):
    """Nobody reads this answer; the status, which nginx made up, counts it."""

    status, type, code = 499, "invalid_request_error", "client_left"


class EngineError(RequestError):
    """The engine ended this request, and only this one, with an error."""

    status, type, code = 500, "server_error", "engine_error"


class Refused(RequestError):
    """A healthy server says no for now; counted as a refusal, never as an error."""

    status, type = 503, "overloaded_error"


class QueueFull(Refused):
    code = "queue_full"


class TooManyConnections(Refused):
    code = "too_many_connections"


class WaitTooLong(Refused):
    code = "wait_too_long"


class ModelLoading(Refused):
    code = "model_loading"


class Draining(Refused):
    code = "draining"


class EngineGone(Refused):
    """The engine stopped with this request in it; another attempt may succeed."""

    code = "engine_unavailable"


class DeadlinePassed(RequestError):
    status, type, code = 504, "timeout_error", "deadline_exceeded"


def error_response(error: RequestError, *, headers: Mapping[str, str] | None = None) -> Response:
    return Response(error.body(), status_code=error.status, headers={**error.headers(), **(headers or {})}, media_type="application/json")


def http_error(status: int, message: str) -> RequestError:
    """The routing layer's own refusals (404, 405) in the shape of all others."""
    kinds: dict[int, type[RequestError]] = {404: NoSuchRoute, 405: MethodNotAllowed}
    if status in kinds:
        return kinds[status](message)
    error = BadRequest(message) if status < 500 else RequestError(message)
    error.status = status
    return error


def printable(text: str) -> str:
    """Control characters and the like, which clients put into names and paths, are not repeated to terminals and logs."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
