"""Replicas are asked over real sockets, and their answers are not believed before they are parsed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from aiohttp import web

from millrace_operator.api import AutoscalingStatus
from millrace_operator.autoscale import Bounds, Fleet, Tempo
from millrace_operator.demand import Load
from millrace_operator.load import InvalidLoad, Limits, LoadReader, parse_load
from millrace_operator.load_monitor import LoadMonitor, Subject

LIMITS = Limits(slots=8, queue=100)
HONEST = {"queued": 3, "running": 5, "slots": 8}


def answer(**changes: object) -> bytes:
    return json.dumps({**HONEST, **changes}).encode()


def test_an_honest_answer_is_read_and_unknown_fields_are_ignored() -> None:
    assert parse_load(answer(something_new=[1]), limits=LIMITS) == Load(queued=3, running=5)


COUNTERS = {"boot_id": "a1", "arrivals": 70, "completed": 60, "running_seconds": 240.5}


def test_counters_are_read_with_the_start_that_they_count_from() -> None:
    expected = Load(queued=3, running=5, boot_id="a1", arrivals=70, completed=60, running_seconds=240.5)
    assert parse_load(answer(**COUNTERS), limits=LIMITS) == expected


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e308, "5", True, None, [1]])
@pytest.mark.parametrize("name", ["arrivals", "completed", "running_seconds"])
def test_a_counter_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidLoad, match=name):
        parse_load(answer(**{**COUNTERS, name: value}), limits=LIMITS)


@pytest.mark.parametrize("value", [5, ["a"], "a" * 65])
def test_a_start_that_is_no_short_text_is_refused(value: object) -> None:
    with pytest.raises(InvalidLoad, match="boot_id"):
        parse_load(answer(**{**COUNTERS, "boot_id": value}), limits=LIMITS)


def test_a_replica_cannot_claim_more_than_it_can_hold() -> None:
    lying = parse_load(answer(queued=10**400, running=10**9), limits=LIMITS)
    assert (lying.queued, lying.running) == (LIMITS.queue, LIMITS.slots)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1.5, 1e308, "5", True, None, [1]])
@pytest.mark.parametrize("name", ["queued", "running"])
def test_a_value_that_is_no_count_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidLoad, match=name):
        parse_load(answer(**{name: value}), limits=LIMITS)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"queued": 1}'])
def test_what_is_no_load_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidLoad):
        parse_load(body, limits=LIMITS)


class Replicas:
    """A server on several loopback addresses: each address answers as told."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], bytes | None]] = {}
        self.release = asyncio.Event()
        self.port = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        assert request.path == "/internal/load"
        body = self.answers[request.host.partition(":")[0]]()
        if body is None:
            await self.release.wait()
        return web.Response(body=body or b"")


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    result = Replicas()
    app = web.Application()
    app.router.add_get("/internal/load", result.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()
    result.port = runner.addresses[0][1]
    yield result
    result.release.set()
    await runner.cleanup()


@pytest.fixture
async def reader(replicas: Replicas) -> AsyncIterator[LoadReader]:
    result = LoadReader(port=replicas.port, timeout=0.3)
    yield result
    await result.close()


async def test_all_replicas_are_asked_and_the_silent_the_broken_and_the_endless_are_left_out(
    replicas: Replicas, reader: LoadReader
) -> None:
    replicas.answers = {
        "127.0.0.1": answer,
        "127.0.0.2": lambda: None,
        "127.0.0.3": lambda: b"no json",
        "127.0.0.4": lambda: b" " * 10_000_000,
        "127.0.0.5": answer,
    }
    reading = await reader.read([*replicas.answers, "127.0.0.1:1"], limits=LIMITS)
    assert (reading.ready, len(reading.loads), reading.load) == (6, 2, 16)
    assert reading.addresses == ("127.0.0.1", "127.0.0.5"), "whose loads they are"


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def monitor(
    reader: LoadReader, calls: list[tuple[str, str]], clock: Callable[[], float] = time.monotonic, *, interval: float = 0
) -> LoadMonitor:
    return LoadMonitor(reader, tempo=Tempo(), interval=interval, report_interval=30, call=calls.append, clock=clock)


SUBJECT = Subject(
    addresses=("127.0.0.1",),
    bounds=Bounds(minimum=1, maximum=4, target=2),
    fleet=Fleet(replicas=1, rolling=False),
    limits=LIMITS,
    measured_for="this model",
    gpus=2,
    told=None,
)
CHAT = ("demo", "chat")


async def test_a_load_above_the_target_calls_for_a_pass_which_then_decides_to_grow(replicas: Replicas, reader: LoadReader) -> None:
    calls: list[tuple[str, str]] = []
    watching = monitor(reader, calls)
    assert watching.decide(CHAT, SUBJECT).desired == 1
    replicas.answers = {"127.0.0.1": answer}
    await watching.look()
    assert calls == [CHAT]
    assert watching.decide(CHAT, SUBJECT).desired == 4


async def test_a_steady_load_that_the_status_tells_calls_for_nothing(replicas: Replicas, reader: LoadReader) -> None:
    calls: list[tuple[str, str]] = []
    watching = monitor(reader, calls)
    replicas.answers = {"127.0.0.1": lambda: answer(queued=0, running=2)}
    watching.decide(CHAT, SUBJECT)
    await watching.look()
    words = watching.tell(CHAT, watching.decide(CHAT, SUBJECT))
    assert isinstance(words, AutoscalingStatus)
    assert words.load == 2
    watching.decide(CHAT, replace(SUBJECT, told=words))
    watching.told(CHAT)
    calls.clear()
    await watching.look()
    assert calls == []


async def test_each_replica_s_requests_are_known_by_its_address(replicas: Replicas, reader: LoadReader) -> None:
    watching = monitor(reader, [])
    replicas.answers = {
        "127.0.0.1": lambda: b"",
        "127.0.0.2": lambda: answer(queued=4, running=5),
        "127.0.0.3": lambda: answer(queued=0, running=1),
    }
    watching.decide(CHAT, replace(SUBJECT, addresses=tuple(replicas.answers)))
    assert watching.by_address(CHAT) == {}, "before the first look"
    await watching.look()
    assert watching.by_address(CHAT) == {"127.0.0.2": 9, "127.0.0.3": 1}


async def test_services_are_asked_one_after_the_other_over_the_interval(replicas: Replicas, reader: LoadReader) -> None:
    watching = monitor(reader, [], interval=1)
    asked: list[float] = []

    def note() -> bytes:
        asked.append(time.monotonic())
        return answer()

    replicas.answers = {"127.0.0.1": note}
    for number in range(10):
        watching.decide(("demo", f"chat-{number}"), SUBJECT)
    began = time.monotonic()
    await watching.look()
    assert len(asked) == 10
    assert asked[-1] - began >= 0.9
    assert time.monotonic() - began >= 1, "and the next round begins when this one is over"


async def test_a_forgotten_service_is_asked_no_more(replicas: Replicas, reader: LoadReader) -> None:
    watching = monitor(reader, [])
    watching.decide(CHAT, SUBJECT)
    watching.forget(CHAT)

    def never() -> bytes:
        raise AssertionError("asked")

    replicas.answers = {"127.0.0.1": never}
    await watching.look()


async def test_a_new_leader_begins_with_the_seconds_per_request_that_the_status_tells(reader: LoadReader) -> None:
    told = AutoscalingStatus(seconds_per_request=2.5, measured_for="this model")
    assert monitor(reader, []).decide(CHAT, replace(SUBJECT, told=told)).seconds_per_request == 2.5
    assert monitor(reader, []).decide(CHAT, replace(SUBJECT, told=told, measured_for="another model")).seconds_per_request is None


async def test_another_model_is_measured_anew(reader: LoadReader) -> None:
    watching = monitor(reader, [])
    told = AutoscalingStatus(seconds_per_request=2.5, measured_for="this model")
    watching.decide(CHAT, replace(SUBJECT, told=told))
    assert watching.decide(CHAT, SUBJECT).seconds_per_request == 2.5
    changed = watching.decide(CHAT, replace(SUBJECT, measured_for="another model"))
    assert changed.seconds_per_request is None


async def test_gpus_without_a_request_are_counted_by_the_second(replicas: Replicas) -> None:
    clock = Clock()
    reader = LoadReader(port=replicas.port, timeout=5, clock=clock)
    watching = monitor(reader, [], clock)
    replicas.answers = {"127.0.0.1": lambda: answer(queued=0, running=0), "127.0.0.2": lambda: answer(queued=0, running=1)}
    watching.decide(CHAT, replace(SUBJECT, addresses=tuple(replicas.answers)))
    for clock.now in (1000.0, 1005.0, 1010.0):
        await watching.look()
    ((key, figures),) = watching.figures()
    assert (key, figures.load, figures.age) == (CHAT, 1, 0)
    assert figures.idle_gpu_seconds == 2 * 10, "of the two GPUs of the one that is idle"
    await reader.close()


async def test_gpus_that_are_idle_for_hours_are_told_now_and_then(replicas: Replicas) -> None:
    clock = Clock()
    reader = LoadReader(port=replicas.port, timeout=5, clock=clock)
    watching = monitor(reader, [], clock)
    replicas.answers = {"127.0.0.1": lambda: answer(queued=0, running=0)}

    async def hint(hours: float) -> str | None:
        clock.now = 1000 + 3600 * hours
        watching.decide(CHAT, SUBJECT)
        await watching.look()
        words = watching.tell(CHAT, watching.decide(CHAT, SUBJECT))
        return words.hint if words else None

    assert [await hint(hours) for hours in (0, 1.9)] == [None, None]
    first = await hint(2.1)
    assert first is not None
    assert "2 GPUs have been idle for more than 2 h; lower spec.autoscaling.minReplicas" in first
    assert await hint(3.9) == first
    assert "more than 4 h" in (await hint(4.1) or "")
    replicas.answers = {"127.0.0.1": answer}
    assert await hint(4.2) is None
    await reader.close()
