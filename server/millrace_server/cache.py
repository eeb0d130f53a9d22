"""Answers that need no model: an exact-match cache in memory. Its interface is asynchronous, so that a cache elsewhere fits in.

Keys are HMACs, so that neither a key nor its length tells a prompt; values are bytes that the caller reads with a schema.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from millrace_server.protocol import CacheReport
from millrace_server.settings import CacheType, ServerSettings


class Cache(Protocol):
    async def get(self, key: bytes) -> bytes | None: ...

    async def put(self, key: bytes, value: bytes) -> None: ...

    def report(self) -> CacheReport: ...


class NoCache:
    async def get(self, key: bytes) -> bytes | None:
        return None

    async def put(self, key: bytes, value: bytes) -> None:
        return None

    def report(self) -> CacheReport:
        return CacheReport(type="none", hits=0, misses=0, hit_rate=0.0, entries=0, bytes=0, max_bytes=0, evictions=0)


class MemoryCache:
    """Bounded by bytes, least recently used first out; entries live `ttl` seconds."""

    ENTRY_OVERHEAD_BYTES = 300
    """What an entry costs beside its key and value (dict slot, tuple, objects' headers), so that the bound is one on memory."""

    def __init__(self, *, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    async def get(self, key: bytes) -> bytes | None:
        entry = self._entries.get(key)
        if entry is not None and entry[0] <= self._clock():
            self._remove(key)
            entry = None
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return entry[1]

    async def put(self, key: bytes, value: bytes) -> None:
        if key in self._entries:
            self._remove(key)
        if self._cost(key, value) > self._max_bytes:
            return
        self._entries[key] = (self._clock() + self._ttl, value)
        self._bytes += self._cost(key, value)
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))
            self._evictions += 1

    def report(self) -> CacheReport:
        looked = self._hits + self._misses
        return CacheReport(
            type="memory",
            hits=self._hits,
            misses=self._misses,
            hit_rate=self._hits / looked if looked else 0.0,
            entries=len(self._entries),
            bytes=self._bytes,
            max_bytes=self._max_bytes,
            evictions=self._evictions,
        )

    def _remove(self, key: bytes) -> None:
        _, value = self._entries.pop(key)
        self._bytes -= self._cost(key, value)

    def _cost(self, key: bytes, value: bytes) -> int:
        return len(key) + len(value) + self.ENTRY_OVERHEAD_BYTES


def cache_key(secret: bytes, *parts: object) -> bytes:
    """HMAC over the parts, each with its length and type in front: no choice of texts makes two lists of parts collide."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode("utf-8", "surrogatepass")
        mac.update(len(encoded).to_bytes(8, "big"))
        mac.update(encoded)
    return mac.digest()


def cache_for(settings: ServerSettings) -> Cache:
    if settings.cache_type is CacheType.none:
        return NoCache()
    return MemoryCache(max_bytes=settings.cache_max_bytes, ttl=settings.cache_ttl)
