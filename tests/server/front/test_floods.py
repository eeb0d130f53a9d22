"""What is refused as wrong is no demand: a flood of it buys no replica. The real server, asked and judged by the operator's own code."""

import asyncio
from dataclasses import replace

from millrace_operator.api import AutoscalingStatus
from millrace_operator.autoscale import Bounds, Fleet, Tempo
from millrace_operator.load import Limits, LoadReader
from millrace_operator.load_monitor import LoadMonitor, Subject
from server.front.guarded import ALICE, Guarded
from server.front.wire import GREETING, Wire

COUNT = 1000
PIPELINED = 50
"""On one connection, which lives for a limited time."""
KEY = b"authorization: Bearer %b\r\n" % ALICE.encode()


def post(body: bytes, *, key: bytes = KEY, path: bytes = b"/api/v1/infer") -> bytes:
    return GREETING.replace(b"/api/v1/infer", path) + key + b"content-length: %d\r\n\r\n" % len(body) + body


VALID = b'{"prompt": "a", "max_tokens": 1}'
WRONG = {
    401: post(VALID, key=b""),
    404: post(VALID, path=b"/nowhere"),
    400: post(b'{"prompt": "a", "max_tokens": -1}'),
}
CHAT = ("demo", "chat")
SUBJECT = Subject(
    addresses=("127.0.0.1",),
    bounds=Bounds(minimum=1, maximum=4, target=1),
    fleet=Fleet(replicas=1, rolling=False),
    limits=Limits(slots=8, queue=100),
    measured_for="this model",
    gpus=0,
    told=AutoscalingStatus(seconds_per_request=4, measured_for="this model"),
)


def ask(guarded: Guarded, request: bytes, count: int) -> list[int]:
    """By a few connections, one after another; the statuses."""
    statuses = []
    for _ in range(0, count, PIPELINED):
        with Wire(guarded.server) as wire:
            wire.send(request * PIPELINED)
            statuses += [wire.answer()[0] for _ in range(PIPELINED)]
    return statuses


async def test_thousands_of_wrong_requests_leave_the_replicas_as_they_are(guarded: Guarded) -> None:
    reader = LoadReader(port=guarded.server.internal_port, timeout=30)
    monitor = LoadMonitor(reader, tempo=replace(Tempo(), stale_after=60), interval=0, report_interval=30, call=lambda _: None)

    async def desired() -> int:
        await monitor.look()
        return monitor.decide(CHAT, SUBJECT).desired

    async def arrivals() -> int:
        [load] = (await reader.read(SUBJECT.addresses, limits=SUBJECT.limits)).loads
        return load.arrivals

    before = await arrivals()
    monitor.decide(CHAT, SUBJECT)
    assert await desired() == 1
    flood = asyncio.gather(*(asyncio.to_thread(ask, guarded, request, COUNT) for request in WRONG.values()))
    while not flood.done():
        await asyncio.wait([flood], timeout=0.2)
        assert await desired() == 1
    assert await flood == [[status] * COUNT for status in WRONG]
    assert await desired() == 1
    assert await arrivals() == before
    assert await asyncio.to_thread(ask, guarded, post(VALID), 50) == [200] * 50
    assert await arrivals() == before + 50, "right ones are demand"
    await reader.close()
