"""Answers in a Redis that replicas share. Redis slow, hanging, gone, full or lying makes requests slower, never wrong and never fail.

A look takes at most `BUDGET_SECONDS`; after one that failed nobody looks until a probe succeeds. Writes happen behind the answers. What
Redis holds is trusted only with our seal on it, and read only up to a bound.
"""

import asyncio
import logging

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from millrace_server.cache.breaker import Breaker
from millrace_server.cache.keys import SEAL_BYTES, seal, unseal
from millrace_server.cache.store import Contents, Lookup

BUDGET_SECONDS = 0.05
WAIT_SECONDS = 0.02
"""Of the budget, for a connection that is not in use."""
CONNECTIONS = 16
MAX_VALUE_BYTES = 1024 * 1024
MAX_WRITES = 32
"""Writes under way at a time; more are dropped."""
PROBE_NAME = b"millrace:probe"

logger = logging.getLogger(__name__)


class _Busy(Exception):
    """All our connections are in use; nothing is known about Redis."""


class RedisStore:
    """`url` is a valid REDIS_URL; entries live `ttl` seconds, sealed with `secret`."""

    def __init__(self, url: str, *, ttl: int, secret: bytes) -> None:
        self._ttl = ttl
        self._secret = secret
        # Time is kept here, for the wait, the connecting and the command together; the client's own limits would add up.
        self._redis = Redis.from_url(
            url,
            max_connections=CONNECTIONS,
            socket_timeout=None,
            socket_connect_timeout=BUDGET_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._breaker = Breaker(self._probe)
        self._writes: set[asyncio.Task[None]] = set()
        self._dropped_writes = 0

    async def get(self, key: bytes) -> bytes | Lookup:
        if self._breaker.is_open:
            return Lookup.bypass
        try:
            # GETRANGE, because GET would read however much lies there.
            sealed = await self._ask("GETRANGE", _name(key), 0, SEAL_BYTES + MAX_VALUE_BYTES)
        except _Busy:
            return Lookup.bypass
        except Exception as error:  # noqa: BLE001 - whatever the client library raises on whatever comes back, the request goes on
            if not _is_wrong_type(error):
                self._failed(error)
                return Lookup.error
            sealed = None
        if sealed == b"":
            return Lookup.miss
        value = unseal(self._secret, key, sealed) if isinstance(sealed, bytes) else None
        if value is None:
            self._behind("UNLINK", _name(key))
            return Lookup.corrupt
        return value

    def put(self, key: bytes, value: bytes) -> asyncio.Future[None] | None:
        if len(value) > MAX_VALUE_BYTES:
            self._dropped_writes += 1
            return None
        return self._behind("SET", _name(key), seal(self._secret, key, value), "EX", self._ttl)

    def contents(self) -> Contents:
        return Contents(
            entries=None, bytes=None, max_bytes=None, evictions=None, dropped_writes=self._dropped_writes, is_up=not self._breaker.is_open
        )

    async def close(self) -> None:
        """Ends the writes that are not done within the budget, and every connection."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=BUDGET_SECONDS)
        for write in self._writes:
            write.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._breaker.close()
        await self._redis.aclose()

    async def _ask(self, *command: str | bytes | int) -> object:
        """Redis's reply. Raises _Busy, and, after the budget or for any failure, whatever the client library does."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise _Busy from None
        try:
            async with asyncio.timeout(BUDGET_SECONDS - WAIT_SECONDS):
                reply: object = await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
                return reply
        finally:
            self._free.release()

    def _behind(self, *command: str | bytes | int) -> asyncio.Future[None] | None:
        if self._breaker.is_open or len(self._writes) >= MAX_WRITES:
            self._dropped_writes += 1
            return None
        task = asyncio.create_task(self._write(*command))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return task

    async def _write(self, *command: str | bytes | int) -> None:
        try:
            await self._ask(*command)
        except (_Busy, ResponseError):
            # Full, read-only or forbidden: reading may go on.
            self._dropped_writes += 1
        except Exception as error:  # noqa: BLE001 - as above; nobody waits for a write
            self._dropped_writes += 1
            self._failed(error)

    async def _probe(self) -> bool:
        try:
            # What lies idle may be dead without knowing it.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            await self._ask("GETRANGE", PROBE_NAME, 0, 0)
        except Exception:  # noqa: BLE001 - as above; the breaker stays open
            return False
        logger.info("redis is used again")
        return True

    def _failed(self, error: Exception) -> None:
        if not self._breaker.is_open:
            # Only the kind: a server may repeat what it was sent, the password included.
            logger.warning("redis is not used until it answers again", extra={"cause": type(error).__name__})
        self._breaker.trip()


def _name(key: bytes) -> bytes:
    return b"millrace:" + key.hex().encode()


def _is_wrong_type(error: Exception) -> bool:
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")
