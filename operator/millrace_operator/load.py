"""Asks replicas for their load. An answer is hostile until parsed: bounded in size, in time and in value."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import aiohttp

from millrace_operator.autoscale import Reading
from millrace_operator.demand import Load

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 * 1024
MAX_BOOT_ID = 64
MAX_COUNT = 2**53
"""Beyond it a float no longer counts by one."""


class InvalidLoad(ValueError):
    """A replica's answer that cannot be trusted: which field, and why."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that an honest replica can report."""

    slots: int
    queue: int


def parse_load(answer: bytes, *, limits: Limits) -> Load:
    """Unknown fields are ignored; queued and running are clamped to the limits; counters come with a `boot_id`. Raises InvalidLoad."""
    try:
        fields = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise InvalidLoad(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidLoad("not a JSON object")
    load = Load(queued=min(_count(fields, "queued"), limits.queue), running=min(_count(fields, "running"), limits.slots))
    boot_id = fields.get("boot_id", "")
    if not isinstance(boot_id, str) or len(boot_id) > MAX_BOOT_ID:
        raise InvalidLoad(f"boot_id is {boot_id!r:.40}, not a short text")
    if not boot_id:
        return load
    return replace(
        load,
        boot_id=boot_id,
        arrivals=min(_count(fields, "arrivals"), MAX_COUNT),
        completed=min(_count(fields, "completed"), MAX_COUNT),
        running_seconds=_seconds(fields, "running_seconds"),
    )


def _count(fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidLoad(f"{name} is {value!r:.40}, not a count")
    return value


def _seconds(fields: dict[str, object], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        raise InvalidLoad(f"{name} is {value!r:.40}, not a number of seconds")
    return float(value)


class LoadReader:
    """GET /internal/load of every address, in parallel, `timeout` seconds for each."""

    def __init__(self, *, port: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._timeout = timeout
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def read(self, addresses: Sequence[str], *, limits: Limits) -> Reading:
        answers = await asyncio.gather(*(self._ask(address, limits) for address in addresses))
        told = [(address, load) for address, load in zip(addresses, answers, strict=True) if load is not None]
        return Reading(
            at=self._clock(),
            ready=len(addresses),
            loads=tuple(load for _, load in told),
            addresses=tuple(address for address, _ in told),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, address: str, limits: Limits) -> Load | None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64, use_dns_cache=False)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/internal/load"
        try:
            async with asyncio.timeout(self._timeout), self._session.get(url, allow_redirects=False) as response:
                return parse_load(await _body(response), limits=limits)
        except (TimeoutError, aiohttp.ClientError, OSError, InvalidLoad) as error:
            logger.debug("no load from %s: %s", address, error or type(error).__name__)
            return None


async def _body(response: aiohttp.ClientResponse) -> bytes:
    if response.status != 200:
        raise InvalidLoad(f"answered {response.status}")
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise InvalidLoad(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return body
