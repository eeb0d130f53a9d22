"""One request and its answer, seen from outside: an id, a status that is counted and logged, and an end to surprises.

Pure ASGI. It is the only place that turns an unexpected exception into an answer, and the only one that closes old connections.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace_server.errors import ClientLeft, Draining, RequestError, error_response

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
OTHER_ENDPOINT = "other"
CACHE_HEADER = "x-millrace-cache"
"""hit, miss or bypass, when a route found out; of the asking tenant's own answers, hence news to nobody else."""

logger = logging.getLogger(__name__)

Observer = Callable[[str, int, float], None]
"""endpoint (the route's template), status code, seconds."""


class Exchange:
    def __init__(self, app: ASGIApp, *, observe: Observer, is_draining: Callable[[], bool], log_level: int) -> None:
        self._app = app
        self._log_level = log_level
        self._observe = observe
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = time.monotonic()
        state = scope.setdefault("state", {})
        state["arrived"] = arrived
        state["request_id"] = request_id = _request_id(scope)
        # A server that answers GET answers HEAD, too; the connection leaves the body out, because it still sees HEAD.
        routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status = ClientLeft.status
        is_started = False

        async def send_marked(message: Message) -> None:
            nonlocal status, is_started
            if message["type"] == "http.response.start":
                status, is_started = message["status"], True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if source := state.get("cache"):
                    headers[CACHE_HEADER] = source
                if self._is_last_answer(scope, status):
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(routed, receive, send_marked)
        except RequestError as error:
            await self._answer_error(error, scope, receive, send_marked, started=is_started)
        except ClientDisconnect:
            pass  # It left in its own body: there is nobody to answer, and `status` says so.
        except asyncio.CancelledError:
            # Only the end of the drain does that.
            cut = Draining("this replica shut down before the request was complete; another one can answer", retry_after=1)
            await self._answer_error(cut, scope, receive, send_marked, started=is_started)
        except Exception:
            logger.exception("a request failed unexpectedly", extra={"request_id": request_id})
            unexpected = RequestError("the server failed unexpectedly; its log has the cause under this request's id")
            await self._answer_error(unexpected, scope, receive, send_marked, started=is_started)
        finally:
            seconds = time.monotonic() - arrived
            status = state.get("outcome", status)  # how a stream ended whose first bytes had said 200
            endpoint = getattr(routed.get("route"), "path", OTHER_ENDPOINT)
            self._observe(endpoint, status, seconds)
            logger.log(
                self._log_level,
                "request",
                extra={
                    "method": scope["method"],
                    "endpoint": endpoint,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "request_id": request_id,
                    "tenant": state.get("tenant", ""),
                },
            )

    def _is_last_answer(self, scope: Scope, status: int) -> bool:
        """408 and 413 leave unread bytes behind; an old connection makes room for one to another replica."""
        connection = scope["state"].get("connection")
        is_old = connection is not None and time.monotonic() > connection.expires
        return is_old or self._is_draining() or status in (408, 413)

    async def _answer_error(self, error: RequestError, scope: Scope, receive: Receive, send: Send, *, started: bool) -> None:
        """A started answer cannot be taken back: raising lets the server cut the connection, so that the client sees it is incomplete."""
        if started:
            raise error
        await error_response(error)(scope, receive, send)


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
