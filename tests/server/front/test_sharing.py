"""Equal questions, at the same time and later: one run of the model, and nobody suffers for another's departure, deadline or slowness."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from millrace_server.answering import Answers, Piece, Source
from millrace_server.engine.messages import Logprobs, Output, Sampling
from millrace_server.errors import ContextTooLong, DeadlinePassed, EngineError
from millrace_server.inference import Inference
from millrace_server.question import Call, Conversation, Question
from server.front.test_questions import Engine, call, question, scripted

LONG = 60.0


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def whole(server: Inference, asked: Question, whose: Call | None = None) -> tuple[list[str], Source]:
    async with server.answer(asked, whose or call()) as answers:
        return [each.text for each in await answers.whole()], answers.source


@asynccontextmanager
async def reading(server: Inference, asked: Question, whose: Call | None = None) -> AsyncIterator["Stream"]:
    """One that asks and reads by itself."""
    stream = Stream(server, asked, whose or call())
    try:
        yield stream
    finally:
        stream.task.cancel()
        await asyncio.wait({stream.task})


class Stream:
    def __init__(self, server: Inference, asked: Question, whose: Call) -> None:
        self.pieces: list[Piece] = []
        self.source: Source | None = None
        self.task = asyncio.create_task(self._read(server, asked, whose))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    async def _read(self, server: Inference, asked: Question, whose: Call) -> None:
        async with server.answer(asked, whose) as answers:
            self.source = answers.source
            async for piece in answers:
                self.pieces.append(piece)


def is_idle(server: Inference) -> bool:
    return server.admission.in_system == 0 and server._runs._runs == {}


async def test_a_thousand_equal_questions_are_one_run_streamed_or_not() -> None:
    server, engine = scripted()
    streamed = [Stream(server, question(), call()) for _ in range(500)]
    others = [asyncio.create_task(whole(server, question(is_streamed=False))) for _ in range(500)]
    await until(lambda: len(engine.streams) == 1 and all(stream.source for stream in streamed))
    engine.say(0, "ab")
    await until(lambda: all(stream.text == "ab" for stream in streamed))
    engine.say(0, "c", finish_reason="length")
    await asyncio.gather(*(stream.task for stream in streamed))
    assert {stream.text for stream in streamed} == {"abc"}
    assert [(await other)[0] for other in others] == [["abc"]] * 500
    sources = [stream.source for stream in streamed] + [(await other)[1] for other in others]
    assert sources == [Source.miss] + [Source.hit] * 999
    assert len(engine.streams) == 1
    assert (server.admission.arrivals, server.admission.completed) == (1000, 1000)
    assert is_idle(server)


async def test_of_a_thousand_equal_questions_the_one_that_stays_is_answered_by_the_same_run() -> None:
    server, engine = scripted()
    streams = [Stream(server, question(), call()) for _ in range(1000)]
    await until(lambda: len(engine.streams) == 1 and all(stream.source for stream in streams))
    engine.say(0, "ab")
    *leaving, last = streams
    for stream in leaving:
        stream.task.cancel()
    await asyncio.wait({stream.task for stream in leaving})
    engine.say(0, "c", finish_reason="length")
    await last.task
    assert (last.text, len(engine.streams)) == ("abc", 1)
    assert is_idle(server)


async def test_a_stream_that_joins_hears_what_was_said_before_and_what_comes() -> None:
    server, engine = scripted()
    async with reading(server, question()) as first:
        await until(lambda: len(engine.streams) == 1)
        engine.say(0, "ab")
        await until(lambda: first.text == "ab")
        async with reading(server, question()) as second:
            await until(lambda: second.text == "ab")
            engine.say(0, "c", finish_reason="stop")
            await second.task
            await first.task
    assert (first.pieces, len(engine.streams)) == (second.pieces, 1)


async def test_a_stream_that_joins_somebody_who_wants_the_whole_gets_the_text_as_it_comes() -> None:
    server, engine = scripted()
    waiting = asyncio.create_task(whole(server, question(is_streamed=False)))
    await until(lambda: len(engine.streams) == 1)
    engine.say(0, "a")
    await until(lambda: server.metrics.throughput(now=time.monotonic()).tokens_generated == 1)
    for _ in range(3):
        await asyncio.sleep(0)  # until the run has seen it, too
    async with reading(server, question()) as stream:
        await until(lambda: stream.source is Source.hit)
        engine.say(0, "b")
        await until(lambda: stream.text == "ab")
        engine.say(0, "c", finish_reason="stop")
        await stream.task
    assert (await waiting)[0] == [stream.text] == ["abc"]
    assert all(piece.says_something() for piece in stream.pieces), "nobody is woken for nothing"


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_first_may_leave_and_the_others_go_on(is_streamed: bool) -> None:
    server, engine = scripted()
    first = Stream(server, question(is_streamed=is_streamed), call())
    await until(lambda: len(engine.streams) == 1)
    async with reading(server, question()) as second:
        await until(lambda: second.source is Source.hit)
        first.task.cancel()
        await asyncio.wait({first.task})
        assert engine.cancelled == []
        engine.say(0, "abc", finish_reason="stop")
        await second.task
    assert (second.text, len(engine.streams)) == ("abc", 1)


async def test_the_first_may_leave_while_its_prompt_is_still_being_read() -> None:
    server, engine = scripted(MAX_QUEUE_SIZE="9")
    asked = question("x" * 50)
    assert server.text is not None
    encode, may_go_on = server.text.encode, asyncio.Event()

    async def slowly(text: str, *, add_special_tokens: bool = True) -> list[int]:
        await may_go_on.wait()
        return await encode(text, add_special_tokens=add_special_tokens)

    server.text.encode = slowly  # type: ignore[method-assign]
    first, second = (Stream(server, asked, call()) for _ in range(2))
    await until(lambda: server.admission.in_system == 1)
    first.task.cancel()
    await asyncio.wait({first.task})
    may_go_on.set()
    await until(lambda: len(engine.streams) == 1)
    engine.say(0, "a", finish_reason="stop")
    await second.task
    assert second.text == "a"


async def test_when_all_have_left_the_work_ends_and_nothing_is_kept() -> None:
    server, engine = scripted()
    streams = [Stream(server, question(), call()) for _ in range(3)]
    await until(lambda: all(stream.source for stream in streams))
    engine.say(0, "a")
    await until(lambda: streams[0].text == "a")
    for stream in streams:
        assert engine.cancelled == []
        stream.task.cancel()
        await asyncio.wait({stream.task})
    await until(lambda: is_idle(server))
    assert engine.cancelled == [engine.requests[0].request_id]
    async with reading(server, question()) as anew:
        await until(lambda: anew.source is not None)
        assert (anew.source, len(engine.streams), server.cache.report().entries) == (Source.miss, 2, 0)


async def test_whoever_comes_when_the_last_one_has_just_left_starts_anew() -> None:
    server, engine = scripted()
    first = Stream(server, question(), call())
    await until(lambda: len(engine.streams) == 1)
    first.task.cancel()
    async with reading(server, question()) as second:
        await until(lambda: len(engine.streams) == 2)
        engine.say(1, "b", finish_reason="stop")
        await second.task
    assert (second.text, second.source) == ("b", Source.miss)


async def test_everybody_has_a_deadline_of_their_own() -> None:
    server, engine = scripted()
    hasty = Stream(server, question(), call(seconds=0.1))
    await until(lambda: len(engine.streams) == 1)
    patient = Stream(server, question(), call())
    other = Stream(server, question(), call(seconds=0.2))
    await until(lambda: other.source is not None)
    engine.say(0, "a")
    with pytest.raises(DeadlinePassed, match=r"within 0.1 s \(1 of at most 5 tokens\)"):
        await hasty.task
    with pytest.raises(DeadlinePassed, match=r"within 0.2 s"):
        await other.task
    assert engine.cancelled == []
    engine.say(0, "b", finish_reason="stop")
    await patient.task
    assert (patient.text, engine.requests[0].deadline >= time.monotonic() + 30) == ("ab", True)


async def test_the_deadline_of_the_last_one_ends_the_work_and_keeps_nothing() -> None:
    server, engine = scripted()
    with pytest.raises(DeadlinePassed):
        await whole(server, question(), call(seconds=0.05))
    await until(lambda: is_idle(server))
    assert (engine.cancelled, server.cache.report().entries) == ([engine.requests[0].request_id], 0)


async def test_a_run_that_ends_before_a_later_deadline_is_not_joined() -> None:
    server, engine = scripted()
    first = Stream(server, question(), call())
    await until(lambda: len(engine.streams) == 1)
    patient = Stream(server, question(), call(seconds=61))
    await until(lambda: len(engine.streams) == 2)
    engine.say(0, "", finish_reason="error", error="the older one's end is not the newer one's")
    await asyncio.wait({first.task})
    joining = Stream(server, question(), call())
    await until(lambda: joining.source is not None)
    engine.say(1, "a", finish_reason="stop")
    await patient.task
    await joining.task
    assert isinstance(first.task.exception(), EngineError)
    assert (patient.source, joining.source, len(engine.streams)) == (Source.miss, Source.hit, 2)


async def test_a_slow_reader_keeps_nobody_waiting() -> None:
    server, engine = scripted()
    async with server.answer(question(), call()) as slow:
        waiting = asyncio.create_task(whole(server, question()))
        await until(lambda: len(engine.streams) == 1)
        engine.say(0, "a")
        await anext(aiter(slow))
        engine.say(0, "bc", finish_reason="stop")
        assert await waiting == (["abc"], Source.hit)
        assert server.admission.in_system == 0
        assert "".join([piece.text async for piece in slow]) == "bc"


async def test_a_long_replay_lets_others_have_their_turn() -> None:
    server, engine = scripted()
    await fill(server, engine, question(), text="a" * 64 * 1000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with server.answer(question(), call()) as answers:
        beside = asyncio.create_task(others())
        assert len([piece async for piece in answers]) == 1000
        beside.cancel()
    assert turns > 20


async def test_a_failure_is_told_to_all_after_what_was_written_and_is_not_kept() -> None:
    server, engine = scripted()
    streams = [Stream(server, question(copies=2), call()) for _ in range(3)]
    await until(lambda: len(engine.streams) == 2)
    engine.say(0, "a")
    await until(lambda: streams[2].text == "a")
    engine.say(1, "", finish_reason="error", error="why")
    for stream in streams:
        with pytest.raises(EngineError, match="why"):
            await stream.task
    assert engine.cancelled == [engine.requests[0].request_id], "the other answer ends at once"
    assert (is_idle(server), server.cache.report().entries) == (True, 0)


async def test_what_cannot_be_asked_is_refused_to_all() -> None:
    server, engine = scripted()
    asking = [asyncio.create_task(whole(server, question("x" * 65))) for _ in range(3)]
    for each in asking:
        with pytest.raises(ContextTooLong):
            await each
    assert (engine.streams, is_idle(server), server.admission.arrivals) == ([], True, 0)


async def test_urgent_questions_do_not_wait_for_the_work_of_others() -> None:
    server, engine = scripted()
    streams = [Stream(server, question(priority=priority), call()) for priority in (0, -1)]
    await until(lambda: len(engine.streams) == 2)
    engine.say(0, "a", finish_reason="stop")
    await streams[0].task
    assert await whole(server, question(priority=5)) == (["a"], Source.hit), "what is kept has no priority"
    streams[1].task.cancel()


async def fill(server: Inference, engine: Engine, asked: Question, text: str = "a", tenant: str = "") -> None:
    seen = len(engine.streams)
    asking = asyncio.create_task(whole(server, asked, call(tenant=tenant)))
    await until(lambda: len(engine.streams) == seen + asked.answers)
    for number in range(asked.answers):
        engine.say(seen + number, text, finish_reason="stop")
    assert (await asking)[1] in (Source.miss, Source.bypass)


async def is_kept(server: Inference, asked: Question, tenant: str = "") -> bool:
    async with server.answer(asked, call(tenant=tenant)) as answers:
        return answers.source is Source.hit


DIFFERENT: dict[str, object] = {
    "prompts": ["other"],
    "copies": 2,
    "max_tokens": 4,
    "default_max_tokens": 4,
    "sampling": Sampling(logit_bias={1: 1.0}),
    "stop": ("b",),
    "stop_token_ids": [3],
    "ignore_eos": True,
}
"""Every field of a question that its answers depend on, and another value for it."""
OTHER_SAMPLING: dict[str, object] = {
    "schema": "{}",
    "repetition_penalty": 1.5,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "logit_bias": {2: 1.0},
    "min_tokens": 1,
    "temperature": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "top_p": 0.5,
    "seed": 8,
    "logprobs": 0,
}


def test_every_field_of_a_question_is_in_the_key_or_known_not_to_matter() -> None:
    assert {field.name for field in dataclasses.fields(Question)} == {*DIFFERENT, "priority", "is_streamed", "use_cache"}
    assert set(Sampling.__struct_fields__) == set(OTHER_SAMPLING)


@pytest.mark.parametrize("change", [{name: value} for name, value in DIFFERENT.items()])
async def test_an_answer_is_kept_for_exactly_its_question(change: dict[str, object]) -> None:
    server, engine = scripted()
    await fill(server, engine, question(use_cache=True))
    assert await is_kept(server, question())
    assert not await is_kept(server, dataclasses.replace(question(use_cache=True), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{name: value} for name, value in OTHER_SAMPLING.items()])
async def test_a_sampled_answer_is_kept_for_exactly_its_sampling(change: dict[str, object]) -> None:
    server, engine = scripted()
    sampling: dict[str, object] = {"temperature": 1.0, "seed": 7, "top_p": 0.9}
    await fill(server, engine, question(use_cache=True, sampling=Sampling(**sampling)))  # type: ignore[arg-type]
    assert await is_kept(server, question(use_cache=True, sampling=Sampling(**sampling)))  # type: ignore[arg-type]
    assert not await is_kept(server, question(use_cache=True, sampling=Sampling(**{**sampling, **change})))  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [(["hello"], [list(b"hello")]), ([[1, 2], [3]], [[1], [2, 3]]), (["1"], [[1]])])
async def test_prompts_are_told_apart_by_kind_and_by_border(prompts: tuple[list[str], list[list[int]]]) -> None:
    server, engine = scripted()
    await fill(server, engine, dataclasses.replace(question(), prompts=prompts[0]))
    assert await is_kept(server, dataclasses.replace(question(), prompts=prompts[0]))
    assert not await is_kept(server, dataclasses.replace(question(), prompts=prompts[1]))


async def test_a_greedy_choice_does_not_depend_on_what_it_does_not_look_at() -> None:
    server, engine = scripted()
    await fill(server, engine, question())
    assert await is_kept(server, question(sampling=Sampling(top_k=3, top_p=0.5, min_p=0.1, seed=9)))


async def test_a_conversation_is_kept_for_its_messages_and_variables() -> None:
    def key(content: str, **variables: object) -> bytes | None:
        return server._cache_key(question(Conversation(messages=[{"role": "user", "content": content}], variables=variables)), call())

    server, _ = scripted()
    assert key("a") == key("a")
    assert len({key("a"), key("b"), key("a", thinking=True), key("a", thinking=False)}) == 4


@pytest.mark.parametrize(
    ("use_cache", "temperature", "is_used"),
    [(None, 0.0, True), (None, 1.0, False), (True, 1.0, True), (False, 0.0, False)],
)
async def test_greedy_answers_are_kept_and_others_when_asked(use_cache: bool | None, temperature: float, is_used: bool) -> None:
    server, engine = scripted()
    asked = question(use_cache=use_cache, sampling=Sampling(temperature=temperature, seed=1))
    await fill(server, engine, asked)
    assert server.cache.report().entries == is_used
    assert await is_kept(server, asked) == is_used
    assert server.cache.report().bypassed == (0 if is_used else 2)


async def test_a_tenant_neither_reads_nor_joins_what_another_one_asked() -> None:
    server, engine = scripted()
    async with reading(server, question(), call(tenant="one")), reading(server, question(), call(tenant="two")):
        await until(lambda: len(engine.streams) == 2)
    await fill(server, engine, question(), tenant="one")
    assert await is_kept(server, question(), tenant="one")
    assert not await is_kept(server, question(), tenant="two")


async def test_another_model_or_template_has_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    server, engine = scripted()
    await fill(server, engine, question())
    monkeypatch.setattr(type(server), "fingerprint", lambda _: "another-template")
    assert not await is_kept(server, question())


async def test_a_kept_answer_costs_no_run_and_tells_the_same() -> None:
    server, engine = scripted()
    asked = question(copies=2, sampling=Sampling(logprobs=1))
    async with reading(server, asked) as first:
        await until(lambda: len(engine.streams) == 2)
        for index in (1, 0):
            logprobs = [Logprobs(-0.5, [(index, -0.25)])] * 3
            engine.streams[index].put(Output(request_id="any", tokens=list(b"abc"), logprobs=logprobs, finish_reason="length"))
        await first.task
    generated = server.metrics.throughput(now=time.monotonic()).tokens_generated

    async def told(answers: Answers) -> tuple[object, ...]:
        return await answers.whole(), answers.tokens, answers.prompt_tokens

    async with server.answer(asked, call()) as again:
        assert again.source is Source.hit
        assert [(each.text, each.finish_reason) for each in await again.whole()] == [("abc", "length")] * 2
        assert (await told(again))[1:] == (6, 5)
        replayed = [piece async for piece in again]
    assert sorted(replayed, key=lambda piece: piece.index) == sorted(first.pieces, key=lambda piece: piece.index)
    assert len(engine.streams) == 2
    assert server.metrics.throughput(now=time.monotonic()).tokens_generated == generated == 6
    assert (server.admission.arrivals, server.admission.completed, server.cache.report().hits) == (4, 4, 1)
