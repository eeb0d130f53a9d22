"""The cache in a real Redis: shared by replicas, and, whatever Redis does or holds, never an error, a wrong answer or a long wait."""

import asyncio
import contextlib
import json
import logging
import pickle
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from redis.exceptions import ResponseError

from cluster.process import wait_until
from millrace_server.cache.keys import SEAL_BYTES, seal
from millrace_server.cache.redis import CONNECTIONS, MAX_VALUE_BYTES, MAX_WRITES, RedisStore
from millrace_server.cache.store import Lookup
from millrace_server.recording import Recording
from running_redis import PASSWORD, RunningRedis, eventually

SECRET = b"s" * 32
KEY = b"k" * 32
OTHER_KEY = b"o" * 32
NAME = b"millrace:" + KEY.hex().encode()
GENEROUS_SECONDS = 5.0
"""Far above the budget of 50 ms, far below what a client library waits by itself."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RunningRedis]:
    with RunningRedis(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(url: str, *, secret: bytes = SECRET) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, ttl=60, secret=secret)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(redis: RunningRedis) -> AsyncIterator[RedisStore]:
    async with opened(redis.url) as opened_store:
        yield opened_store


async def look(store: RedisStore, key: bytes = KEY) -> bytes | Lookup:
    """What Redis has to say, once this busy machine lets it answer in time."""
    return await eventually(lambda: store.get(key), lambda found: found not in (Lookup.bypass, Lookup.error))


async def keep(store: RedisStore, value: bytes, key: bytes = KEY) -> None:
    async def written() -> bytes | Lookup:
        store.put(key, value)
        return await store.get(key)

    await eventually(written, lambda found: found == value)


async def stays_quick(store: RedisStore) -> list[bytes | Lookup]:
    """Many looks at once, then one more, in no time worth mentioning; returns how they ended."""
    began = time.monotonic()
    found = [*await asyncio.gather(*(store.get(KEY) for _ in range(100))), await store.get(KEY)]
    assert time.monotonic() - began < GENEROUS_SECONDS
    return found


async def is_skipped(store: RedisStore) -> None:
    """The first look fails, and from then on nobody looks."""
    found = await stays_quick(store)
    assert Lookup.error in found
    assert set(found) <= {Lookup.error, Lookup.bypass}
    assert found[-1] is Lookup.bypass
    assert not store.contents().is_up


async def test_what_one_replica_wrote_another_one_reads(redis: RunningRedis, store: RedisStore) -> None:
    assert await look(store) is Lookup.miss
    await keep(store, b"answer")
    async with opened(redis.url) as replica:
        assert await look(replica) == b"answer"


async def test_an_entry_in_redis_ends_with_its_ttl(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    assert 0 < redis.command("TTL", NAME) <= 60


async def test_another_services_secret_reads_nothing(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    async with opened(redis.url, secret=b"another") as stranger:
        assert await look(stranger) is Lookup.corrupt


GOOD = seal(SECRET, KEY, b"answer")
POISON = {
    "a flipped bit": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "a flipped bit in the seal": bytes([GOOD[0] ^ 1]) + GOOD[1:],
    "cut short": GOOD[:-1],
    "less than a seal": GOOD[: SEAL_BYTES - 1],
    "another key's value": seal(SECRET, OTHER_KEY, b"answer"),
    "another secret's value": seal(b"guessed", KEY, b"answer"),
    "deep JSON": b"[" * 100_000,
    "eight megabytes": GOOD + bytes(8 * 1024 * 1024),
    "a pickle": pickle.dumps(Path("/")),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_a_poisoned_value_is_a_miss_and_is_deleted(redis: RunningRedis, store: RedisStore, poison: bytes) -> None:
    redis.command("SET", NAME, poison)
    assert await look(store) is Lookup.corrupt
    await eventually(lambda: store.get(KEY), lambda found: found is Lookup.miss)
    await keep(store, b"answer")


class Payload:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._canary,)


async def test_code_in_a_value_is_never_run_whoever_sealed_it(redis: RunningRedis, store: RedisStore, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    touch = f"__import__('os').system('touch {canary}')"
    codes = [pickle.dumps(Payload(canary)), touch.encode(), json.dumps({"__reduce__": ["os.system", [f"touch {canary}"]]}).encode()]
    codes.append(f"!!python/object/apply:os.system ['touch {canary}']".encode())
    for code in codes:
        redis.command("SET", NAME, seal(SECRET, KEY, code))
        assert await look(store) == code
        with pytest.raises(msgspec.DecodeError):
            Recording.decode(code)
    assert not canary.exists()
    pickle.loads(codes[0])
    assert canary.exists(), "it would have sung"


async def test_a_huge_foreign_value_is_not_fetched(redis: RunningRedis, store: RedisStore) -> None:
    redis.command("SETRANGE", NAME, 100 * 1024 * 1024, "x")
    sent = redis.sent_bytes()
    assert await look(store) is Lookup.corrupt
    # Several tries on a busy machine; one look at all of it would already be more.
    assert redis.sent_bytes() - sent < 32 * 1024 * 1024


async def test_another_type_at_the_key_is_a_miss_and_is_deleted(redis: RunningRedis, store: RedisStore) -> None:
    redis.command("RPUSH", NAME, "a", "b")
    assert await look(store) is Lookup.corrupt
    await eventually(lambda: store.get(KEY), lambda found: found is Lookup.miss)
    assert store.contents().is_up


async def test_a_value_above_the_bound_is_not_written(redis: RunningRedis, store: RedisStore) -> None:
    store.put(KEY, bytes(MAX_VALUE_BYTES + 1))
    assert store.contents().dropped_writes == 1
    await keep(store, b"small", OTHER_KEY)
    assert await look(store) is Lookup.miss


async def test_the_largest_value_fits(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, bytes(MAX_VALUE_BYTES))


async def test_a_flushed_redis_is_filled_again(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    redis.command("FLUSHALL")
    assert await look(store) is Lookup.miss
    await keep(store, b"answer")


async def test_a_redis_that_is_flushed_again_and_again_under_load_costs_misses_and_no_error(redis: RunningRedis, store: RedisStore) -> None:
    keys = [number.to_bytes(32, "big") for number in range(20)]
    found: list[bytes | Lookup] = []
    for _ in range(20):
        for key in keys:
            store.put(key, b"of" + key)
        looks = asyncio.gather(*(store.get(key) for key in keys))
        await asyncio.to_thread(redis.command, "FLUSHALL")
        found += await looks
    right = {b"of" + key for key in keys} | {Lookup.miss, Lookup.error, Lookup.bypass}  # a busy machine may be late
    assert set(found) <= right
    await keep(store, b"answer")


async def test_a_frozen_redis_is_skipped_and_used_again_when_it_thaws(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    redis.freeze()
    await is_skipped(store)
    redis.thaw()
    assert await look(store) == b"answer"
    assert store.contents().is_up


async def test_a_killed_redis_is_skipped_and_used_again_after_its_restart(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    redis.kill()
    await is_skipped(store)
    redis.start()
    assert await look(store) is Lookup.miss
    await keep(store, b"answer")


async def test_a_redis_killed_under_load_ends_no_look_and_is_used_again(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    found: list[bytes | Lookup] = []
    is_over = asyncio.Event()

    async def load() -> None:
        while not is_over.is_set():
            found.append(await store.get(KEY))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as clients:
        for _ in range(20):
            clients.create_task(load())
        await eventually(lambda: store.get(KEY), lambda each: each == b"answer")
        redis.kill()
        await eventually(lambda: store.get(KEY), lambda each: each is Lookup.bypass)
        redis.start()
        await look(store)
        is_over.set()
    assert set(found) <= {b"answer", Lookup.miss, Lookup.error, Lookup.bypass}
    assert found.count(Lookup.error) < found.count(Lookup.bypass), "those who were under way; from then on nobody looked"


async def test_a_redis_behind_a_slow_network_is_skipped_and_nobody_queues_for_it(redis: RunningRedis) -> None:
    async with slow_road(redis.port) as road, opened(redis.url.replace(str(redis.port), str(road.port))) as store:
        await keep(store, b"answer")
        road.delay = 0.2
        await is_skipped(store)
        dropped = store.contents().dropped_writes
        for number in range(100):
            assert store.put(number.to_bytes(32, "big"), b"answer") is None
        assert store.contents().dropped_writes == dropped + 100
        road.delay = 0
        assert await look(store) == b"answer"


@dataclass
class Road:
    port: int
    delay: float = 0
    """Seconds that everything takes, there and back."""


@contextlib.asynccontextmanager
async def slow_road(port: int) -> AsyncIterator[Road]:
    """To a port of loopback."""

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(target):
            while data := await source.read(65536):
                await asyncio.sleep(road.delay)
                target.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    road = Road(server.sockets[0].getsockname()[1])
    async with server:
        yield road


async def test_a_redis_that_is_absent_at_start_is_found_later(redis: RunningRedis) -> None:
    redis.kill()
    async with opened(redis.url) as store:
        await is_skipped(store)
        redis.start()
        assert await look(store) is Lookup.miss


def causes(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Why Redis was not used for a while."""
    return {record.__dict__["cause"] for record in caplog.records if "cause" in record.__dict__}


async def test_a_full_redis_takes_no_writes_but_is_still_read(
    redis: RunningRedis, store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    await keep(store, b"answer")
    redis.command("CONFIG", "SET", "maxmemory", "1")
    dropped = store.contents().dropped_writes
    store.put(OTHER_KEY, b"answer")
    assert await look(store) == b"answer"
    await eventually(lambda: store.get(KEY), lambda found: store.contents().dropped_writes > dropped)
    assert await look(store, OTHER_KEY) is Lookup.miss
    assert causes(caplog) <= {"TimeoutError"}


async def test_a_read_only_replica_is_still_read(redis: RunningRedis, store: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    await keep(store, b"answer")
    redis.command("REPLICAOF", "127.0.0.1", "1")
    dropped = store.contents().dropped_writes
    store.put(OTHER_KEY, b"answer")
    await eventually(lambda: store.get(KEY), lambda found: store.contents().dropped_writes > dropped)
    assert await look(store) == b"answer"
    assert causes(caplog) <= {"TimeoutError"}


async def test_a_redis_that_cannot_save_takes_no_writes_but_is_still_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with RunningRedis(folder) as redis:
        async with opened(redis.url) as store:
            await keep(store, b"answer")
            shutil.rmtree(folder)
            redis.command("CONFIG", "SET", "save", "3600 1")
            redis.command("BGSAVE")
            wait_until(lambda: refuses_writes(redis), "it refuses writes", seconds=GENEROUS_SECONDS)
            dropped = store.contents().dropped_writes
            store.put(OTHER_KEY, b"answer")
            await eventually(lambda: store.get(KEY), lambda found: store.contents().dropped_writes > dropped)
            assert await look(store) == b"answer"
            assert causes(caplog) <= {"TimeoutError"}


def refuses_writes(redis: RunningRedis) -> bool:
    try:
        redis.command("SET", "probe", "x")
    except ResponseError as error:
        return "MISCONF" in str(error)
    return False


async def test_a_wrong_password_means_no_redis_and_is_never_logged(redis: RunningRedis, caplog: pytest.LogCaptureFixture) -> None:
    async def told() -> set[str]:
        async with opened(redis.url.replace(PASSWORD, "wrong-secret")) as store:
            await is_skipped(store)
        return causes(caplog)

    with caplog.at_level(logging.DEBUG):
        # A busy machine may first be too slow to hear why.
        await eventually(told, lambda found: "AuthenticationError" in found)
    assert "wrong-secret" not in str([vars(each) for each in caplog.records])


@contextlib.asynccontextmanager
async def impostor(reply: bytes | None, *, delay: float = 0) -> AsyncIterator[str]:
    """The REDIS_URL of something that answers everything with `reply` after `delay` seconds; None: never."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                if reply is not None:
                    await asyncio.sleep(delay)
                    writer.write(reply)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


NONSENSE = {
    "silence": None,
    "a web server": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a length that is no number": b"$many\r\n",
    "more than it sends": b"$1000000000\r\nabc",
    "a deep list": b"*1\r\n" * 50_000,
    "an unknown type": b"\x00\xff\xfe\r\n",
    "an integer": b":1\r\n",
    "a start that takes long": b"-LOADING Redis is loading the dataset in memory\r\n",
    "a password that it wants again": b"-NOAUTH Authentication required.\r\n",
    "a repeated password": f"-ERR unknown command 'AUTH', with args beginning with: '{PASSWORD}'\r\n".encode(),
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE.keys())
async def test_something_that_is_no_redis_is_skipped(reply: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with impostor(reply) as url, opened(url) as store:
            await is_skipped(store)
    assert PASSWORD not in str([vars(record) for record in caplog.records])


async def test_a_redis_that_answers_late_is_skipped() -> None:
    async with impostor(b"+OK\r\n", delay=0.2) as url, opened(url) as store:
        await is_skipped(store)


async def test_writes_are_bounded_and_never_waited_for(redis: RunningRedis, store: RedisStore) -> None:
    redis.freeze()
    began = time.monotonic()
    for number in range(MAX_WRITES + 50):
        store.put(number.to_bytes(32, "big"), b"answer")
    assert store.contents().dropped_writes == 50
    assert time.monotonic() - began < GENEROUS_SECONDS
    # Those under way fail one by one, and each is counted.
    await eventually(lambda: store.get(KEY), lambda found: store.contents().dropped_writes == MAX_WRITES + 50)


async def test_a_crowd_shares_a_few_connections(redis: RunningRedis, store: RedisStore) -> None:
    await asyncio.gather(*(store.get(number.to_bytes(32, "big")) for number in range(300)))
    assert redis.foreign_connections() <= CONNECTIONS
    assert await look(store) is Lookup.miss


async def test_requests_that_leave_while_they_look_harm_nobody(redis: RunningRedis, store: RedisStore) -> None:
    await keep(store, b"answer")
    for _ in range(5):
        looks = [asyncio.create_task(store.get(number.to_bytes(32, "big"))) for number in range(50)]
        await asyncio.sleep(0)
        for leaving in looks:
            leaving.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        assert await look(store) == b"answer"


async def test_a_closed_store_leaves_no_connection(redis: RunningRedis) -> None:
    async with opened(redis.url) as store:
        await keep(store, b"answer")
        assert redis.foreign_connections() > 0

    async def connections() -> int:
        return redis.foreign_connections()

    await eventually(connections, lambda left: left == 0)
