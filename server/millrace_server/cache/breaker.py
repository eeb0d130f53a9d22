"""Whether another program is worth asking. After a failure nobody asks it until a probe, made beside all requests, finds it well."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

FIRST_PAUSE_SECONDS = 0.1
"""Short, because a busy event loop of our own looks like a failure too."""
LONGEST_PAUSE_SECONDS = 5.0


class Breaker:
    """`probe` says whether the other side works, in a bounded time, and raises nothing. Each pause is twice the last one, until the other
    side was well for `LONGEST_PAUSE_SECONDS`."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[bool]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._sleep = sleep
        self._recovery: asyncio.Task[None] | None = None
        self._recovered = float("-inf")
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def is_open(self) -> bool:
        return self._recovery is not None

    def trip(self) -> None:
        """Nobody asks from now on, until a probe succeeds."""
        if self._recovery is not None:
            return
        if self._clock() - self._recovered > LONGEST_PAUSE_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._recovery = asyncio.create_task(self._recover())

    async def close(self) -> None:
        """Ends the probes; the breaker stays as it is."""
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery

    async def _recover(self) -> None:
        is_well = False
        while not is_well:
            await self._sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            is_well = await self._probe()
        self._recovered = self._clock()
        self._recovery = None
