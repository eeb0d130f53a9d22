"""What nobody foresaw is answered, logged and over: no stack trace for the client, no place in the system that stays taken."""

import httpx
import pytest

import fake_model
from millrace_server.app import client_app
from millrace_server.engine.stream import QuarantinedRequest
from millrace_server.inference import Inference
from millrace_server.text import Text
from server.front.scripted import inference


async def post(server: Inference) -> httpx.Response:
    app = client_app(server, drain_began=lambda: None, keys=None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post("/api/v1/infer", json={"prompt": "a", "max_tokens": 2})


async def test_an_unexpected_error_is_a_500_with_an_id_and_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    server, engine = inference()
    server.text = Text(fake_model.tokenizer())
    engine.surprise = RuntimeError("a secret detail")
    response = await post(server)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"]
    assert "a secret detail" in caplog.text
    assert (server.admission.in_system, server.admission.completed) == (0, 0)
    assert server.metrics.requests().errors == 1


async def test_a_request_that_kills_the_engine_is_refused_so_that_nobody_tries_it_again() -> None:
    server, engine = inference()
    server.text = Text(fake_model.tokenizer())
    engine.surprise = QuarantinedRequest("the engine died repeatedly")
    response = await post(server)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "request_quarantined")
    assert response.json()["error"]["message"] == "the engine died repeatedly"
    assert (server.admission.in_system, server.metrics.requests().errors) == (0, 0)


async def test_a_silent_engine_is_not_waited_for_beyond_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace_server.answering.ENGINE_GRACE_SECONDS", 0.05)
    server, _ = inference(REQUEST_TIMEOUT="0.05")
    server.text = Text(fake_model.tokenizer())
    response = await post(server)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert server.admission.in_system == 0
