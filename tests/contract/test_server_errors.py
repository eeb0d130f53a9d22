"""Every route answers every mistake as JSON in the OpenAI shape, without a stack trace, and names what is wrong."""

import httpx
import psutil
import pytest

from running_server import RunningServer

INFER = "/api/v1/infer"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ROUTES = "/detokenize, /health, /metrics, /tokenize, /v1/chat/completions, /v1/completions, /v1/models, /v1/models/{model}"

MISTAKES = [
    ("GET", "/", b"", 404, None),
    ("GET", "/docs", b"", 404, None),
    ("GET", "/openapi.json", b"", 404, None),
    ("POST", "/v1/../etc", b"", 404, None),
    ("GET", "//health", b"", 404, None),
    ("GET", "/health/", b"", 404, None),
    ("GET", "/internal/load", b"", 404, None),
    ("GET", "/livez", b"", 404, None),
    ("GET", "/readyz", b"", 404, None),
    ("GET", INFER, b"", 405, None),
    ("OPTIONS", INFER, b"", 405, None),
    ("PUT", "/health", b"", 405, None),
    ("DELETE", "/metrics", b"", 405, None),
    ("POST", INFER, b"", 400, None),
    ("POST", INFER, b"{", 400, None),
    ("POST", INFER, b'{"prompt": "a", "temperature": NaN}', 400, None),
    ("POST", INFER, b"[" * 19_000, 400, None),
    ("POST", INFER, b"{}", 400, "prompt"),
    ("POST", INFER, b'{"prompt": "a", "top_p": 0}', 400, "top_p"),
    ("POST", INFER, b'{"prompt": "a", "n": 2}', 400, "n"),
    ("POST", INFER, b" " * 20_001, 413, None),
    ("GET", CHAT, b"", 405, None),
    ("POST", "/v1/models", b"", 405, None),
    ("GET", "/v1/models/", b"", 404, "model"),
    ("GET", "/v1/models/other/model", b"", 404, "model"),
    ("POST", CHAT, b"{}", 400, "model"),
    ("POST", CHAT, b'{"model": "tiny"}', 400, "messages"),
    ("POST", CHAT, b'{"model": "other", "messages": [{"role": "user", "content": "a"}]}', 404, "model"),
    ("POST", CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": true, "tools": [1]}', 400, "tools[0]"),
    ("POST", CHAT, b'{"model": "tiny", "messages": ' + b"[" * 19_000, 400, "messages[0]"),
    ("POST", CHAT, b'{"model": "tiny", "metadata": ' + b"[" * 19_000, 400, "metadata"),
    ("POST", COMPLETIONS, b'{"model": "tiny", "prompt": ""}', 400, "prompt"),
    ("POST", COMPLETIONS, b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, None),
    ("POST", COMPLETIONS, b'{"model": "tiny", "prompt": ["a", 1]}', 400, "prompt"),
    ("POST", COMPLETIONS, b'{"model": "tiny", "prompt": "a", "use_cache": 1}', 400, "use_cache"),
    ("GET", "/tokenize", b"", 405, None),
    ("POST", "/tokenize", b"{}", 400, "prompt"),
    ("POST", "/tokenize", b'{"prompt": "a", "messages": []}', 400, "messages"),
    ("POST", "/tokenize", b'{"messages": []}', 400, "messages"),
    ("POST", "/tokenize", b'{"messages": [{"role": "nobody", "content": ""}]}', 400, "messages"),
    ("POST", "/tokenize", b'{"messages": [{"role": "user", "content": "a"}], "add_special_tokens": true}', 400, "add_special_tokens"),
    ("POST", "/tokenize", b'{"prompt": "a", "add_generation_prompt": false}', 400, "add_generation_prompt"),
    ("POST", "/tokenize", b'{"prompt": "a", "model": "other"}', 404, "model"),
    ("POST", "/tokenize", b'{"prompt": "a", "every": 1}', 400, "every"),
    ("POST", "/detokenize", b"{}", 400, "tokens"),
    ("POST", "/detokenize", b'{"tokens": [259]}', 400, "tokens"),
    ("POST", "/detokenize", b'{"tokens": [-1]}', 400, "tokens[0]"),
    ("POST", "/detokenize", b'{"tokens": [1], "model": "other"}', 404, "model"),
]


def test_mistakes_again_and_again_take_no_memory(server: RunningServer) -> None:
    front = psutil.Process(server.process.pid)
    before = 0
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=60) as client:
        for turn in range(12):
            for method, path, body, status, _ in MISTAKES:
                assert client.request(method, path, content=body).status_code == status
            if turn == 1:
                before = front.memory_info().rss
    assert front.memory_info().rss - before < 20_000_000


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), MISTAKES)
def test_a_mistake_on_the_clients_port(server: RunningServer, method: str, path: str, body: bytes, status: int, field: str | None) -> None:
    response = server.requests().request(method, path, content=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    (error,) = response.json().values()
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert error["message"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", INFER, 404), ("GET", "/health", 404), ("POST", "/livez", 405)]
)
def test_a_mistake_on_the_internal_port(server: RunningServer, method: str, path: str, status: int) -> None:
    response = server.internal().request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unknown_route_names_the_known_ones(server: RunningServer) -> None:
    message = server.requests().get("/v2").json()["error"]["message"]
    assert message == f"/v2 is not a route of this server; the routes are {INFER}, {ROUTES}"


def test_a_method_that_is_not_allowed_names_the_one_that_is(server: RunningServer) -> None:
    assert server.requests().get(INFER).headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/v1/infer", b'{"prompt": "a", "\\u001b[2J\\u202e' + b"x" * 9000 + b'": 1}'), ("/no%1b%5b2J%0awhere", b"{}")],
    ids=["a field", "a path"],
)
def test_what_a_client_made_up_comes_back_short_and_printable(server: RunningServer, path: str, body: bytes) -> None:
    with server.client() as client:
        error = client.post(path, content=body).json()["error"]
    assert error["message"].isprintable()
    assert (error["param"] or "").isprintable()
    assert len(error["message"]) < 1000
