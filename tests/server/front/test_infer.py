"""POST /api/v1/infer against a real server: text, repeatability, caching, many at once."""

import asyncio

import httpx
import pytest

from running_server import RunningServer

PROMPT = "naïve 🎉 prompt"


def test_the_text_begins_with_the_prompt(server: RunningServer) -> None:
    answer = server.requests().infer(PROMPT, max_tokens=12, temperature=0).json()
    assert answer["text"].startswith(PROMPT)
    assert len(answer["text"]) > len(PROMPT)
    assert 1 <= answer["tokens_generated"] <= 12
    assert 0 < answer["latency_ms"] < 60_000


def test_greedy_is_repeatable_without_the_cache(server: RunningServer) -> None:
    answers = [server.requests().infer(PROMPT, max_tokens=8, temperature=0, use_cache=False).json() for _ in range(2)]
    assert answers[0]["text"] == answers[1]["text"]
    assert [answer["cached"] for answer in answers] == [False, False]


def test_greedy_answers_are_cached(server: RunningServer) -> None:
    first, second = (server.requests().infer("cache me", max_tokens=9, temperature=0).json() for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True)
    assert (second["text"], second["tokens_generated"]) == (first["text"], first["tokens_generated"])
    assert second["request_id"] != first["request_id"]
    assert second["latency_ms"] < first["latency_ms"]


def test_sampled_answers_are_cached_only_on_request(server: RunningServer) -> None:
    plain = [server.requests().infer("sampled", max_tokens=8, temperature=1.5, top_p=1).json() for _ in range(2)]
    assert [answer["cached"] for answer in plain] == [False, False]
    assert plain[0]["text"] != plain[1]["text"]
    wished = [server.requests().infer("sampled", max_tokens=8, temperature=1.5, top_p=1, use_cache=True).json() for _ in range(2)]
    assert [answer["cached"] for answer in wished] == [False, True]
    assert wished[0]["text"] == wished[1]["text"]


@pytest.mark.parametrize("change", [{"max_tokens": 8}, {"temperature": 0.5}, {"top_p": 0.8}, {"seed": 3}, {"prompt": "key "}])
def test_a_cached_answer_is_for_exactly_this_request(server: RunningServer, change: dict[str, object]) -> None:
    request = {"prompt": "key", "max_tokens": 7, "temperature": 0.6, "top_p": 0.9, "seed": 2, "use_cache": True}
    server.requests().infer(**request)  # type: ignore[arg-type]
    assert server.requests().infer(**request).json()["cached"] is True  # type: ignore[arg-type]
    assert server.requests().infer(**{**request, **change, "use_cache": True}).json()["cached"] is False  # type: ignore[arg-type]


def test_a_seed_repeats_a_sample(server: RunningServer) -> None:
    texts = [
        server.requests().infer("seeded", max_tokens=8, temperature=1.2, top_p=1, seed=seed, use_cache=False).json()["text"]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_32_requests_of_different_lengths_at_once_equal_their_solo_runs(server: RunningServer) -> None:
    requests = [{"prompt": f"{number} " * (1 + number % 5), "max_tokens": 2 + number % 9} for number in range(32)]

    async def ask(client: httpx.AsyncClient, request: dict[str, object]) -> str:
        response = await client.post("/api/v1/infer", json={**request, "temperature": 0, "use_cache": False})
        assert response.status_code == 200, response.text
        text: str = response.json()["text"]
        return text

    async with server.async_client() as client:
        together = await asyncio.gather(*(ask(client, request) for request in requests))
        alone = [await ask(client, request) for request in requests]
    assert together == alone
    load = server.load()
    assert (load["running"], load["queued"]) == (0, 0)


def test_the_context_limit_is_told_with_both_numbers(server: RunningServer) -> None:
    response = server.requests().infer("x" * 500, max_tokens=13)
    assert response.status_code == 400
    error = response.json()["error"]
    assert "prompt has 500 tokens and max_tokens is 13: together more than the model's limit of 512" in error["message"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert server.requests().infer("x" * 513, max_tokens=1).json()["error"]["param"] == "prompt"
    assert server.requests().infer("x" * 500, max_tokens=12, temperature=0).status_code == 200


def test_without_max_tokens_the_answer_takes_what_the_context_leaves(server: RunningServer) -> None:
    response = server.requests().infer("x" * 510, temperature=0)
    assert response.status_code == 200
    assert response.json()["tokens_generated"] <= 2


def test_malformed_requests_are_no_demand(server: RunningServer) -> None:
    before = server.load()
    assert server.requests().infer("x" * 600).status_code == 400
    assert server.requests().infer("x", max_tokens=0).status_code == 400
    after = server.load()
    assert (after["arrivals"], after["completed"], after["queued"]) == (before["arrivals"], before["completed"], 0)


def test_no_prompt_or_answer_is_ever_logged(server: RunningServer) -> None:
    text = server.requests().infer("canary-7f3a", max_tokens=5).json()["text"]
    assert "canary-7f3a" not in server.log()
    assert text not in server.log()
