"""Clients that each ask, read the answer to its end, and ask again. They note when tokens arrive."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing

from engine_benchmark.engine import Engine, EngineFailed, Request
from engine_benchmark.figures import Timeline


async def ask(engine: Engine, request: Request) -> Timeline:
    """One request to its end. Raises EngineFailed when the answer is not as long as asked."""
    timeline = Timeline(time.monotonic())
    async with aclosing(engine.generate(request)) as answer:
        async for count in answer:
            timeline.arrivals.append((time.monotonic(), count))
    if timeline.tokens != request.max_tokens:
        raise EngineFailed(f"{engine.name} answered {timeline.tokens} tokens where {request.max_tokens} were asked for")
    return timeline


async def drive(engine: Engine, requests: Sequence[Request], *, concurrency: int) -> list[Timeline]:
    """Ask everything, with so many clients that share the list. Raises the first client's failure and stops the others."""
    waiting = list(reversed(requests))
    timelines: list[Timeline] = []

    async def client() -> None:
        while waiting:
            timelines.append(await ask(engine, waiting.pop()))

    try:
        async with asyncio.TaskGroup() as clients:
            for _ in range(concurrency):
                clients.create_task(client())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return timelines
