"""An event stream and its client, without a network: what fails before the first event, behind it, and when nobody reads."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from millrace_server.errors import ClientLeft, DeadlinePassed, RequestError
from millrace_server.openai.events import EventStream


class Event(msgspec.Struct):
    number: int


class Client:
    """Takes what the stream sends, until it has `patience` messages; says that it left when told."""

    def __init__(self, *, patience: int = 100) -> None:
        self.scope: dict[str, Any] = {"type": "http", "state": {"request_id": "id"}}
        self.got: list[Message] = []
        self.stuck = asyncio.Event()
        self.left = asyncio.Event()
        self._patience = patience

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if len(self.got) == self._patience:
            self.stuck.set()
            await asyncio.Event().wait()
        self.got.append(message)

    async def read(self, events: AsyncGenerator[Event, None]) -> None:
        await EventStream(events)(self.scope, self.receive, self.send)

    def data(self) -> list[str]:
        body = b"".join(message.get("body", b"") for message in self.got).decode()
        return [line.removeprefix("data: ") for line in body.split("\n\n")[:-1]]


class Work:
    """Two events, then an error."""

    def __init__(self, error: Exception | None = None, *, events: int = 2) -> None:
        self.is_over = False
        self._error = error
        self._events = events

    async def run(self) -> AsyncGenerator[Event, None]:
        try:
            for number in range(self._events):
                yield Event(number)
            if self._error:
                raise self._error
        finally:
            self.is_over = True


async def test_events_then_done() -> None:
    client = Client()
    await client.read(Work().run())
    assert client.data() == ['{"number":0}', '{"number":1}', "[DONE]"]
    assert client.got[0]["status"] == 200
    assert client.got[-1]["more_body"] is False
    assert "outcome" not in client.scope["state"]


@pytest.mark.parametrize("error", [DeadlinePassed("late"), RuntimeError("a secret detail")])
async def test_what_fails_before_the_first_event_is_raised(error: Exception) -> None:
    client = Client()
    with pytest.raises(type(error)):
        await client.read(Work(error, events=0).run())
    assert client.got == []


async def test_what_fails_in_the_stream_is_its_last_event_but_one() -> None:
    client = Client()
    await client.read(Work(DeadlinePassed("late")).run())
    *events, error, done = client.data()
    assert (len(events), done) == (2, "[DONE]")
    assert json.loads(error)["error"] == {"message": "late", "type": "timeout_error", "param": None, "code": "deadline_exceeded"}
    assert client.scope["state"]["outcome"] == 504


async def test_a_surprise_in_the_stream_is_logged_and_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    await client.read(Work(RuntimeError("a secret detail")).run())
    *_, error, done = client.data()
    assert (json.loads(error)["error"]["code"], done) == (RequestError.code, "[DONE]")
    assert "secret" not in error
    assert "a secret detail" in caplog.text
    assert client.scope["state"]["outcome"] == 500


@pytest.mark.parametrize("patience", [0, 1, 2])
async def test_a_client_that_stops_reading_and_leaves_ends_the_work(patience: int) -> None:
    client, work = Client(patience=patience), Work()
    reading = asyncio.create_task(client.read(work.run()))
    await client.stuck.wait()
    assert not work.is_over
    client.left.set()
    await reading
    assert work.is_over
    assert client.scope["state"]["outcome"] == ClientLeft.status


async def test_a_client_that_leaves_before_the_first_event_has_left_without_an_answer() -> None:
    client = Client()

    async def silent() -> AsyncGenerator[Event, None]:
        await asyncio.Event().wait()
        yield Event(0)

    client.left.set()
    with pytest.raises(ClientLeft):
        await client.read(silent())
    assert client.got == []


async def test_a_stream_that_is_cut_ends_with_an_error_and_done() -> None:
    client, may_go_on = Client(), asyncio.Event()

    async def endless() -> AsyncGenerator[Event, None]:
        yield Event(0)
        await may_go_on.wait()
        yield Event(1)

    reading = asyncio.create_task(client.read(endless()))
    while len(client.got) < 2:  # noqa: ASYNC110 - a list has no event
        await asyncio.sleep(0)
    reading.cancel()
    may_go_on.set()
    await reading
    first, error, done = client.data()
    assert (first, done, client.got[-1]["more_body"]) == ('{"number":0}', "[DONE]", False)
    assert (json.loads(error)["error"]["code"], client.scope["state"]["outcome"]) == ("draining", 503)


async def test_a_stream_that_is_cut_before_its_first_event_is_answered_by_who_knows_why() -> None:
    client = Client()

    async def silent() -> AsyncGenerator[Event, None]:
        await asyncio.Event().wait()
        yield Event(0)

    reading = asyncio.create_task(client.read(silent()))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert client.got == []
