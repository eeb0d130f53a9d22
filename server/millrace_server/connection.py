"""One client connection: uvicorn's HTTP/1.1 protocol plus what it lacks.

A request's head must arrive in time and fit a limit, a connection has an age at which it ends, and a head that cannot be parsed is
answered in the shape of every other error.
"""

import asyncio
import random
import time
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from millrace_server.errors import BadHead, HeadTooLarge, RequestError, SlowRequest

MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 75
"""Longer than the pools of usual clients keep an idle connection, so that they close it first and never write to a closed one."""
LIFETIME_JITTER = 0.25


@dataclass(frozen=True)
class ConnectionLimits:
    head_timeout: float
    """Seconds for a request's line and headers."""
    lifetime: float
    """Seconds, give or take LIFETIME_JITTER, after which an answer carries `Connection: close`."""


@dataclass(frozen=True)
class ConnectionAge:
    """What the application may know of the connection a request came by, in monotonic seconds; found in the scope's state."""

    opened: float
    expires: float


class ListenerConfig(uvicorn.Config):
    """A uvicorn configuration that carries our limits to each connection."""

    connection_limits: ConnectionLimits


class Connection(HttpToolsProtocol):
    config: ListenerConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        opened = time.monotonic()
        jitter = random.uniform(1 - LIFETIME_JITTER, 1 + LIFETIME_JITTER)  # noqa: S311 - spreads reconnects, keeps no secret
        self._age = ConnectionAge(opened=opened, expires=opened + self.config.connection_limits.lifetime * jitter)
        self._reading_head = True
        self._read_bytes = 0
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._read_bytes = len(data)
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_between_requests() and self.timeout_keep_alive_task is None and self._head_timer is None:
            # What came was no request: an empty line, or the rest of a body that nobody reads. It buys no time without end.
            self._start_head_timer()
        if self._reading_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"the request's line and headers exceed {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["connection"] = self._age
        self._reading_head = True
        # Exact to one read of the socket: what else came with the head's first bytes counts as head.
        self._head_bytes = self._read_bytes
        self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers of a chunked body come here too, without limit; nobody reads them, so nobody keeps them.
        if self._reading_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._reading_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadHead("the request is not valid HTTP/1.1"))

    def _is_between_requests(self) -> bool:
        """Nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self.config.connection_limits.head_timeout, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self.transport.is_closing():
            return
        if not self._is_between_requests():
            # The start of a pipelined request came while an answer is on its way: that answer is not to be cut.
            self.cycle.keep_alive = False
            return
        timeout = self.config.connection_limits.head_timeout
        self._refuse(SlowRequest(f"the request's line and headers did not arrive within {timeout:g} s"))

    def _refuse(self, error: RequestError) -> None:
        """Answer outside the application, and close. In mid-answer there is nothing left to say."""
        self._stop_head_timer()
        if self._is_between_requests():
            body = error.body()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
