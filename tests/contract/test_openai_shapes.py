"""The OpenAI routes' answers on the wire: every field and no other, in each event."""

import json
from typing import Any

import pytest

from contract.test_server_reports import NUMBER, assert_shape
from running_server import RunningServer

HEAD = {"id": str, "object": str, "created": int, "model": str, "system_fingerprint": str}
USAGE = {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int}
NULL = type(None)
MESSAGES = [{"role": "user", "content": "shape"}]
SAMPLING = {"model": "tiny", "max_tokens": 3, "temperature": 0, "logit_bias": {"65": 100}}
"""Says AAA."""


def post(server: RunningServer, path: str, **fields: Any) -> Any:  # noqa: ANN401 - any JSON
    response = server.requests().request("POST", path, json={**SAMPLING, **fields})
    assert response.status_code == 200, response.text
    return response


def events(server: RunningServer, path: str, **fields: Any) -> list[Any]:  # noqa: ANN401 - any JSON
    """The events' data, checked to be framed and ended as OpenAI's are."""
    response = post(server, path, stream=True, **fields)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *framed, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(line.startswith("data: ") and "\n" not in line for line in framed)
    return [json.loads(line.removeprefix("data: ")) for line in framed]


def test_a_completion(server: RunningServer) -> None:
    completion = post(server, "/v1/completions", prompt="a").json()
    assert_shape(completion, {**HEAD, "choices": list, "usage": USAGE})
    assert completion["object"] == "text_completion"
    assert completion["choices"] == [{"index": 0, "text": "AAA", "logprobs": None, "finish_reason": "length"}]
    assert completion["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}


def test_a_completions_events(server: RunningServer) -> None:
    whole = events(server, "/v1/completions", prompt="a", echo=True)
    for event in whole:
        assert_shape(event, {**HEAD, "choices": list})
        assert event["object"] == "text_completion"
        assert_shape(event["choices"][0], {"index": int, "text": str, "logprobs": NULL, "finish_reason": (str, NULL)})
    assert "".join(event["choices"][0]["text"] for event in whole) == "aAAA"
    with_usage = events(server, "/v1/completions", prompt="a", stream_options={"include_usage": True})
    assert [event["usage"] for event in with_usage[:-1]] == [None] * (len(with_usage) - 1)
    assert (with_usage[-1]["choices"], with_usage[-1]["usage"]["total_tokens"]) == ([], 4)


def test_a_chat(server: RunningServer) -> None:
    chat = post(server, "/v1/chat/completions", messages=MESSAGES).json()
    assert_shape(chat, {**HEAD, "choices": list, "usage": USAGE})
    assert chat["object"] == "chat.completion"
    message = {"role": "assistant", "content": "AAA", "refusal": None}
    assert chat["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]


def test_a_chats_events(server: RunningServer) -> None:
    first, *others = events(server, "/v1/chat/completions", messages=MESSAGES)
    for event in (first, *others):
        assert_shape(event, {**HEAD, "choices": list})
        assert event["object"] == "chat.completion.chunk"
    beginning = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    assert first["choices"] == [beginning]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in others) == "AAA"
    assert [event["choices"][0]["finish_reason"] for event in others] == [None] * (len(others) - 1) + ["length"]


def test_log_probabilities(server: RunningServer) -> None:
    chat = post(server, "/v1/chat/completions", messages=MESSAGES, logprobs=True, top_logprobs=2).json()
    token = {"token": str, "logprob": NUMBER, "bytes": list}
    assert set(chat["choices"][0]["logprobs"]) == {"content", "refusal"}
    for entry in chat["choices"][0]["logprobs"]["content"]:
        assert_shape(entry, {**token, "top_logprobs": list})
        assert (entry["token"], entry["bytes"]) == ("A", [65])
        assert len(entry["top_logprobs"]) == 2
        for other in entry["top_logprobs"]:
            assert_shape(other, token)
    completion = post(server, "/v1/completions", prompt="a", logprobs=2).json()
    reported = completion["choices"][0]["logprobs"]
    assert_shape(reported, {"tokens": list, "token_logprobs": list, "top_logprobs": list, "text_offset": list})
    assert (reported["tokens"], reported["text_offset"]) == (["A"] * 3, [0, 1, 2])
    assert {len(values) for values in reported.values()} == {3}


def test_models(server: RunningServer) -> None:
    models = server.requests().get("/v1/models").json()
    assert_shape(models, {"object": str, "data": list})
    model = server.requests().get("/v1/models/tiny").json()
    assert_shape(model, {"id": str, "object": str, "created": int, "owned_by": str, "max_model_len": int})
    assert (models["data"], model["max_model_len"]) == ([model], 512)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_routes_count_as_inference(server: RunningServer, path: str) -> None:
    before = server.requests().get("/metrics").json()
    asked: dict[str, Any] = {"prompt": "a"} if path == "/v1/completions" else {"messages": MESSAGES}
    asked["use_cache"] = False
    post(server, path, n=2, **asked)
    events(server, path, **asked)
    after = server.requests().get("/metrics").json()
    assert after["requests"]["succeeded"] - before["requests"]["succeeded"] == 2
    assert after["throughput"]["tokens_generated"] - before["throughput"]["tokens_generated"] == 9


def test_the_fingerprint_stays_while_model_and_template_do(server: RunningServer) -> None:
    fingerprints = {post(server, "/v1/completions", prompt=prompt).json()["system_fingerprint"] for prompt in ("a", "b")}
    (fingerprint,) = fingerprints
    revision, template = fingerprint.rsplit("-", 1)
    assert revision
    assert len(template) == 8
