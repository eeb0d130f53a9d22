"""A real server with keys: who gets in, by which paths, headers and framing, and until when."""

from typing import Any

import openai
import pytest

from millrace_server.app import client_app
from millrace_server.keys.entries import make
from server.front.guarded import ALICE, ALICE_LINE, BOB, BOB_LINE, Guarded
from server.front.scripted import inference
from server.front.wire import GREETING, Wire, message

EVERY_ROUTE = [
    ("POST", "/api/v1/infer"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/metrics"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *EVERY_ROUTE,
        *(("HEAD", path) for _, path in EVERY_ROUTE),
        *(("OPTIONS", path) for _, path in EVERY_ROUTE),
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/internal/load"),
        ("GET", "//health"),
        ("GET", "/health/"),
        ("GET", "/health%20"),
        ("GET", "/health%00"),
        ("GET", "/health%2f..%2fmetrics"),
        ("GET", "/health;x"),
        ("GET", "/HEALTH"),
        ("GET", "/%2568ealth"),
        ("GET", "//v1/models"),
        ("GET", "/v1//models"),
        ("GET", "/%76%31/models"),
        ("POST", "/api/v1/infer/"),
        ("POST", "/health/../api/v1/infer"),
        ("POST", "/%61pi/v1/infer?x=/health"),
        ("DELETE", "/v1/models"),
    ],
)
def test_nothing_but_health_is_open(guarded: Guarded, method: str, path: str) -> None:
    # The client library would tidy up the path: it is sent as it stands.
    with Wire(guarded.server) as wire:
        wire.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        status, headers, body = wire.answer() if method != "HEAD" else (*wire.head(), None)
    assert (status, headers["www-authenticate"], headers["x-request-id"]) == (401, 'Bearer realm="millrace"', "mine")
    if body is not None:
        assert message(body).startswith("this needs a valid API key")


def test_the_routes_that_are_tested_are_all_there_are() -> None:
    app = client_app(inference()[0], drain_began=lambda: None, keys=None)
    known = {path.replace("{model:path}", "tiny") for route in app.routes if (path := getattr(route, "path", None))}
    assert known - {path for _, path in EVERY_ROUTE} == {"/health"}


@pytest.mark.parametrize("path", ["/health", "/%68ealth", "/health?verbose", "http://elsewhere/health"])
def test_health_needs_no_key_however_it_is_spelled(guarded: Guarded, path: str) -> None:
    with Wire(guarded.server) as wire:
        wire.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert wire.answer()[0] == 200
    assert guarded.get("/health", key="wrong").status_code == 200, "nobody looks at the key"


@pytest.mark.parametrize("path", ["/metrics", "/internal/load", "/livez", "/readyz"])
def test_the_internal_port_needs_no_key(guarded: Guarded, path: str) -> None:
    assert guarded.server.internal().get(path).status_code == 200


KEY = ALICE.encode()
REFUSED_HEADERS = {
    "none": b"",
    "empty": b"authorization:\r\n",
    "no key": b"authorization: Bearer\r\n",
    "no key but spaces": b"authorization: Bearer    \r\n",
    "no scheme": b"authorization: %b\r\n" % KEY,
    "another scheme": b"authorization: Basic %b\r\n" % KEY,
    "half a scheme": b"authorization: Bear %b\r\n" % KEY,
    "no space": b"authorization: Bearer%b\r\n" % KEY,
    "a tab": b"authorization: Bearer\t%b\r\n" % KEY,
    "a comma": b"authorization: Bearer %b,\r\n" % KEY,
    "two keys": b"authorization: Bearer %b %b\r\n" % (KEY, KEY),
    "two headers": b"authorization: Bearer %b\r\nAuthorization: Bearer %b\r\n" % (KEY, KEY),
    "a good one behind a bad one": b"authorization: Bearer x\r\nauthorization: Bearer %b\r\n" % KEY,
    "a good one before a bad one": b"authorization: Bearer %b\r\nauthorization: Basic eA==\r\n" % KEY,
    "600 characters": b"authorization: Bearer %b\r\n" % (b"x" * 600),
    "a key with 600 more": b"authorization: Bearer %b%b\r\n" % (KEY, b"x" * 600),
    "not ASCII": b"authorization: Bearer \xc3\xa4\xff%b\r\n" % KEY,
    "a C1 control character": b"authorization: Bearer \x9b%b\r\n" % KEY,
    "the hash": b"authorization: Bearer %b\r\n" % ALICE_LINE.split(":")[1].encode(),
    "the line": b"authorization: Bearer %b\r\n" % ALICE_LINE.encode(),
    "the name": b"authorization: Bearer alice\r\n",
    "another case": b"authorization: Bearer %b\r\n" % KEY.upper(),
    "another header": b"x-api-key: %b\r\napi-key: %b\r\ncookie: authorization=%b\r\n" % (KEY, KEY, KEY),
    "a proxy's header": b"proxy-authorization: Bearer %b\r\n" % KEY,
    "an underscore": b"authorization_: Bearer %b\r\n" % KEY,
    "the path of another": b"x-original-url: /health\r\nx-forwarded-prefix: /health\r\nx-http-method-override: GET\r\n",
}


@pytest.mark.parametrize("header", REFUSED_HEADERS.values(), ids=REFUSED_HEADERS.keys())
def test_a_wrong_header_is_no_key(guarded: Guarded, header: bytes) -> None:
    before = guarded.used("llm_auth_failures_total")
    with Wire(guarded.server) as wire:
        wire.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n")
        status, headers, body = wire.answer()
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="millrace"')
        assert message(body).startswith("this needs a valid API key"), "the same words for everybody"
    assert guarded.used("llm_auth_failures_total") - before == 1


@pytest.mark.parametrize("header", [b"authorization: bearer %b", b"AUTHORIZATION: BEARER    %b", b"Authorization:Bearer %b  "])
def test_a_right_header_may_be_spelled_as_http_allows(guarded: Guarded, header: bytes) -> None:
    with Wire(guarded.server) as wire:
        wire.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + header % KEY + b"\r\n\r\n")
        assert wire.answer()[0] == 200


BODY = b'{"prompt": "a", "max_tokens": 1}'
LARGE = b" " * 300_000
INFER_WITH_KEY = GREETING + b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n" % (KEY, len(BODY)) + BODY
UPGRADE = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
        b"content-length: %d\r\n\r\n" % len(LARGE) + LARGE,
        b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nx-trailer: a\r\n\r\n",
        b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY,
        UPGRADE + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
        # What stands in a refused body is not a request.
        b"content-length: %d\r\n\r\n" % len(INFER_WITH_KEY) + INFER_WITH_KEY,
    ],
    ids=["small", "larger than the limit", "chunked", "expect", "upgrade", "a request inside"],
)
def test_a_refused_body_ends_where_it_ends(guarded: Guarded, body: bytes) -> None:
    before = guarded.server.load()
    with Wire(guarded.server) as wire:
        for _ in range(3):
            wire.send(GREETING + body)
            assert wire.answer()[0] == 401
        wire.send(INFER_WITH_KEY)
        assert wire.answer()[0] == 200, "the connection goes on"
    assert guarded.server.load()["arrivals"] - before["arrivals"] == 1, "who has no key is no demand"


def test_pipelined_requests_are_judged_one_by_one(guarded: Guarded) -> None:
    refused = GREETING + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with Wire(guarded.server) as wire:
        wire.send((refused + INFER_WITH_KEY) * 5 + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert wire.answers(11) == [401, 200] * 5 + [200]


def test_the_refusal_comes_before_any_byte_of_the_body(guarded: Guarded) -> None:
    for announced in (
        b"content-length: 30\r\n",
        b"content-length: 99999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
    ):
        with Wire(guarded.server) as wire:
            wire.send(GREETING + announced + b"\r\n")
            assert wire.answer()[0] == 401


def test_a_refused_body_that_never_ends_is_cut(guarded: Guarded) -> None:
    with Wire(guarded.server) as wire:
        wire.send(GREETING + b"content-length: 99999999\r\n\r\n")
        assert wire.answer()[0] == 401
        wire.send(b"x")
        assert wire.is_closed_by_server()


def test_with_a_key_everything_is_as_without_keys(guarded: Guarded) -> None:
    assert guarded.infer("a", max_tokens=2).status_code == 200
    assert guarded.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert guarded.get("/nowhere").status_code == 404
    assert guarded.get("/api/v1/infer").status_code == 405
    assert guarded.infer("a", max_tokens=0).status_code == 400
    assert guarded.request("HEAD", "/v1/models").status_code == 200


def test_the_official_client_has_its_own_class_for_it(guarded: Guarded) -> None:
    base = f"http://127.0.0.1:{guarded.server.port}/v1"
    greedy: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 3}
    with openai.OpenAI(base_url=base, api_key=ALICE, max_retries=0, timeout=60) as client:
        whole = client.chat.completions.create(**greedy).choices[0].message.content
        chunks = client.chat.completions.create(stream=True, **greedy)
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole
    with openai.OpenAI(base_url=base, api_key="sk-wrong", max_retries=0, timeout=60) as client:
        with pytest.raises(openai.AuthenticationError, match="valid API key") as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(stream=True, **greedy)


def test_keys_change_while_the_server_runs(guarded: Guarded) -> None:
    carol, carol_line = make("carol")
    with guarded.server.client() as kept:

        def status(key: str) -> int:
            return kept.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert (status(ALICE), status(carol)) == (200, 401)
        guarded.swap(ALICE_LINE, carol_line)
        guarded.server.wait_for(lambda: status(carol) == 200)
        assert (status(ALICE), status(BOB)) == (200, 401)
        guarded.swap("nonsense")
        guarded.server.wait_for(lambda: guarded.used("llm_key_file_valid") == 0)
        assert (status(ALICE), status(carol)) == (200, 200)
        guarded.file.unlink()
        guarded.server.wait_for(lambda: "it cannot be read (No such file or directory)" in guarded.server.log())
        assert (status(ALICE), status(carol)) == (200, 200)
        guarded.swap(ALICE_LINE, BOB_LINE)
        guarded.server.wait_for(lambda: status(carol) == 401)
        assert (status(ALICE), status(BOB), guarded.used("llm_key_file_valid")) == (200, 200, 1)
    complaints = [line["why"] for line in guarded.server.log_lines() if line["message"].startswith("the key file is refused")]
    assert len(complaints) == 2
    assert "nonsense" not in guarded.server.log()
