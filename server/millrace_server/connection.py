"""One client connection: uvicorn's HTTP/1.1 protocol plus what it lacks.

A request's head must be sound, arrive in time and fit a limit; a connection has an age at which it ends; a client that does not read its
answers is cut; there are only so many connections; and whatever is refused here is answered in the shape of every other error.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from millrace_server.errors import BadHead, HeadTooLarge, RequestError, SlowRequest, TooManyConnections
from millrace_server.head import head_fault

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
KEEP_ALIVE_SECONDS = 75
"""Longer than the pools of usual clients keep an idle connection, so that they close it first and never write to a closed one."""
LIFETIME_JITTER = 0.25
LINGER_SECONDS = 1.0
"""For a refused client to read why."""
BODY_LINGER_SECONDS = 10.0
"""For one that is still sending a body that nobody will read."""
CROWDED_RETRY_SECONDS = 1


@dataclass(frozen=True)
class ConnectionLimits:
    head_timeout: float
    """Seconds for a request's line and headers."""
    stall_timeout: float
    """Seconds in which the client must read something of what was written."""
    lifetime: float
    """Seconds, give or take LIFETIME_JITTER, after which an answer carries `Connection: close`."""
    connections: int
    """Connections of one port at once."""


@dataclass(frozen=True)
class ConnectionAge:
    """What the application may know of the connection a request came by, in monotonic seconds; found in the scope's state."""

    opened: float
    expires: float


class ListenerConfig(uvicorn.Config):
    """A uvicorn configuration that carries our limits to each connection."""

    connection_limits: ConnectionLimits
    refused: Callable[[RequestError], None]
    """Told of each answer that the application knows nothing of."""


class _Farewell:
    """A transport whose owner decides how it is closed."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    config: ListenerConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        opened = time.monotonic()
        self._limits = self.config.connection_limits
        jitter = random.uniform(1 - LIFETIME_JITTER, 1 + LIFETIME_JITTER)  # noqa: S311 - spreads reconnects, keeps no secret
        self._age = ConnectionAge(opened=opened, expires=opened + self._limits.lifetime * jitter)
        self._is_deaf = False
        """Nothing that still comes is read: the connection ends with the answers it owes."""
        self._is_primed = True
        """The parser reads what the client sent, not the framing that `_parse` repeats to it."""
        self._reading_head = True
        self._read_bytes = 0
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self._limits.connections:
            self.connections.discard(self)  # It must not keep the next one out.
            crowd = f"{self._limits.connections} connections are open, the limit of this replica"
            self._refuse(TooManyConnections(crowd, retry_after=CROWDED_RETRY_SECONDS))
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._read_bytes = len(data)
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._give_up(cause if isinstance(cause, RequestError) else BadHead("the request is not valid HTTP/1.1"))
            return
        if self.transport.is_closing():
            return
        if self._is_between_requests() and self.timeout_keep_alive_task is None and self._head_timer is None:
            # What came was no request: an empty line, or the rest of a body that nobody reads. It buys no time without end.
            self._start_head_timer()
        if self._reading_head and self._head_bytes > MAX_HEAD_BYTES:
            self._give_up(HeadTooLarge(f"the request's line and headers exceed {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        if not self._is_primed:
            return
        super().on_message_begin()
        self.scope["state"]["connection"] = self._age
        # Exact to one read of the socket: what else came with the head's first bytes counts as head.
        self._head_bytes = self._read_bytes
        self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        if self._is_primed:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers of a chunked body come here too, without limit; nobody reads them, so nobody keeps them.
        if self._reading_head and self._is_primed:
            super().on_header(name, value)
            if len(self.headers) > MAX_HEADERS:
                raise HeadTooLarge(f"the request has more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if not self._is_primed:
            return
        if fault := head_fault(self.headers, version=self.parser.get_http_version()):
            raise BadHead(f"the request is not valid HTTP/1.1: {fault}")
        super().on_headers_complete()
        self.cycle.transport = cast("asyncio.Transport", _Farewell(self.transport, self._part))
        self._reading_head = False
        self._stop_head_timer()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # The parser leaves the body to `_parse`.
        super().on_message_complete()
        self._reading_head = True
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    def _parse(self, data: bytes) -> None:
        """An `Upgrade` is ignored. The parser stops behind a head that has one, and a fresh one, told the body's framing, reads on."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                data = data[stopped.args[0] :]
            else:
                return
            framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._is_primed = False
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
            self._is_primed = True

    def _is_between_requests(self) -> bool:
        """Nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self._limits.head_timeout, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            self._give_up(SlowRequest(f"the request's line and headers did not arrive within {self._limits.head_timeout:g} s"))

    def _watch_reader(self) -> None:
        self._stop_stall_timer()
        unread = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self._limits.stall_timeout, self._expect_reading, unread)

    def _expect_reading(self, unread: int) -> None:
        """Cut a client that took nothing of `unread` bytes; the work for it ends as after any other departure."""
        self._stall_timer = None
        still_unread = self.transport.get_write_buffer_size()
        is_growing = not self._is_between_requests() and not self.flow.write_paused
        if still_unread == 0 or is_growing:
            return  # Whoever fills the buffers, or ends an answer, is watched again.
        if still_unread >= unread:
            self.transport.abort()
        else:
            self._watch_reader()

    def _part(self) -> None:
        """The last answer is written. Whoever is still sending reads it first: closing over unread bytes resets a connection, with the
        answer on it."""
        if self._reading_head:
            self.transport.close()
            return
        self.flow.resume_reading()
        self._linger(BODY_LINGER_SECONDS)

    def _linger(self, seconds: float) -> None:
        """Nothing more is written, and what still comes is thrown away; then the connection ends."""
        self._stop_head_timer()
        self._is_deaf = True
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(seconds, self.transport.close)

    def _give_up(self, error: RequestError) -> None:
        """What follows on this connection cannot be read. Requests before it are answered, the one it belongs to with `error`."""
        self._stop_head_timer()
        if self._is_between_requests():
            if self._reading_head:
                self._refuse(error)
            else:  # in a body whose request is answered
                self.transport.close()
            return
        self._is_deaf = True
        self.cycle.keep_alive = False
        if not self._reading_head:
            self.cycle.scope["state"]["body_fault"] = error
            self.cycle.message_event.set()

    def _refuse(self, error: RequestError) -> None:
        """Answer outside the application, and close once the client had time to read."""
        self.config.refused(error)
        body = error.body()
        headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body)), **error.headers()}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + head.encode() + b"\r\n" + body)
        self._linger(LINGER_SECONDS)
        self._watch_reader()
