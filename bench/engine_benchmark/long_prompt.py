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
PROMPT_TOKENS = 64
MOST_TOKENS = 6144
"""Answers that go on until the long prompt is done; then they are cancelled."""
UNDERWAY_TOKENS = 16
"""Each generator has so many before the long prompt arrives."""


class LongPrompt:
    """Generators beside a long prompt, and by themselves for as many tokens: their own contexts grow meanwhile, which costs time too."""

    def __init__(self, engine: Engine, *, prompt_tokens: int) -> None:
        self._engine = engine
        self._prompt_tokens = prompt_tokens
        self._reached: int | None = None

    async def alone(self, seed: str) -> Figures:
        """As many tokens as they reached when last they were beside a long prompt. Raises EngineFailed when they never were."""
        if self._reached is None:
            raise EngineFailed("the generators were not yet beside a long prompt: how far they came is not known")
        return measure(await drive(self._engine, _generators(self._reached, seed), concurrency=GENERATORS))

    async def beside(self, seed: str) -> Figures:
        """The generators' latencies between the long prompt's arrival and its first token; TTFT is the long prompt's."""
        underway = asyncio.Event()
        timelines = [Timeline(time.monotonic()) for _ in range(GENERATORS)]

        def look() -> None:
            if all(timeline.tokens >= UNDERWAY_TOKENS for timeline in timelines):
                underway.set()

        requests = _generators(MOST_TOKENS, f"beside {seed}")
        tasks = [asyncio.create_task(_generate(self._engine, *both, look)) for both in zip(requests, timelines, strict=True)]
        try:
            await underway.wait()
            (long_request,) = Series("long", ((self._prompt_tokens, 1),)).requests(1, seed=seed)
            long = await ask(self._engine, long_request)
            if any(task.done() for task in tasks):
                raise EngineFailed("a generator ended before the long prompt did: nobody was beside it")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._reached = max(timeline.tokens for timeline in timelines)
        first = long.arrivals[0][0]
        gaps = [gap for timeline in timelines for gap in timeline.gaps(since=long.sent, until=first)]
        return replace(measure([long]), itl_p50_seconds=percentile(gaps, 0.5), itl_p99_seconds=percentile(gaps, 0.99))


def _generators(tokens: int, seed: str) -> list[Request]:
    return Series("generators", ((PROMPT_TOKENS, tokens),)).requests(GENERATORS, seed=seed)


async def _generate(engine: Engine, request: Request, timeline: Timeline, look: Callable[[], None]) -> None:
    async with aclosing(engine.generate(request)) as answer:
        async for count in answer:
            timeline.arrivals.append((time.monotonic(), count))
            look()
