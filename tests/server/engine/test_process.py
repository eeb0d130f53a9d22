"""The real engine process behind the front's handle: loads, serves, is cancelled, killed, frozen, and fails with a cause."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import fake_model
from millrace_server.engine.handle import Dead, EngineHandle, Loading, Serving, State
from millrace_server.engine.messages import Output, Step, Submit
from millrace_server.engine.pulse import Patience
from millrace_server.engine.stream import EngineUnavailable, QuarantinedRequest
from millrace_server.settings import ServerSettings
from small_engine import request

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LOAD_SECONDS = 120
"""On a machine that does other things, importing torch alone takes many."""


def settings(folder: Path, **fields: Any) -> ServerSettings:  # noqa: ANN401
    return ServerSettings(**{"model_name": "tiny", "model_path": str(folder), "device": "cpu", "max_batch_size": 2, **fields})


async def until(condition: Callable[[], bool], *, seconds: float = LOAD_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


async def serving(handle: EngineHandle) -> EngineHandle:
    await until(lambda: isinstance(handle.state, Serving) or (isinstance(handle.state, Dead) and not handle.state.restarts))
    assert isinstance(handle.state, Serving), handle.state
    return handle


def soon(name: str, prompt: bytes, **fields: Any) -> Submit:  # noqa: ANN401
    return request(name, prompt, **{"deadline": time.monotonic() + LOAD_SECONDS, **fields})


async def answer(handle: EngineHandle, one: Submit) -> list[Output]:
    return [output async for output in handle.submit(one)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineHandle]:
    """One engine for the file: each start costs the import of torch."""
    folder = fake_model.build(tmp_path_factory.mktemp("tiny"))
    handle = EngineHandle(settings(folder), ENVIRONMENT, patience=Patience(heartbeat_seconds=4, restarts=9, first_backoff_seconds=0.001))
    seen: list[State] = []
    await handle.start()
    with pytest.raises(EngineUnavailable, match="loading"):
        handle.submit(soon("early", b"abc"))
    while isinstance(handle.state, Loading):
        if not seen or seen[-1] != handle.state:
            seen.append(handle.state)
        await asyncio.sleep(0)
    stages = list(dict.fromkeys(state.stage for state in seen if isinstance(state, Loading)))
    assert stages[0] == "spawn"
    assert "start" in stages
    yield await serving(handle)
    await handle.stop(grace_seconds=0)
    assert isinstance(handle.state, Dead)
    assert handle.pid is None


async def test_a_ready_engine_says_what_it_is(engine: EngineHandle) -> None:
    assert isinstance(engine.state, Serving)
    ready = engine.state.ready
    assert (ready.device, ready.dtype, ready.slots, ready.max_length) == ("cpu", "float32", 2, fake_model.MAX_LENGTH)
    assert (ready.vocabulary, ready.eos_token_ids) == (fake_model.VOCABULARY, [fake_model.EOS_TOKEN_ID])
    assert len(ready.revision) == 40


async def test_more_requests_than_slots_are_all_answered(engine: EngineHandle) -> None:
    answers = await asyncio.gather(*(answer(engine, soon(f"r{index}", b"abc", max_tokens=5)) for index in range(7)))
    assert [sum(len(output.tokens) for output in outputs) for outputs in answers] == [5] * 7
    assert len({tuple(token for output in outputs for token in output.tokens) for outputs in answers}) == 1
    assert engine.active == 0


async def test_a_cancelled_request_ends_its_stream_and_leaves_the_engine(engine: EngineHandle) -> None:
    stream = engine.submit(soon("cancelled", b"abc", max_tokens=500))
    await anext(stream)
    engine.cancel("cancelled")
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(collect_rest(stream), 5)
    await until(lambda: engine.running == 0, seconds=10)


async def collect_rest(stream: AsyncIterator[Output]) -> None:
    while True:
        await anext(stream)


async def test_a_request_past_its_deadline_ends_as_such(engine: EngineHandle) -> None:
    outputs = await answer(engine, soon("late", b"abc", deadline=time.monotonic() - 1))
    assert [output.finish_reason for output in outputs] == ["deadline"]


async def test_an_idle_engine_is_heard_every_second(engine: EngineHandle) -> None:
    beats: list[Step] = []
    engine.on_step = beats.append
    await until(lambda: len(beats) >= 2, seconds=10)
    engine.on_step = None
    assert all(not step.outputs for step in beats)


async def test_a_killed_engine_fails_its_streams_and_is_restarted(engine: EngineHandle, caplog: pytest.LogCaptureFixture) -> None:
    pid = engine.pid
    assert pid is not None
    running = [engine.submit(soon(f"killed {number}", b"abc", max_tokens=500)) for number in range(2)]
    waiting = engine.submit(soon("never begun", b"abc", max_tokens=500))
    await anext(running[0])
    os.kill(pid, signal.SIGKILL)
    for stream in (*running, waiting):
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(collect_rest(stream), 10)
    assert engine.state == Dead(None, restarts=True)
    assert "the engine was killed by SIGKILL" in caplog.text
    await serving(engine)
    assert engine.pid not in (pid, None)
    assert (await answer(engine, soon("after", b"abc", max_tokens=3)))[-1].finish_reason == "length"


async def test_a_frozen_engine_is_noticed_killed_and_restarted(engine: EngineHandle, caplog: pytest.LogCaptureFixture) -> None:
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    streams = [engine.submit(soon(f"frozen {number}", b"abc")) for number in range(3)]
    for stream in streams:
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(collect_rest(stream), 15)
    await until(lambda: engine.pid != pid, seconds=10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "the engine hangs: no word for 4 s, while it does nothing" in caplog.text
    await serving(engine)
    assert (await answer(engine, soon("thawed", b"abc", max_tokens=3)))[-1].finish_reason == "length"


async def test_what_was_there_at_two_deaths_is_refused_and_nothing_else_is(engine: EngineHandle) -> None:
    for attempt in range(2):
        killer, innocent = engine.submit(soon("killer", b"kill", max_tokens=500)), engine.submit(soon("innocent", b"abc", max_tokens=500))
        waiting = engine.submit(soon("waiting", b"wait", max_tokens=500))
        await anext(killer)
        os.kill(engine.pid or 0, signal.SIGKILL)
        for stream in (killer, innocent, waiting):
            with pytest.raises(EngineUnavailable):
                await asyncio.wait_for(collect_rest(stream), 10)
        await serving(engine)
        if attempt == 0:
            assert (await answer(engine, soon("again", b"abc", max_tokens=3)))[-1].finish_reason == "length"
    with pytest.raises(QuarantinedRequest, match="change the prompt"):
        engine.submit(soon("killer under another name", b"kill"))
    for prompt in (b"abc", b"wait", b"kill!"):
        assert (await answer(engine, soon("fine", prompt, max_tokens=3)))[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        (None, "ModelNotFound"),
        ({}, "ModelNotFound"),
        ({"config.json": "{"}, "InvalidModel"),
        ({"config.json": json.dumps({"model_type": "llama"})}, "InvalidModel"),
        ({"config.json": json.dumps({"model_type": "llama"}), "pytorch_model.bin": "x"}, "InvalidModel"),
        ({"config.json": json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})}, "UnsupportedQuantization"),
    ],
)
async def test_a_folder_that_cannot_be_served_fails_with_its_cause_and_is_not_retried(
    tmp_path: Path, files: dict[str, str] | None, cause: str
) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    handle = EngineHandle(settings(folder), ENVIRONMENT)
    await handle.start()
    state = await asyncio.wait_for(handle.ended(), LOAD_SECONDS)
    assert state.failure is not None
    assert (state.failure.cause, state.restarts) == (cause, False)
    with pytest.raises(EngineUnavailable, match=state.failure.hint[:20].replace("(", ".").replace("*", ".")):
        handle.submit(soon("any", b"abc"))
    await handle.stop(grace_seconds=0)


async def test_an_engine_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    broken = {**ENVIRONMENT, "PYTHONHOME": str(tmp_path)}  # the interpreter itself cannot start
    handle = EngineHandle(settings(tmp_path), broken, patience=Patience(restarts=2, first_backoff_seconds=0.01))
    await handle.start()
    assert await asyncio.wait_for(handle.ended(), LOAD_SECONDS) == Dead(None, restarts=False)
    await handle.stop(grace_seconds=0)


async def test_an_engine_that_is_stopped_while_it_loads_ends_at_once(tmp_path: Path) -> None:
    handle = EngineHandle(settings(fake_model.build(tmp_path)), ENVIRONMENT)
    await handle.start()
    await until(lambda: isinstance(handle.state, Loading) and handle.state.stage != "spawn")
    pid, asked = handle.pid, time.monotonic()
    await handle.stop(grace_seconds=0)
    assert time.monotonic() - asked < 2
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
