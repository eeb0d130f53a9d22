"""Answers in this process' memory: bounded by bytes, least recently used first out."""

import time
from collections import OrderedDict
from collections.abc import Callable

from millrace_server.cache.store import Contents, Lookup


class MemoryStore:
    """Entries live `ttl` seconds."""

    ENTRY_OVERHEAD_BYTES = 300
    """What an entry costs beside its key and value (dict slot, tuple, objects' headers), so that the bound is one on memory."""

    def __init__(self, *, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._evictions = self._dropped_writes = 0

    async def get(self, key: bytes) -> bytes | Lookup:
        entry = self._entries.get(key)
        if entry is None:
            return Lookup.miss
        expires, value = entry
        if expires <= self._clock():
            self._remove(key)
            return Lookup.miss
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if key in self._entries:
            self._remove(key)
        if self._cost(key, value) > self._max_bytes:
            self._dropped_writes += 1
            return
        self._entries[key] = (self._clock() + self._ttl, value)
        self._bytes += self._cost(key, value)
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))
            self._evictions += 1

    def contents(self) -> Contents:
        return Contents(
            entries=len(self._entries),
            bytes=self._bytes,
            max_bytes=self._max_bytes,
            evictions=self._evictions,
            dropped_writes=self._dropped_writes,
        )

    async def close(self) -> None:
        return None

    def _remove(self, key: bytes) -> None:
        _, value = self._entries.pop(key)
        self._bytes -= self._cost(key, value)

    def _cost(self, key: bytes, value: bytes) -> int:
        return len(key) + len(value) + self.ENTRY_OVERHEAD_BYTES
