"""Where one request ends and the next begins, over raw sockets: what two servers could read differently is refused, and costs nobody else
an answer."""

import httpx
import pytest

from running_server import RunningServer
from server.front.wire import GREETING, Wire, message

BODY = b'{"prompt": "a", "max_tokens": 1, "temperature": 0}'
INFER = GREETING + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
UPGRADE = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        GREETING + UPGRADE + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
        GREETING + UPGRADE + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
        GREETING.replace(b"host", UPGRADE.replace(b"h2c", b"websocket") + b"host") + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    ],
)
@pytest.mark.parametrize("is_dripped", [False, True])
def test_a_wish_for_another_protocol_is_ignored(server: RunningServer, sent: bytes, *, is_dripped: bool) -> None:
    with Wire(server) as wire:
        for _ in range(2):
            for part in (bytes([byte]) for byte in sent) if is_dripped else [sent]:
                wire.send(part)
            status, headers, body = wire.answer()
            assert (status, body["tokens_generated"]) == (200, 1)
            assert "upgrade" not in headers
        wire.send(HEALTH)
        assert wire.answer()[0] == 200


def test_a_thousand_pipelined_wishes_for_another_protocol_are_a_thousand_requests(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send((b"GET /nowhere HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n") * 1000)
        wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        statuses = wire.answers(1001)
    assert statuses == [404] * 1000 + [200]


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"2\r\n{}}}\r\n", b"-1\r\n", b"fffffffffffffffff\r\n"])
def test_a_body_with_broken_framing_ends_with_400(server: RunningServer, chunk: bytes) -> None:
    before = server.load()["arrivals"]
    with Wire(server) as wire:
        wire.send(GREETING + b"transfer-encoding: chunked\r\n\r\n5\r\n{    \r\n" + chunk)
        status, headers, body = wire.answer()
        assert (status, headers["connection"], message(body)) == (400, "close", "the request is not valid HTTP/1.1")
        assert headers["x-request-id"]
        assert wire.is_closed_by_server()
    assert server.load()["arrivals"] == before


def test_garbage_behind_requests_costs_them_no_answer(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(INFER + INFER + b"\x00\xffNONSENSE\r\n\r\n" + INFER)
        assert wire.answers(2) == [200, 200]


def test_a_request_before_one_with_a_broken_body_is_answered_and_so_is_the_broken_one(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(INFER + GREETING + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        assert wire.answers(2) == [200, 400]


CHUNKED = b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", "it has 0 Host headers; it needs exactly one"),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n", "it has 2 Host headers; it needs exactly one"),
        (b"GET /health HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", "it has 2 Host headers; it needs exactly one"),
        (b"GET /health HTTP/1.1\r\nhost: a/b?c\r\n\r\n", "its Host must be a name or an address, with or without a port"),
        (b"GET /health HTTP/1.1\r\nhost: a@b\r\n\r\n", "its Host must be a name or an address, with or without a port"),
        (b"GET /health HTTP/2.0\r\nhost: a\r\n\r\n", "its version must be HTTP/1.0 or HTTP/1.1"),
        (GREETING + b"transfer-encoding: gzip\r\n" + CHUNKED, "its Transfer-Encoding must be chunked, once and alone, in HTTP/1.1"),
        (GREETING + CHUNKED.replace(b"chunked", b"gzip, chunked"), "its Transfer-Encoding must be chunked, once and alone, in HTTP/1.1"),
        (GREETING + CHUNKED.replace(b"chunked", b"identity"), "its Transfer-Encoding must be chunked, once and alone, in HTTP/1.1"),
        (GREETING + CHUNKED.replace(b"chunked", b"\x0bchunked"), None),
        (GREETING.replace(b"1.1", b"1.0") + CHUNKED, "its Transfer-Encoding must be chunked, once and alone, in HTTP/1.1"),
        (GREETING + b"content-length: 5\r\n" + CHUNKED, None),
        (GREETING + CHUNKED.replace(b"\r\n", b"\r\ncontent-length: 5\r\n", 1), None),
        (GREETING + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", None),
        (GREETING + b"content-length: 2, 2\r\n\r\n{}", None),
        (GREETING + b"content-length: +2\r\n\r\n{}", None),
        (GREETING + b"content-length : 2\r\n\r\n{}", None),
        (GREETING + b"x-folded: a\r\n b\r\ncontent-length: 2\r\n\r\n{}", None),
        (GREETING + b"x-bare: a\rb\r\ncontent-length: 2\r\n\r\n{}", None),
        (GREETING + b"x-nul: a\x00b\r\ncontent-length: 2\r\n\r\n{}", None),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n", None),
    ],
)
def test_what_two_servers_could_read_differently_is_refused(server: RunningServer, sent: bytes, why: str | None) -> None:
    with Wire(server) as wire:
        wire.send(sent)
        status, headers, body = wire.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert message(body) == "the request is not valid HTTP/1.1" + (f": {why}" if why else "")
        assert wire.is_closed_by_server()


@pytest.mark.parametrize("host", [b"", b"model.team-a.svc.cluster.local:8000", b"[::1]:8000", b"10.0.0.1", b"under_score"])
def test_every_address_of_a_server_is_a_host(server: RunningServer, host: bytes) -> None:
    with Wire(server) as wire:
        wire.send(b"GET http://proxied/health HTTP/1.1\r\nhost: %b\r\n\r\n" % host)
        assert wire.answer()[0] == 200


def test_http_1_0_needs_no_host(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert wire.answers(1) == [200]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_what_can_be_got_on_the_clients_port_has_a_head(server: RunningServer, path: str) -> None:
    check_head(server.port, path)


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/internal/load"])
def test_what_can_be_got_on_the_internal_port_has_a_head(server: RunningServer, path: str) -> None:
    check_head(server.internal_port, path)


def check_head(port: int, path: str) -> None:
    """The head that GET has, and nothing behind it: the next answer on the connection is found where it begins."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        head, got, again = client.head(path), client.get(path), client.head(path)
    assert (head.status_code, head.content, again.status_code) == (200, b"", 200)
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_a_head_of_what_can_only_be_posted_is_refused(server: RunningServer) -> None:
    assert server.requests().request("HEAD", "/api/v1/infer").status_code == 405
