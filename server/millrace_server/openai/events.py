"""An answer that is sent while it is written: server-sent events.

The response starts with the first event, so that whatever fails before it has a status of its own. What fails later is an event.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millrace_server.connected import while_connected
from millrace_server.errors import ClientLeft, Draining, RequestError

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
"""The last one asks nginx to pass events on at once."""
DONE = b"data: [DONE]\n\n"

logger = logging.getLogger(__name__)


class EventStream(Response):
    """Ends the work behind `events` when the client leaves. `state["outcome"]` of the scope says how a stream ended that had started."""

    def __init__(self, events: AsyncGenerator[msgspec.Struct, None]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._write(scope, send))
        except ClientLeft as error:
            self._end_with(error, scope)
        except asyncio.CancelledError:
            # Only the end of the drain does that.
            if not self._has_started:
                raise
            cut = Draining("this replica shut down before the answer was complete; another one can answer")
            self._end_with(cut, scope)
            await self._finish(send, cut)

    async def _write(self, scope: Scope, send: Send) -> None:
        failure: RequestError | None = None
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await self._send(send, b"data: " + msgspec.json.encode(event) + b"\n\n")
            except RequestError as error:
                self._end_with(error, scope)
                failure = error
            except Exception:
                if not self._has_started:
                    raise
                logger.exception("a stream failed unexpectedly", extra={"request_id": scope["state"]["request_id"]})
                failure = RequestError("the server failed unexpectedly; its log has the cause under this request's id")
                self._end_with(failure, scope)
        await self._finish(send, failure)

    async def _send(self, send: Send, body: bytes) -> None:
        if not self._has_started:
            self._has_started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _finish(self, send: Send, failure: RequestError | None) -> None:
        last = DONE if failure is None else b"data: " + failure.body() + b"\n\n" + DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _end_with(self, error: RequestError, scope: Scope) -> None:
        if not self._has_started:
            raise error
        scope["state"]["outcome"] = error.status
