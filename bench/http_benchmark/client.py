"""Clients that cost little: HTTP/1.1 on plain asyncio streams, one connection each, kept while the server keeps it."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

EVENT = b"data: "
READ_BYTES = 1 << 16
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are monotonic seconds."""

    status: int
    sent: float
    done: float
    events: int
    """SSE events, without `[DONE]`."""
    retry_after: bool
    failed: bool
    """An event said so, or the connection broke."""

    @property
    def seconds(self) -> float:
        return self.done - self.sent


class Client:
    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: dict[str, Any] | None = None, *, deadline: float | None = None) -> Answer:
        """POST with a body, GET without. `deadline` in seconds is told to the server. Raises OSError when there is no connection."""
        sent = time.monotonic()
        reader, writer = await self._connection()
        writer.write(_request(path, body, deadline))
        try:
            answered = await reader.readuntil(b"\r\n\r\n")
            fields = answered.lower()
            rest = await (_chunks(reader) if b"transfer-encoding: chunked" in fields else _sized(reader, fields))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return Answer(0, sent, time.monotonic(), 0, retry_after=False, failed=True)
        if b"connection: close" in fields:
            self.close()
        events = rest.count(EVENT) - rest.count(b"data: [DONE]")
        status = int(answered[9:12])
        return Answer(status, sent, time.monotonic(), events, b"\nretry-after:" in fields, b'"error"' in rest)

    async def leave(self, path: str, body: dict[str, Any], *, after: float) -> None:
        """Asks, and hangs up after so many seconds, whatever has come."""
        _, writer = await self._connection()
        writer.write(_request(path, body, None))
        await asyncio.sleep(after)
        self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams


def _request(path: str, body: dict[str, Any] | None, deadline: float | None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    told = f"X-Request-Timeout: {deadline}\r\n" if deadline is not None else ""
    head = f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{told}"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


async def _sized(reader: asyncio.StreamReader, fields: bytes) -> bytes:
    length = int(fields.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    return await reader.readexactly(length)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """The chunks as they came, framing and all: only events in them are counted."""
    parts: list[bytes] = []
    tail = b""
    while not tail.endswith(LAST_CHUNK):
        part = await reader.read(READ_BYTES)
        if not part:
            raise asyncio.IncompleteReadError(tail, None)
        parts.append(part)
        tail = (tail + part)[-len(LAST_CHUNK) :]
    return b"".join(parts)
