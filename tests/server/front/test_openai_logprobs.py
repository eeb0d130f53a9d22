"""Log probabilities: the engine's own numbers, in both shapes of the API, under names and bytes that add up to the text."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

import fake_model
from millrace_server.app import client_app
from millrace_server.chat.template import ChatTemplate
from millrace_server.engine.handle import Dead, EngineHandle, Serving
from millrace_server.engine.messages import Logprobs, Sampling, Submit
from millrace_server.inference import Inference
from millrace_server.lifecycle import Lifecycle
from millrace_server.openai.logprobs import name
from millrace_server.settings import ServerSettings
from millrace_server.text import Text

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "likely"
TOKENS = 30
TOP = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tiny_model: Path) -> AsyncIterator[Inference]:
    variables = {"MODEL_NAME": "tiny", "MODEL_PATH": str(tiny_model), "DEVICE": "cpu", "DTYPE": "float32", "MAX_BATCH_SIZE": "2"}
    settings = ServerSettings.from_environment(variables)
    engine = EngineHandle(settings, {**os.environ, "OMP_NUM_THREADS": "1"})
    inference = Lifecycle.inference(settings, engine)
    inference.text = Text.from_folder(tiny_model)
    inference.chat = await ChatTemplate.load(tiny_model, inference.text)
    await engine.start()
    while not isinstance(engine.state, Serving):
        assert not isinstance(engine.state, Dead), engine.state
        await asyncio.sleep(0.02)
    yield inference
    await inference.chat.close()
    await engine.stop(grace_seconds=0)


async def from_engine(inference: Inference, prompt: list[int]) -> tuple[list[int], list[Logprobs]]:
    """The greedy answer and its log probabilities, by the engine alone."""
    tokens: list[int] = []
    likelihoods: list[Logprobs] = []
    request = Submit(
        request_id="direct",
        prompt=prompt,
        max_tokens=TOKENS,
        sampling=Sampling(logprobs=TOP),
        ignore_eos=True,
        deadline=time.monotonic() + 60,
    )
    async for output in inference.engine.submit(request):
        tokens += output.tokens
        likelihoods += output.logprobs
    return tokens, likelihoods


async def post(inference: Inference, path: str, **fields: Any) -> Any:  # noqa: ANN401 - any JSON
    app = client_app(inference, drain_began=lambda: None, keys=None)
    body = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **fields}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


async def completion(inference: Inference, **fields: Any) -> Any:  # noqa: ANN401 - any JSON
    return (await post(inference, "/v1/completions", prompt=PROMPT, logprobs=TOP, **fields)).json()["choices"][0]


async def test_a_completions_log_probabilities_are_the_engines(served: Inference) -> None:
    tokens, likelihoods = await from_engine(served, list(PROMPT.encode()))
    choice = await completion(served)
    reported = choice["logprobs"]
    assert served.text is not None
    names = [name(served.text.spelling.of(token)) for token in tokens]
    assert reported["tokens"] == names
    assert reported["token_logprobs"] == [likelihood.logprob for likelihood in likelihoods]
    expected = [{name(served.text.spelling.of(token)): logprob for token, logprob in likelihood.top} for likelihood in likelihoods]
    assert reported["top_logprobs"] == expected, "greedy, hence the chosen token is among the likeliest"
    assert [list(top) for top in reported["top_logprobs"]] == [list(top) for top in expected], "best first"


async def test_a_chats_log_probabilities_are_the_engines_with_bytes_that_spell_the_text(served: Inference) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    assert served.chat is not None
    tokens, likelihoods = await from_engine(served, await served.chat.render(messages))
    answer = await post(served, "/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=TOP)
    choice = answer.json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [likelihood.logprob for likelihood in likelihoods]
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in content] == [
        [logprob for _, logprob in likelihood.top] for likelihood in likelihoods
    ]
    spelt = [bytes(entry["bytes"]) for entry in content]
    assert spelt == [bytes([token]) if token < fake_model.BYTES else fake_model.SPECIAL_TOKENS[token - 256].encode() for token in tokens]
    visible = b"".join(each for each, token in zip(spelt, tokens, strict=True) if token < fake_model.BYTES)
    assert visible.decode(errors="replace").startswith(choice["message"]["content"])


async def test_offsets_say_where_a_tokens_text_begins(served: Inference) -> None:
    only_ascii = {str(token): -100 for token in range(128, fake_model.VOCABULARY)}
    choice = await completion(served, logit_bias=only_ascii)
    assert choice["logprobs"]["text_offset"] == list(range(TOKENS))
    assert choice["logprobs"]["tokens"] == list(choice["text"])


async def test_streamed_log_probabilities_are_the_whole_ones(served: Inference) -> None:
    whole = (await completion(served))["logprobs"]
    stream = await post(served, "/v1/completions", prompt=PROMPT, logprobs=TOP, stream=True)
    events = [json.loads(line.removeprefix("data: ")) for line in stream.text.split("\n\n") if line and not line.endswith("[DONE]")]
    for field, values in whole.items():
        assert [value for event in events for value in event["choices"][0]["logprobs"][field]] == values


async def test_no_token_of_a_stop_string_is_reported(served: Inference) -> None:
    whole = await completion(served)
    stop = whole["text"][6:9]
    stopped = await completion(served, stop=stop)
    assert (stopped["text"], stopped["finish_reason"]) == (whole["text"][: whole["text"].index(stop)], "stop")
    kept = stopped["logprobs"]["tokens"]
    assert kept == whole["logprobs"]["tokens"][: len(kept)]
    assert all(offset < len(stopped["text"]) for offset in stopped["logprobs"]["text_offset"])


async def test_a_likely_special_token_is_reported_by_its_name(served: Inference) -> None:
    choice = await completion(served, logit_bias={str(fake_model.EOS_TOKEN_ID): 50}, max_tokens=2, ignore_eos=False, min_tokens=0)
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    likely = await completion(served, logit_bias={str(fake_model.EOS_TOKEN_ID): 50}, max_tokens=1)
    assert likely["logprobs"]["tokens"] == ["<|endoftext|>"]
