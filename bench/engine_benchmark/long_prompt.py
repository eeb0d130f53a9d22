"""What a long prompt costs those who generate meanwhile."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from engine_benchmark.clients import ask, drive
from engine_benchmark.engine import Engine, EngineFailed, Request
from engine_benchmark.figures import Figures, Timeline, measure, percentile
from engine_benchmark.workload import Series

GENERATORS = 4
ALONE = Series("generators", ((64, 96),))
BESIDE = Series("generators", ((64, 2048),))
"""Answers that go on until the long prompt is done; then they are cancelled."""
UNDERWAY_TOKENS = 16
"""Each generator has so many before the long prompt arrives."""


async def alone(engine: Engine, seed: str) -> Figures:
    """The generators by themselves."""
    return measure(await drive(engine, ALONE.requests(GENERATORS, seed=seed), concurrency=GENERATORS))


async def beside_a_long_prompt(engine: Engine, prompt_tokens: int, seed: str) -> Figures:
    """The generators' latencies between the long prompt's arrival and its first token; TTFT is the long prompt's."""
    underway = asyncio.Event()
    generators = [Timeline(time.monotonic()) for _ in range(GENERATORS)]

    def look() -> None:
        if all(timeline.tokens >= UNDERWAY_TOKENS for timeline in generators):
            underway.set()

    requests = BESIDE.requests(GENERATORS, seed=f"beside {seed}")
    tasks = [asyncio.create_task(_generate(engine, request, line, look)) for request, line in zip(requests, generators, strict=True)]
    try:
        await underway.wait()
        (long_request,) = Series("long", ((prompt_tokens, 1),)).requests(1, seed=seed)
        long = await ask(engine, long_request)
        if any(task.done() for task in tasks):
            raise EngineFailed("a generator ended before the long prompt did: nobody was beside it")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first = long.arrivals[0][0]
    gaps = [gap for timeline in generators for gap in timeline.gaps(since=long.sent, until=first)]
    return replace(measure([long]), itl_p50_seconds=percentile(gaps, 0.5), itl_p99_seconds=percentile(gaps, 0.99))


async def _generate(engine: Engine, request: Request, timeline: Timeline, look: Callable[[], None]) -> None:
    async with aclosing(engine.generate(request)) as answer:
        async for count in answer:
            timeline.arrivals.append((time.monotonic(), count))
            look()
