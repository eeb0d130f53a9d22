"""Messages as bytes on a stream: a 4-byte length, then msgpack. Nothing is ever unpickled."""

import asyncio
import socket
from typing import Generic, TypeVar

import msgspec

from millrace_server.engine.messages import LENGTH, MAX_FRAME_BYTES, FromEngine, FromFront

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()


class BadFrame(Exception):
    """The other side sent something that is not a message: the connection ends."""


def encode(message: FromFront | FromEngine) -> bytes:
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"a {type(message).__name__} of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


class Decoder(Generic[Message]):
    """Reads one side's messages from an asyncio stream or a blocking socket. Both return None at the end of the stream."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Message]) -> None:
        self._decoder = decoder

    async def read(self, reader: asyncio.StreamReader) -> Message | None:
        try:
            length = self._length(await reader.readexactly(LENGTH.size))
            return self._decode(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def receive(self, connection: socket.socket) -> Message | None:
        header = _receive_exactly(connection, LENGTH.size)
        body = header and _receive_exactly(connection, self._length(header))
        return self._decode(body) if body else None

    def _length(self, header: bytes) -> int:
        length: int = LENGTH.unpack(header)[0]
        if not 0 < length <= MAX_FRAME_BYTES:
            raise BadFrame(f"a frame of {length} bytes is outside 1…{MAX_FRAME_BYTES}")
        return length

    def _decode(self, body: bytes) -> Message:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise BadFrame(f"a frame is not a message: {error}") from None


from_front: Decoder[FromFront] = Decoder(msgspec.msgpack.Decoder(FromFront))
from_engine: Decoder[FromEngine] = Decoder(msgspec.msgpack.Decoder(FromEngine))


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    """Empty when the stream ends first."""
    parts: list[bytes] = []
    while length > 0:
        try:
            part = connection.recv(min(length, 1 << 20))
        except ConnectionError:
            return b""
        if not part:
            return b""
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
