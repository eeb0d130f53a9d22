"""What the front gets of one request that it handed to the engine: its outputs, and how they may end."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from millrace_server.engine.messages import Output, Submit


class EngineUnavailable(Exception):
    """The engine is loading, restarting or dead: the request may be tried again later."""


class QuarantinedRequest(Exception):
    """The engine died more than once while it computed this request: trying again would only kill it again."""


class RequestStream(AsyncIterator[Output]):
    """One request's outputs. Ends after the one with a finish_reason, or when cancelled; raises EngineUnavailable when the engine dies."""

    def __init__(self, request: Submit) -> None:
        self.request = request
        self.has_begun = False
        """Whether it had an output, so that it was given a slot."""
        self._arrived: deque[Output | EngineUnavailable | None] = deque()
        self._something = asyncio.Event()

    async def __anext__(self) -> Output:
        while not self._arrived:
            self._something.clear()
            await self._something.wait()
        item = self._arrived[0]
        if isinstance(item, Output):
            self._arrived.popleft()
            return item
        if item is None:
            raise StopAsyncIteration
        raise item

    def put(self, item: Output | EngineUnavailable | None) -> None:
        """An output, or the end: None, or why."""
        self.has_begun |= isinstance(item, Output)
        self._arrived.append(item)
        self._something.set()
