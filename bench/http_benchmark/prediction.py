"""Whether the autoscaler's product of arrivals and seconds per request is the number of slots that run, on the real server.

One server with the demo model; open loops of several shares of its capacity follow one another, and the operator's own code counts at
`/internal/load` as it does in a cluster. How long a request holds a slot depends on its company, and it is averaged over five minutes: so
what was learnt under one load predicts the next.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from http_benchmark import loads
from http_benchmark.figures import PREDICTION_GOAL, Row
from http_benchmark.front import Server
from millrace_operator.demand import RATE_WINDOW, Demand
from millrace_operator.load import Limits, parse_load

SLOTS = 8
INTERVAL_SECONDS = 5.0
"""Between two looks, as the operator comes."""
GLANCE_SECONDS = 0.1
"""Between two glances at how many slots run: what is foretold is judged by something that the law does not count."""
LOADS = (0.3, 0.5, 0.7, 0.9, 0.3)
BODY = {"model": "bench", "prompt": "1 2 3 4 5", "max_tokens": 64, "temperature": 1, "ignore_eos": True}
LIMITS = Limits(slots=SLOTS, queue=1000)


def prediction(model: Path, folder: Path, *, seconds: float) -> list[Row]:
    """Each load lasts `seconds`, of which what the law looks back at is judged at the end."""
    settings = {"MAX_BATCH_SIZE": str(SLOTS), "MAX_CONCURRENT_REQUESTS": "1000", "REQUEST_TIMEOUT": "60"}
    with Server(model, folder, settings=settings) as server:
        begin = time.monotonic()
        answers = asyncio.run(loads.closed(server.port, BODY, clients=SLOTS, seconds=seconds / 3))
        capacity = len(answers) / (time.monotonic() - begin)
        return asyncio.run(_follow(server, capacity, seconds))


async def _follow(server: Server, capacity: float, seconds: float) -> list[Row]:
    demand, rows = Demand(), []
    for load in LOADS:
        asked = asyncio.create_task(loads.opened(server.port, BODY, rate=load * capacity, seconds=seconds, seed=int(load * 10)))
        glances: list[tuple[float, int]] = []
        looks_at = time.monotonic()
        while not asked.done():
            await asyncio.wait([asked], timeout=GLANCE_SECONDS)
            _, body = await asyncio.to_thread(server.internal, "/internal/load")
            now, seen = time.monotonic(), parse_load(body, limits=LIMITS)
            glances.append((now, seen.running))
            if asked.done() or now >= looks_at:
                demand, looks_at = demand.observe(now, [seen]), now + INTERVAL_SECONDS
        rows.append(_row(load, demand, glances, min(RATE_WINDOW, seconds)))
    return rows


def _row(load: float, demand: Demand, glances: Sequence[tuple[float, int]], window: float) -> Row:
    rate, held = demand.rate(window), demand.seconds_per_request
    if rate is None or held is None:
        raise RuntimeError("too few requests were counted")
    running = fmean(slots for at, slots in glances if at > glances[-1][0] - window)
    what = f"slots at {load:g} of the capacity: {rate * held:.2f} foretold, {running:.2f} seen, off by"
    return Row(kind="prediction", what=what, unit="", rounds=(abs(rate * held / running - 1),), goal=PREDICTION_GOAL, at_least=False)
