"""What is measured, kind by kind: each takes the model's folder and a folder for logs."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from http_benchmark import loads
from http_benchmark.client import Client
from http_benchmark.figures import (
    CACHE_GOAL,
    HEALTH_GOAL_MS,
    SHORT_REQUESTS_GOAL,
    STREAMED_TOKENS_GOAL,
    Overload,
    Row,
    Soak,
    milliseconds,
    overload,
)
from http_benchmark.front import FRUGAL, MOCK, Server

FRONT_CORE = 0
SHORT = {"model": "bench", "prompt": "hello", "max_tokens": 1, "temperature": 1}
"""Not greedy: the cache has no part in it."""
TOKENS = 400
STREAM = {**SHORT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
STREAMS = 64
FAST_STEP_SECONDS = 0.004
"""With 64 streams 16 000 tokens a second: more than the goal asks the front for."""
USUAL_STEP_SECONDS = 0.02
LOADS = (0.5, 1.0, 2.0, 3.0)
OVERLOAD_SLOTS = 32
OVERLOAD_STEP_SECONDS = 0.01
OVERLOAD_BODY = {**SHORT, "max_tokens": 32, "ignore_eos": True}
OVERLOAD_DEADLINE_SECONDS = 2.0
SAMPLE_SECONDS = 2.0


def throughput(model: Path, folder: Path, *, rounds: int, seconds: float) -> list[Row]:
    """The front on one core, client and mock engine on the others."""
    with (
        _beside_the_front(),
        Server(model, folder, engine=MOCK, core=FRONT_CORE, settings={"MAX_CONCURRENT_REQUESTS": "1000"}) as server,
    ):
        asyncio.run(loads.closed(server.port, SHORT, clients=32, seconds=1))
        busy, lone = [], []
        for _ in range(rounds):
            cpu, begin = server.cpu_seconds(), time.monotonic()
            answers = asyncio.run(loads.closed(server.port, SHORT, clients=32, seconds=seconds))
            busy.append((len(answers) / (time.monotonic() - begin), len(answers) / (server.cpu_seconds() - cpu)))
            lone.append(asyncio.run(loads.closed(server.port, SHORT, clients=1, seconds=seconds / 2)))
    return [
        Row(kind="throughput", what="short requests", unit="/s", rounds=tuple(each[0] for each in busy), goal=SHORT_REQUESTS_GOAL),
        Row(kind="throughput", what="short requests per second of the front's CPU", unit="/s", rounds=tuple(each[1] for each in busy)),
        Row(kind="latency", what="a lone short request, p50", unit="ms", rounds=tuple(milliseconds(each, 0.5) for each in lone)),
        Row(kind="latency", what="a lone short request, p99", unit="ms", rounds=tuple(milliseconds(each, 0.99) for each in lone)),
    ]


def streams(model: Path, folder: Path, *, rounds: int, seconds: float) -> list[Row]:
    """64 streams beside `/health`, at the usual pace of a model and faster than the front can be asked to."""
    rows = []
    for pace, step in (("fast", FAST_STEP_SECONDS), ("usual", USUAL_STEP_SECONDS)):
        with _beside_the_front(), Server(model, folder, engine=MOCK, step_seconds=step, slots=STREAMS, core=FRONT_CORE) as server:
            measured = [asyncio.run(_streamed(server, seconds)) for _ in range(rounds)]
        health = tuple(each[2] for each in measured)
        if pace == "fast":
            tokens = tuple(each[0] for each in measured)
            rows.append(Row(kind="streams", what="streamed tokens", unit="/s", rounds=tokens, goal=STREAMED_TOKENS_GOAL))
            rows.append(Row(kind="streams", what="events per token", unit="", rounds=tuple(each[1] for each in measured)))
        what = f"/health beside 64 {'streams' if pace == 'usual' else 'of the fastest streams'}, p99"
        rows.append(Row(kind="streams", what=what, unit="ms", rounds=health, goal=HEALTH_GOAL_MS, at_least=False))
    return rows


async def _streamed(server: Server, seconds: float) -> tuple[float, float, float]:
    """Tokens per second, events per token, and the 99th percentile of /health in milliseconds."""
    probe = Client(server.port)
    begin = time.monotonic()
    answers, health = await loads.beside(
        lambda: loads.closed(server.port, STREAM, clients=STREAMS, seconds=seconds), lambda: probe.ask("/health"), every=0.02
    )
    took = time.monotonic() - begin
    if wrong := {each.status for each in [*answers, *health]} - {200}:
        raise RuntimeError(f"answers with status {wrong}")
    return TOKENS * len(answers) / took, sum(each.events for each in answers) / (TOKENS * len(answers)), milliseconds(health, 0.99)


def cache(model: Path, folder: Path, *, rounds: int, prompts: int) -> list[Row]:
    """The real engine with the demo model: the first answer to a prompt, and the second."""
    ratios = []
    with Server(model, folder) as server:
        for number in range(rounds + 1):
            asked = [
                {"model": "bench", "prompt": f"round {number}, prompt {each}:", "max_tokens": 64, "temperature": 0}
                for each in range(prompts)
            ]
            misses, hits = (asyncio.run(loads.one_by_one(server.port, asked)) for _ in range(2))
            if number:  # the first one warms up
                ratios.append(statistics.median(each.seconds for each in misses) / statistics.median(each.seconds for each in hits))
    return [Row(kind="cache", what="an answer from the model / from the cache", unit="×", rounds=tuple(ratios), goal=CACHE_GOAL)]


def goodput(model: Path, folder: Path, *, seconds: float) -> tuple[float, list[Overload]]:
    """The capacity (whole answers per second of a closed loop that fills the slots), and what open loops of its multiples got."""
    settings = {"REQUEST_TIMEOUT": str(OVERLOAD_DEADLINE_SECONDS), "MAX_CONCURRENT_REQUESTS": "1000"}
    with (
        _beside_the_front(),
        Server(
            model, folder, engine=MOCK, step_seconds=OVERLOAD_STEP_SECONDS, slots=OVERLOAD_SLOTS, core=FRONT_CORE, settings=settings
        ) as server,
    ):
        begin = time.monotonic()
        answers = asyncio.run(loads.closed(server.port, OVERLOAD_BODY, clients=OVERLOAD_SLOTS, seconds=seconds / 2))
        capacity = len(answers) / (time.monotonic() - begin)
        return capacity, [_overloaded(server.port, capacity, load, seconds) for load in LOADS]


def _overloaded(port: int, capacity: float, load: float, seconds: float) -> Overload:
    begin = time.monotonic()
    answers = asyncio.run(loads.opened(port, OVERLOAD_BODY, rate=load * capacity, seconds=seconds, seed=int(load * 10)))
    # The queue is empty at first, and nobody comes after the end: neither is the load that is meant.
    return overload(answers, load=load, began=begin + seconds / 4, ended=begin + seconds, deadline=OVERLOAD_DEADLINE_SECONDS)


def soak(model: Path, folder: Path, *, seconds: float) -> Soak:
    """The real engine with the demo model and a mixed crowd; all that is kept has little room, so that it is full at once."""
    samples: list[tuple[float, dict[str, int]]] = []
    with Server(model, folder, engine=FRUGAL, settings={"CACHE_MAX_BYTES": str(2**20)}) as server:
        begin = time.monotonic()

        async def sampled() -> dict[str, int]:
            crowd = asyncio.create_task(loads.crowd(server.port, clients=12, seconds=seconds, seed=1))
            while not crowd.done():
                samples.append((time.monotonic() - begin, server.resident_bytes()))
                await asyncio.wait([crowd], timeout=SAMPLE_SECONDS)
            return crowd.result()

        done = asyncio.run(sampled())
    return Soak(seconds=seconds, done=done, samples=tuple(samples))


@contextlib.contextmanager
def _beside_the_front() -> Iterator[None]:
    """This process keeps off the front's core."""
    before: set[int] = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {FRONT_CORE} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
