"""The answer cache as requests see it: keys, values, and the figures of both, wherever the answers are kept."""

import asyncio
import time
from collections.abc import Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from millrace_server.cache.keys import cache_key
from millrace_server.cache.store import Lookup, Store
from millrace_server.protocol import CacheReport, Latency
from millrace_server.windows import DurationWindow

LATENCY_SECONDS = 300
LATENCY_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)


class Cache(Collector):
    """Values are bytes that the caller reads with a schema. Register it with a Prometheus registry to have its series scraped."""

    def __init__(self, store: Store, *, kind: str, secret: bytes) -> None:
        self._store = store
        self._kind = kind
        self._secret = secret
        self._lookups = dict.fromkeys(Lookup, 0)
        self._latency = DurationWindow(seconds=LATENCY_SECONDS)
        self._seconds = Histogram(
            "llm_cache_lookup_seconds", "Seconds that a look into the answer cache took.", buckets=LATENCY_BUCKETS, registry=None
        )

    def key(self, *parts: object) -> bytes:
        """The same for equal parts, in every replica that shares the store; it tells nothing of them."""
        return cache_key(self._secret, *parts)

    async def get(self, key: bytes) -> bytes | None:
        """Raises nothing, and takes a bounded time."""
        began = time.monotonic()
        found = await self._store.get(key)
        result = found if isinstance(found, Lookup) else Lookup.hit
        self._lookups[result] += 1
        if result is not Lookup.bypass:
            now = time.monotonic()
            self._seconds.observe(now - began)
            self._latency.add(now - began, now=now)
        return None if isinstance(found, Lookup) else found

    async def put(self, key: bytes, value: bytes) -> None:
        """Until the value is kept or dropped, which goes on when the caller does not wait any longer. Takes a bounded time."""
        if (writing := self._store.put(key, value)) is not None:
            await asyncio.wait({writing})

    def bypassed(self) -> None:
        """A request that is not to be answered from the cache went by."""
        self._lookups[Lookup.bypass] += 1

    def report(self) -> CacheReport:
        lookups, contents = self._lookups, self._store.contents()
        hits, misses = lookups[Lookup.hit], lookups[Lookup.miss] + lookups[Lookup.corrupt] + lookups[Lookup.error]
        (p50, p95, p99), mean = self._latency.percentiles(0.50, 0.95, 0.99, now=time.monotonic())
        return CacheReport(
            type=self._kind,
            state="up" if contents.is_up else "down",
            hits=hits,
            misses=misses,
            hit_rate=hits / (hits + misses) if hits + misses else 0.0,
            corrupt=lookups[Lookup.corrupt],
            errors=lookups[Lookup.error],
            bypassed=lookups[Lookup.bypass],
            dropped_writes=contents.dropped_writes,
            lookup=Latency(p50=p50, p95=p95, p99=p99, mean=mean),
            entries=contents.entries,
            bytes=contents.bytes,
            max_bytes=contents.max_bytes,
            evictions=contents.evictions,
        )

    def collect(self) -> Iterator[Metric]:
        contents = self._store.contents()
        lookups = CounterMetricFamily("llm_cache_lookups", "Looks into the answer cache, by how they ended.", labels=["result"])
        for result, count in self._lookups.items():
            lookups.add_metric([result], count)
        yield lookups
        yield from self._seconds.collect()
        yield CounterMetricFamily(
            "llm_cache_dropped_writes", "Answers that were not kept: the store was down, full or busy.", value=contents.dropped_writes
        )
        yield GaugeMetricFamily("llm_cache_up", "1 while the store is used, 0 while it is skipped.", value=float(contents.is_up))

    async def close(self) -> None:
        await self._store.close()
