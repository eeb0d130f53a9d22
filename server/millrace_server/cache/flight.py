"""Equal questions at the same time: one is computed, the others wait for its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

MAX_WAITING = 10_000
"""Calls that wait, over all keys. Those above it compute for themselves, and meet the limits that computing has."""


class SingleFlight(Generic[Answer]):
    """Per key, the first call computes. When it fails, or is cancelled because its client left, only its own caller hears of it: the call
    that waits longest computes next."""

    def __init__(self) -> None:
        # Per key that is being computed: who waits, the longest first. A waiter gets the answer in a tuple, or None: its turn to compute.
        # One that was cancelled stands here until its task runs again.
        self._flights: dict[bytes, dict[asyncio.Future[tuple[Answer] | None], None]] = {}
        self._waiting = 0

    async def run(self, key: bytes, compute: Callable[[], Awaitable[Answer]], *, timeout: float) -> Answer:  # noqa: ASYNC109 - of the wait
        """What `compute` returns, here or in another call with this key. Raises what `compute` raises here, and TimeoutError after
        `timeout` seconds of waiting for others; `compute` keeps a deadline of its own."""
        if key not in self._flights:
            self._flights[key] = {}
        elif self._waiting >= MAX_WAITING:
            return await compute()
        elif (answer := await self._wait(key, timeout)) is not None:
            return answer[0]
        try:
            result = await compute()
        except BaseException:
            self._hand_over(key)
            raise
        for waiter in self._flights.pop(key):
            if not waiter.done():
                waiter.set_result((result,))
        return result

    async def _wait(self, key: bytes, seconds: float) -> tuple[Answer] | None:
        waiters = self._flights[key]
        turn: asyncio.Future[tuple[Answer] | None] = asyncio.get_running_loop().create_future()
        waiters[turn] = None
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException:
            waiters.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.result() is None:
                # Our turn came in the moment in which we left.
                self._hand_over(key)
            raise
        finally:
            self._waiting -= 1

    def _hand_over(self, key: bytes) -> None:
        waiters = self._flights[key]
        while waiters:
            turn = next(iter(waiters))
            del waiters[turn]
            if not turn.done():
                turn.set_result(None)
                return
        del self._flights[key]
