"""Real servers with a real Redis between them: what one answered, the other one answers without its model."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest

import fake_model
from contract.test_server_reports import prometheus
from running_redis import PASSWORD, RunningRedis
from running_server import RunningServer

PROMPT = "a canary in the coal mine"
EQUAL_REQUESTS = 1000


class Replicas(NamedTuple):
    redis: RunningRedis
    first: RunningServer
    second: RunningServer


def settings_for(redis: RunningRedis) -> dict[str, str]:
    return {"CACHE_TYPE": "redis", "REDIS_URL": redis.url, "REQUEST_TIMEOUT": "120", "MODEL_REVISION": "main"}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("shared")
    model = fake_model.build(folder / "model", eos_token_id=None)
    with RunningRedis(folder) as redis:
        settings = settings_for(redis)
        with (
            RunningServer(folder / "first", model=model, settings=settings) as first,
            RunningServer(folder / "second", model=model, settings=settings) as second,
        ):
            yield Replicas(redis, first.wait_ready(), second.wait_ready())


def ask(server: RunningServer) -> dict[str, object]:
    response = server.requests().infer(PROMPT, max_tokens=4, temperature=0)
    assert response.status_code == 200
    answer: dict[str, object] = response.json()
    return answer


def stream(server: RunningServer) -> tuple[str, str, Any]:
    """What the header says, the text, and the usage."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        raw = client.completions.with_raw_response.create(
            model="tiny", prompt=PROMPT, max_tokens=100, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = raw.parse()
    assert chunks[-1].choices[0].finish_reason == "length"
    return raw.headers["x-millrace-cache"], "".join(chunk.choices[0].text for chunk in chunks), last.usage


def test_a_replica_replays_a_stream_that_another_one_wrote(replicas: Replicas) -> None:
    source, *fresh = stream(replicas.first)
    assert source == "miss"
    # Behind the answer, and on a busy machine not at once.
    shared = replicas.second.wait_for(lambda: told if (told := stream(replicas.second))[0] == "hit" else None)
    assert list(shared[1:]) == fresh


def test_other_weights_under_the_same_name_and_revision_answer_for_themselves(replicas: Replicas, tmp_path: Path) -> None:
    """A branch moves, and Redis remembers what the files before it answered."""
    stream(replicas.first)
    replicas.second.wait_for(lambda: stream(replicas.second)[0] == "hit" or None)
    weights = fake_model.config("Llama", tie_word_embeddings=False, eos_token_id=None)
    moved = fake_model.save(weights, tmp_path / "model", seed=1)
    with RunningServer(tmp_path / "third", model=moved, settings=settings_for(replicas.redis)) as third:
        source, text, _ = stream(third.wait_ready())
    assert source == "miss"
    assert text != stream(replicas.first)[1]


def generated(server: RunningServer) -> tuple[float, float]:
    """Tokens of prompts and of answers."""
    figures, model = prometheus(server), frozenset({("model_name", "tiny")})
    return figures["vllm:prompt_tokens_total", model], figures["vllm:generation_tokens_total", model]


async def test_a_thousand_equal_requests_at_once_are_one_run_of_the_model(replicas: Replicas) -> None:
    body = {"model": "tiny", "prompt": "all at once", "max_tokens": 40, "temperature": 0}
    before = generated(replicas.first)

    async def post(client: httpx.AsyncClient, number: int) -> str:
        answer = await client.post("/v1/completions", json={**body, "stream": number % 2 == 0})
        assert answer.status_code == 200, answer.text
        if number % 2:
            return str(answer.json()["choices"][0]["text"])
        *events, done = answer.text.split("\n\n")[:-1]
        assert done == "data: [DONE]"
        return "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)

    limits = httpx.Limits(max_connections=EQUAL_REQUESTS)
    url = f"http://127.0.0.1:{replicas.first.port}"
    async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False, timeout=120) as client:
        texts = await asyncio.gather(*(post(client, number) for number in range(EQUAL_REQUESTS)))
    after = generated(replicas.first)
    assert len(set(texts)) == 1
    assert (after[0] - before[0], after[1] - before[1]) == (len("all at once"), 40)


def test_replicas_share_answers_and_outlive_their_redis(replicas: Replicas) -> None:
    """The module's last test: it ends them all."""
    redis, first, second = replicas
    fresh = ask(first)
    assert fresh["cached"] is False
    # Behind the answer, and on a busy machine not at once.
    shared = second.wait_for(lambda: answer if (answer := ask(second))["cached"] else None)
    assert shared["text"] == fresh["text"]

    stored = b" ".join([*redis.names(), *(redis.command("GET", name) for name in redis.names())])
    assert PROMPT.encode() not in stored

    redis.freeze()
    assert ask(second)["text"] == fresh["text"]
    redis.kill()
    assert ask(first)["text"] == fresh["text"]
    first.wait_for(lambda: first.requests().get("/metrics").json()["cache"]["state"] == "down")
    assert first.terminate() == second.terminate() == 0
    assert PASSWORD not in first.log() + second.log()
