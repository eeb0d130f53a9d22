"""Stop strings against a real engine: the answer ends before them, and so does the work."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

import fake_model
from millrace_server.engine.handle import Dead, EngineHandle, Serving
from millrace_server.engine.messages import Sampling
from millrace_server.inference import Inference
from millrace_server.lifecycle import Lifecycle
from millrace_server.question import Call, Question
from millrace_server.settings import ServerSettings
from millrace_server.text import Text

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = 20_000
"""Tokens; far more than are generated while a test waits."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inference]:
    folder = fake_model.build(tmp_path_factory.mktemp("long"), max_position_embeddings=32_768, eos_token_id=None)
    variables = {"MODEL_NAME": "tiny", "MODEL_PATH": str(folder), "DEVICE": "cpu", "MAX_BATCH_SIZE": "1", "REQUEST_TIMEOUT": "60"}
    settings = ServerSettings.from_environment(variables)
    engine = EngineHandle(settings, {**os.environ, "OMP_NUM_THREADS": "1"})
    inference = Lifecycle.inference(settings, engine)
    inference.text = Text.from_folder(folder)
    await engine.start()
    while not isinstance(engine.state, Serving):
        assert not isinstance(engine.state, Dead), engine.state
        await asyncio.sleep(0.02)
    yield inference
    await engine.stop(grace_seconds=0)


class Generation(NamedTuple):
    text: str
    tokens: int
    finish_reason: str


async def generate(inference: Inference, max_tokens: int, *stop: str, seconds: float = 60) -> Generation:
    question = Question(prompts=["hello"], max_tokens=max_tokens, default_max_tokens=None, sampling=Sampling(), stop=stop)
    async with inference.ask(question, Call(request_id="test", arrived=time.monotonic(), timeout=seconds)) as answering:
        (whole,) = await answering.whole()
        return Generation(whole.text, answering.tokens, whole.finish_reason)


async def until_idle(inference: Inference, *, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while inference.engine.running:  # noqa: ASYNC110 - the handle has no event for it
            await asyncio.sleep(0.01)


async def test_an_answer_ends_before_its_stop_string_and_its_slot_is_free_at_once(served: Inference) -> None:
    whole = await generate(served, 60)
    stop = whole.text[20:24]
    began = time.monotonic()
    stopped = await generate(served, LONG, "never written", stop)
    await until_idle(served, seconds=2)
    assert time.monotonic() - began < 10, "the other tokens were not waited for"
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert stopped.tokens <= whole.tokens
    assert (served.admission.in_system, served.engine.active) == (0, 0)
    assert (await generate(served, 1)).tokens == 1


async def test_a_stop_string_that_never_comes_changes_nothing(served: Inference) -> None:
    whole = await generate(served, 60)
    assert await generate(served, 60, whole.text + "!", "never written") == whole
    assert whole.finish_reason == "length"


async def test_the_last_tokens_may_complete_a_stop_string(served: Inference) -> None:
    whole = await generate(served, 60)
    stopped = await generate(served, 60, whole.text[-3:])
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(whole.text[-3:])], "stop")
