"""Questions on their way through the front, with an engine that says what the test wants."""

import asyncio
import time

import pytest

import fake_model
from millrace_server.engine.messages import Output, Sampling, Submit
from millrace_server.engine.stream import EngineUnavailable, QuarantinedRequest, RequestStream
from millrace_server.errors import BadRequest, ContextTooLong, DeadlinePassed, EngineError, EngineGone, ModelLoading, RequestQuarantined
from millrace_server.inference import Inference
from millrace_server.protocol import InferRequest
from millrace_server.question import Call, Conversation, Question
from millrace_server.text import Text
from server.front.scripted import ScriptedEngine, inference


class Engine:
    """What was handed to a scripted engine, and what it was told to forget."""

    def __init__(self, server: Inference, engine: ScriptedEngine) -> None:
        self.streams: list[RequestStream] = []
        self.cancelled: list[str] = []
        server.text = Text(fake_model.tokenizer())
        engine.submit = self._submit  # type: ignore[method-assign]
        engine.cancel = self.cancelled.append  # type: ignore[method-assign, assignment]

    @property
    def requests(self) -> list[Submit]:
        return [stream.request for stream in self.streams]

    def say(self, index: int, text: str, *, finish_reason: str | None = None, error: str | None = None) -> None:
        tokens = list(text.encode())
        self.streams[index].put(Output(request_id="any", tokens=tokens, finish_reason=finish_reason, error=error))

    def _submit(self, request: Submit) -> RequestStream:
        self.streams.append(RequestStream(request))
        return self.streams[-1]


def scripted(**settings: object) -> tuple[Inference, Engine]:
    server, engine = inference(None, **settings)
    return server, Engine(server, engine)


def question(*prompts: str | list[int] | Conversation, **fields: object) -> Question:
    given: dict[str, object] = {"max_tokens": 5, "default_max_tokens": None, "sampling": Sampling(), "is_streamed": True, **fields}
    return Question(prompts=prompts or ("hello",), **given)  # type: ignore[arg-type]


def call(*, seconds: float = 30, tenant: str = "") -> Call:
    return Call(request_id="id", arrived=time.monotonic(), timeout=seconds, tenant=tenant)


async def test_pieces_come_as_they_are_written_and_slots_go_one_by_one() -> None:
    server, engine = scripted()
    async with server.ask(question("a", "b", copies=2), call()) as answering:
        assert (server.admission.in_system, len(engine.requests)) == (4, 4)
        engine.say(2, "x")
        piece = await anext(answering)
        assert (piece.index, piece.text, piece.finish_reason) == (2, "x", None)
        engine.say(0, "yz", finish_reason="stop")
        piece = await anext(answering)
        assert (piece.index, piece.text, piece.finish_reason) == (0, "yz", "stop")
        assert server.admission.in_system == 3
    assert (server.admission.in_system, server.admission.completed) == (0, 2), "of the other two nobody knows that they had a slot"
    assert engine.cancelled == [request.request_id for request in engine.requests[1:]]


async def test_a_slow_reader_gets_longer_pieces() -> None:
    server, engine = scripted()
    async with server.ask(question(), call()) as answering:
        for character in "abc":
            engine.say(0, character)
            await asyncio.sleep(0)
        engine.say(0, "d", finish_reason="length")
        await asyncio.sleep(0)
        assert server.admission.in_system == 0, "its slot is free before it has read the end"
        pieces = [piece async for piece in answering]
    assert [(piece.text, piece.finish_reason) for piece in pieces] == [("abcd", "length")]


async def test_a_stop_string_ends_its_answer_and_not_its_sisters() -> None:
    server, engine = scripted()
    async with server.ask(question(copies=2, stop=("bc",)), call()) as answering:
        engine.say(0, "ab")
        assert (await anext(answering)).text == "a"
        engine.say(0, "cd")
        piece = await anext(answering)
        assert (piece.text, piece.finish_reason) == ("", "stop")
        assert (engine.cancelled, server.admission.in_system) == ([engine.requests[0].request_id], 1)
        engine.say(1, "b", finish_reason="length")
        last = [piece async for piece in answering]
        assert [(piece.index, piece.text, piece.finish_reason) for piece in last] == [(1, "b", "length")]
        assert answering.tokens == 5


@pytest.mark.parametrize(
    ("finish_reason", "error", "raised"),
    [("error", "why", EngineError), ("quarantined", "why", RequestQuarantined), ("deadline", None, DeadlinePassed)],
)
async def test_one_answer_that_fails_fails_its_question(finish_reason: str, error: str | None, raised: type[Exception]) -> None:
    server, engine = scripted()
    async with server.ask(question(copies=2), call()) as answering:
        engine.say(1, "", finish_reason=finish_reason, error=error)
        with pytest.raises(raised):
            await answering.whole()
    assert (server.admission.in_system, engine.cancelled) == (0, [engine.requests[0].request_id])


async def test_a_dead_engine_is_told_after_what_it_had_written() -> None:
    server, engine = scripted()
    async with server.ask(question(), call()) as answering:
        engine.say(0, "a")
        engine.streams[0].put(EngineUnavailable("the engine died"))
        assert (await anext(answering)).text == "a"
        with pytest.raises(EngineGone, match="the engine died"):
            await anext(answering)
    assert server.admission.in_system == 0


async def test_a_second_copy_that_is_refused_leaves_nothing_of_the_first() -> None:
    server, scripted_engine = inference()
    engine = Engine(server, scripted_engine)
    submit = scripted_engine.submit

    def submit_once(request: Submit) -> RequestStream:
        if engine.streams:
            raise QuarantinedRequest("refused")
        return submit(request)

    scripted_engine.submit = submit_once  # type: ignore[method-assign]
    with pytest.raises(RequestQuarantined):
        async with server.ask(question(copies=2), call()):
            pass
    assert server.admission.in_system == 0
    assert engine.requests[0].request_id in engine.cancelled


@pytest.mark.parametrize(
    ("asked", "raised"),
    [
        (question("x" * 65), ContextTooLong),
        (question("a", ""), ContextTooLong),
        (question([1, 259]), BadRequest),
        (question(stop_token_ids=[259]), BadRequest),
        (question(sampling=Sampling(min_tokens=6)), BadRequest),
        (question(Conversation(messages=[], variables={})), ModelLoading),
    ],
)
async def test_what_cannot_be_asked_leaves_no_trace(asked: Question, raised: type[Exception]) -> None:
    server, engine = scripted()
    with pytest.raises(raised):
        async with server.ask(asked, call()):
            pass
    assert (server.admission.in_system, server.admission.arrivals, engine.requests) == (0, 0, [])


async def test_everything_that_was_asked_reaches_the_engine() -> None:
    server, engine = scripted()
    sampling = Sampling(temperature=0.5, seed=7)
    asked = question("ab", copies=2, sampling=sampling, stop_token_ids=[3], ignore_eos=True, priority=-4)
    whose = call(tenant="them")
    async with server.ask(asked, whose):
        first, second = engine.requests
    assert (first.prompt, first.max_tokens, first.sampling) == (list(b"ab"), 5, sampling)
    assert (first.stop_token_ids, first.ignore_eos, first.priority, first.tenant) == ([3], True, -4, "them")
    assert first.deadline == whose.deadline
    assert second.sampling.seed == 8
    assert first.request_id != second.request_id


async def test_one_tenants_cached_answer_is_not_anothers() -> None:
    server, engine = scripted()
    request = InferRequest(prompt="secret", max_tokens=3, temperature=0)
    cached = []
    for tenant in ("one", "two", "one", "two"):
        asked = len(engine.streams)
        asking = asyncio.create_task(server.infer(request, call(tenant=tenant)))
        while not asking.done() and len(engine.streams) == asked:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
        if not asking.done():
            engine.say(-1, f"for {tenant}", finish_reason="stop")
        answer = await asking
        assert answer.text == f"secretfor {tenant}"
        cached.append(answer.cached)
    assert cached == [False, False, True, True]


async def test_long_prompts_are_read_in_turn_and_keep_no_short_one_waiting() -> None:
    text = Text(fake_model.tokenizer())
    reading = [asyncio.create_task(text.encode("ab" * 100_000)) for _ in range(4)]
    await asyncio.sleep(0)
    assert await text.encode("short") == list(b"short")
    assert not any(task.done() for task in reading)
    for task in reading[1:3]:
        task.cancel()
    assert len(await reading[0]) == len(await reading[3]) == 200_000
