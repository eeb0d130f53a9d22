"""Work for a client that may leave: it ends when the client does."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from millrace_server.errors import ClientLeft

Result = TypeVar("Result")


async def while_connected(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`, or ClientLeft once `work` is cancelled. The request's body must have been read."""
    loop = asyncio.get_running_loop()

    async def departure() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        presence.reschedule(loop.time())

    watching: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(None) as presence:
            watching = loop.create_task(departure())
            return await work
    except TimeoutError:
        if not presence.expired():
            raise
        raise ClientLeft("the client left before its answer") from None
    finally:
        if watching is not None:
            watching.cancel()
