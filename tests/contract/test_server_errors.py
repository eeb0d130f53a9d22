"""Every route answers every mistake as JSON in the OpenAI shape, without a stack trace, and names what is wrong."""

import pytest

from running_server import RunningServer

INFER = "/api/v1/infer"

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
]


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
    assert message == f"/v2 is not a route of this server; the routes are {INFER}, /health, /metrics"


def test_a_method_that_is_not_allowed_names_the_one_that_is(server: RunningServer) -> None:
    assert server.requests().get(INFER).headers["allow"] == "POST"
