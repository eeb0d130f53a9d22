"""What a client may send and how long it may take: pure ASGI, so that disconnects stay visible to the routes behind it."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace_server.errors import BodyTooLarge, SlowRequest


class BodyLimits:
    """Bounds a body's size, declared or counted, and the time until its last byte, and ends one whose framing is broken (the connection
    says so). All raise inside the reader's `receive()`."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._app(scope, _LimitedBody(scope, receive, max_bytes=self._max_bytes, timeout=self._timeout), send)


class _LimitedBody:
    """A `receive` that counts. After the body it only passes on the disconnect."""

    def __init__(self, scope: Scope, receive: Receive, *, max_bytes: int, timeout: float) -> None:
        self._receive = receive
        self._state = scope.setdefault("state", {})
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._due = asyncio.get_running_loop().time() + timeout
        self._received = 0
        self._complete = False
        self._declared = next((int(value) for name, value in scope["headers"] if name == b"content-length" and value.isdigit()), 0)

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        self._check(self._declared)
        try:
            async with asyncio.timeout_at(self._due):
                message = await self._receive()
        except TimeoutError:
            raise SlowRequest(f"the request's body did not arrive within {self._timeout:g} s") from None
        if message.get("more_body", False) and (fault := self._state.get("body_fault")):
            raise fault
        self._received += len(message.get("body", b""))
        self._check(self._received)
        self._complete = not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(f"the request's body exceeds the limit of {self._max_bytes} bytes")
