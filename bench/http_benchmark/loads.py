"""Who asks: closed loops, open loops, a probe, and the crowd of a soak. All of it in one asyncio loop."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from http_benchmark.client import Answer, Client

COMPLETIONS = "/v1/completions"
Body = dict[str, Any]


async def closed(port: int, body: Body, *, clients: int, seconds: float) -> list[Answer]:
    """Each client asks, reads to the end and asks again, until the time is over; what was begun is finished."""
    end = time.monotonic() + seconds
    answers: list[Answer] = []

    async def loop() -> None:
        client = Client(port)
        while time.monotonic() < end:
            answers.append(await client.ask(COMPLETIONS, body))
        client.close()

    await asyncio.gather(*(loop() for _ in range(clients)))
    return answers


async def one_by_one(port: int, bodies: Iterable[Body]) -> list[Answer]:
    """A lone client that keeps its connection."""
    client = Client(port)
    answers = [await client.ask(COMPLETIONS, body) for body in bodies]
    client.close()
    return answers


async def opened(port: int, body: Body, *, rate: float, seconds: float, seed: int) -> list[Answer]:
    """Arrivals of a Poisson process with `rate` per second, whatever happened to those before. Connections are pooled."""
    chance = random.Random(seed)
    idle: list[Client] = []
    asked: list[asyncio.Task[Answer]] = []

    async def ask() -> Answer:
        client = idle.pop() if idle else Client(port)
        answer = await client.ask(COMPLETIONS, body)
        idle.append(client)
        return answer

    begin = time.monotonic()
    at = chance.expovariate(rate)
    while at < seconds:
        await asyncio.sleep(max(0.0, begin + at - time.monotonic()))
        asked.append(asyncio.create_task(ask()))
        at += chance.expovariate(rate)
    answers = await asyncio.gather(*asked)
    for client in idle:
        client.close()
    return answers


async def beside(load: Callable[[], Any], probe: Callable[[], Any], *, every: float) -> tuple[list[Answer], list[Answer]]:
    """The answers of the load, and those of a probe that is sent again and again until the load has ended."""
    probed: list[Answer] = []

    async def repeat() -> None:
        while True:
            probed.append(await probe())
            await asyncio.sleep(every)

    task = asyncio.create_task(repeat())
    try:
        return await load(), probed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def crowd(port: int, *, clients: int, seconds: float, seed: int) -> dict[str, int]:
    """What a server meets in a day, mixed by chance: answers, streams, repeated prompts, wrong requests, clients that leave, deadlines that
    pass. Returns how often each was done."""
    end = time.monotonic() + seconds
    done: dict[str, int] = {}

    async def loop(chance: random.Random) -> None:
        client = Client(port)
        while time.monotonic() < end:
            kind = chance.choice(("answer", "answer", "stream", "stream", "repeated", "wrong", "leaves", "late"))
            done[kind] = done.get(kind, 0) + 1
            fresh = f"{chance.random()} {'what is new? ' * chance.randint(1, 8)}"
            body: Body = {"model": "bench", "prompt": fresh, "max_tokens": chance.randint(1, 48), "temperature": 0}
            if kind == "leaves":
                await client.leave(COMPLETIONS, {**body, "stream": True, "ignore_eos": True}, after=chance.uniform(0, 0.2))
            elif kind == "late":
                await client.ask(COMPLETIONS, {**body, "ignore_eos": True}, deadline=0.05)
            elif kind == "wrong":
                await client.ask(COMPLETIONS, {**body, "max_tokens": -1})
            else:
                prompt = "again" if kind == "repeated" else fresh
                await client.ask(COMPLETIONS, {**body, "prompt": prompt, "stream": kind == "stream"})
        client.close()

    await asyncio.gather(*(loop(random.Random(seed + number)) for number in range(clients)))
    return done
