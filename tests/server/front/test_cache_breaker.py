"""When the other side is asked again: soon at first, ever more rarely, and never by a request."""

import asyncio

from millrace_server.cache.breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker


class World:
    """Time that passes only when somebody sleeps; the other side is well after `sick` probes."""

    def __init__(self, *, sick: int) -> None:
        self.sick = sick
        self.now = 0.0
        self.pauses: list[float] = []
        self.breaker = Breaker(self.probe, clock=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def probe(self) -> bool:
        self.sick -= 1
        return self.sick < 0

    async def recover(self) -> list[float]:
        """The pauses until the breaker is closed again."""
        self.pauses = []
        self.breaker.trip()
        while self.breaker.is_open:  # noqa: ASYNC110 - no time passes here
            await asyncio.sleep(0)
        return self.pauses


async def test_one_successful_probe_closes_it() -> None:
    world = World(sick=0)
    assert not world.breaker.is_open
    world.breaker.trip()
    assert world.breaker.is_open
    assert await world.recover() == [FIRST_PAUSE_SECONDS]


async def test_pauses_double_up_to_a_bound() -> None:
    pauses = await World(sick=10).recover()
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS == max(pauses)


async def test_a_relapse_waits_longer_than_the_illness_before() -> None:
    world = World(sick=0)
    first = await world.recover()
    assert (await world.recover())[0] == 2 * first[-1]


async def test_after_a_long_health_pauses_are_short_again() -> None:
    world = World(sick=5)
    await world.recover()
    world.now += LONGEST_PAUSE_SECONDS + 1
    assert (await world.recover())[0] == FIRST_PAUSE_SECONDS


async def test_many_failures_start_one_probe() -> None:
    world = World(sick=3)
    for _ in range(100):
        world.breaker.trip()
    assert len(await world.recover()) == 4


async def test_closing_ends_the_probes() -> None:
    world = World(sick=1_000_000)
    world.breaker.trip()
    await world.breaker.close()
    asked = len(world.pauses)
    await asyncio.sleep(0)
    assert len(world.pauses) == asked
    assert world.breaker.is_open
