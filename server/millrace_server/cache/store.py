"""Where answers are kept: what every place can do, and the place that keeps nothing."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Lookup(StrEnum):
    """How a look into the cache ended."""

    hit = "hit"
    miss = "miss"
    corrupt = "corrupt"
    """Something that this service did not write lay at the key; it is deleted."""
    error = "error"
    """The store did not answer, or not in time."""
    bypass = "bypass"
    """Nobody looked: not wished, no cache, or a store that is down or busy."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a store knows of itself. None: not known here, because others write there too."""

    entries: int | None = 0
    bytes: int | None = 0
    max_bytes: int | None = 0
    evictions: int | None = 0
    dropped_writes: int = 0
    is_up: bool = True


class Store(Protocol):
    async def get(self, key: bytes) -> bytes | Lookup:
        """The value, or why there is none. Raises nothing, and takes a bounded time."""

    def put(self, key: bytes, value: bytes) -> asyncio.Future[None] | None:
        """Keeps the value if it can, and never lets the caller wait for it. The future, if there is one, is done in a bounded time, when
        the value is kept or dropped."""

    def contents(self) -> Contents: ...

    async def close(self) -> None: ...


class NoStore:
    async def get(self, key: bytes) -> bytes | Lookup:
        return Lookup.bypass

    def put(self, key: bytes, value: bytes) -> None:
        return None

    def contents(self) -> Contents:
        return Contents()

    async def close(self) -> None:
        return None
