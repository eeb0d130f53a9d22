"""The cache in memory: bounded, forgetful, and never fooled by a clever prompt."""

from hypothesis import given
from hypothesis import strategies as st

from millrace_server.cache import MemoryCache, cache_for, cache_key
from millrace_server.settings import CacheType, ServerSettings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_entry_lives_for_its_ttl() -> None:
    clock = Clock()
    cache = MemoryCache(max_bytes=10_000, ttl=10, clock=clock)
    await cache.put(b"key", b"value")
    clock.now = 9.9
    assert await cache.get(b"key") == b"value"
    clock.now = 10.0
    assert await cache.get(b"key") is None
    report = cache.report()
    assert (report.entries, report.bytes, report.hits, report.misses, report.hit_rate) == (0, 0, 1, 1, 0.5)


async def test_the_least_recently_used_entry_makes_room() -> None:
    room_for_two = 2 * (1 + 100 + MemoryCache.ENTRY_OVERHEAD_BYTES)
    cache = MemoryCache(max_bytes=room_for_two, ttl=10)
    await cache.put(b"a", bytes(100))
    await cache.put(b"b", bytes(100))
    await cache.get(b"a")
    await cache.put(b"c", bytes(100))
    assert [await cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    report = cache.report()
    assert (report.entries, report.evictions, report.bytes) == (2, 1, room_for_two)


async def test_a_value_above_the_bound_is_not_kept_and_evicts_nothing() -> None:
    cache = MemoryCache(max_bytes=1000, ttl=10)
    await cache.put(b"a", b"small")
    await cache.put(b"b", bytes(1000))
    assert await cache.get(b"a") == b"small"
    assert await cache.get(b"b") is None


async def test_writing_again_replaces() -> None:
    cache = MemoryCache(max_bytes=1000, ttl=10)
    await cache.put(b"a", b"first")
    await cache.put(b"a", b"second")
    assert await cache.get(b"a") == b"second"
    assert cache.report().entries == 1


async def test_no_cache_keeps_nothing() -> None:
    cache = cache_for(ServerSettings(MODEL_NAME="m", CACHE_TYPE=CacheType.none))
    await cache.put(b"a", b"value")
    assert await cache.get(b"a") is None
    assert cache.report().type == "none"


parts = st.lists(st.text() | st.integers() | st.floats(allow_nan=False) | st.none(), max_size=4)


@given(parts, parts)
def test_different_requests_never_share_a_key(first: list[object], second: list[object]) -> None:
    same = [(type(part), str(part)) for part in first] == [(type(part), str(part)) for part in second]
    assert (cache_key(b"secret", *first) == cache_key(b"secret", *second)) == same


def test_a_key_depends_on_the_secret() -> None:
    assert cache_key(b"one", "prompt") != cache_key(b"two", "prompt")
