"""Keys, the cache in memory, and the figures: bounded, forgetful, counted, and never fooled by a clever prompt."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from millrace_server.cache import Cache, cache_for
from millrace_server.cache.keys import SEAL_BYTES, cache_key, seal, unseal
from millrace_server.cache.memory import MemoryStore
from millrace_server.cache.store import Contents, Lookup
from millrace_server.settings import CacheType, ServerSettings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_entry_lives_for_its_ttl() -> None:
    clock = Clock()
    store = MemoryStore(max_bytes=10_000, ttl=10, clock=clock)
    store.put(b"key", b"value")
    clock.now = 9.9
    assert await store.get(b"key") == b"value"
    clock.now = 10.0
    assert await store.get(b"key") is Lookup.miss
    assert (store.contents().entries, store.contents().bytes) == (0, 0)


async def test_the_least_recently_used_entry_makes_room() -> None:
    room_for_two = 2 * (1 + 100 + MemoryStore.ENTRY_OVERHEAD_BYTES)
    store = MemoryStore(max_bytes=room_for_two, ttl=10)
    store.put(b"a", bytes(100))
    store.put(b"b", bytes(100))
    await store.get(b"a")
    store.put(b"c", bytes(100))
    assert [await store.get(key) for key in (b"a", b"b", b"c")] == [bytes(100), Lookup.miss, bytes(100)]
    assert store.contents() == Contents(entries=2, evictions=1, bytes=room_for_two, max_bytes=room_for_two)


async def test_a_value_above_the_bound_is_not_kept_and_evicts_nothing() -> None:
    store = MemoryStore(max_bytes=1000, ttl=10)
    store.put(b"a", b"small")
    store.put(b"b", bytes(1000))
    assert await store.get(b"a") == b"small"
    assert await store.get(b"b") is Lookup.miss
    assert store.contents().dropped_writes == 1


async def test_writing_again_replaces() -> None:
    store = MemoryStore(max_bytes=1000, ttl=10)
    store.put(b"a", b"first")
    store.put(b"a", b"second")
    assert await store.get(b"a") == b"second"
    assert store.contents().entries == 1


async def test_no_cache_keeps_nothing() -> None:
    cache = cache_for(ServerSettings(MODEL_NAME="m", CACHE_TYPE=CacheType.none))
    await cache.put(b"a", b"value")
    assert await cache.get(b"a") is None
    report = cache.report()
    assert (report.type, report.state, report.bypassed, report.misses) == ("none", "up", 1, 0)


class Told:
    """A store that says what it is told to."""

    def __init__(self, *told: bytes | Lookup, is_up: bool = True) -> None:
        self._told = list(told)
        self._is_up = is_up

    async def get(self, key: bytes) -> bytes | Lookup:
        return self._told.pop(0)

    def put(self, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def contents(self) -> Contents:
        return Contents(entries=None, bytes=None, max_bytes=None, evictions=None, dropped_writes=7, is_up=self._is_up)

    async def close(self) -> None:
        raise NotImplementedError


async def figures_of(*told: bytes | Lookup, is_up: bool = True) -> Cache:
    cache = Cache(Told(*told, is_up=is_up), kind="redis", secret=b"secret")
    for _ in told:
        await cache.get(b"key")
    return cache


async def test_every_look_is_counted_once_by_how_it_ended() -> None:
    cache = await figures_of(b"a", b"b", b"c", Lookup.miss, Lookup.corrupt, Lookup.error, Lookup.bypass)
    cache.bypassed()
    report = cache.report()
    assert (report.hits, report.misses, report.hit_rate) == (3, 3, 0.5)
    assert (report.corrupt, report.errors, report.bypassed, report.dropped_writes) == (1, 1, 2, 7)
    assert (report.type, report.state, report.entries, report.evictions) == ("redis", "up", None, None)
    assert 0 < report.lookup.p50 <= report.lookup.p99


async def test_a_store_that_is_skipped_is_reported_as_down() -> None:
    assert (await figures_of(is_up=False)).report().state == "down"


async def test_prometheus_reads_the_same_figures() -> None:
    registry = CollectorRegistry()
    registry.register(await figures_of(b"a", b"b", Lookup.miss, Lookup.bypass, is_up=False))
    counts = {result.value: registry.get_sample_value("llm_cache_lookups_total", {"result": result.value}) for result in Lookup}
    assert counts == {"hit": 2, "miss": 1, "corrupt": 0, "error": 0, "bypass": 1}
    assert registry.get_sample_value("llm_cache_lookup_seconds_count") == 3
    assert registry.get_sample_value("llm_cache_dropped_writes_total") == 7
    assert registry.get_sample_value("llm_cache_up") == 0


@given(key=st.binary(max_size=40), value=st.binary(max_size=40), at=st.integers(0), bit=st.integers(0, 7))
def test_a_seal_holds_for_its_key_and_value_alone(key: bytes, value: bytes, at: int, bit: int) -> None:
    sealed = seal(b"secret", key, value)
    assert unseal(b"secret", key, sealed) == value
    assert unseal(b"another", key, sealed) is None
    assert unseal(b"secret", key + b"x", sealed) is None
    forged = bytearray(sealed)
    forged[at % len(sealed)] ^= 1 << bit
    assert unseal(b"secret", key, bytes(forged)) is None
    assert unseal(b"secret", key, sealed[: at % len(sealed)]) is None


def test_a_value_cannot_be_moved_into_its_key() -> None:
    sealed = seal(b"secret", b"ab", b"c")
    assert unseal(b"secret", b"a", sealed[:-1] + b"bc") is None


def test_a_key_is_never_a_seal() -> None:
    spelled, length = b"str:k", (5).to_bytes(8, "big")
    assert cache_key(b"secret", "k", "t") != seal(b"secret", spelled, length + b"str:t")[:SEAL_BYTES]


parts = st.lists(st.text() | st.integers() | st.floats(allow_nan=False) | st.none(), max_size=4)


@given(parts, parts)
def test_different_requests_never_share_a_key(first: list[object], second: list[object]) -> None:
    same = [(type(part), str(part)) for part in first] == [(type(part), str(part)) for part in second]
    assert (cache_key(b"secret", *first) == cache_key(b"secret", *second)) == same


def test_a_key_depends_on_the_secret() -> None:
    assert cache_key(b"one", "prompt") != cache_key(b"two", "prompt")
