"""What a client may send and how long it may take, over raw sockets: each refusal has our error shape and harms nobody else."""

import re
import time

import psutil
import pytest

from running_server import RunningServer
from server.front.wire import GREETING, Wire, message


def test_a_body_declared_too_large_is_refused_before_it_is_sent(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(GREETING + b"content-length: 99999999\r\n\r\n")
        status, headers, body = wire.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert "exceeds the limit of 20000 bytes" in message(body)
        assert wire.is_closed_by_server()


def test_a_body_without_a_length_is_counted(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(GREETING + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            wire.send(b"1f40\r\n" + b" " * 0x1F40 + b"\r\n")
        assert wire.answer()[0] == 413


def test_trailers_without_end_take_no_memory(server: RunningServer) -> None:
    front = psutil.Process(server.process.pid)
    before = most = front.memory_info().rss
    with Wire(server) as wire:
        wire.send(GREETING + b"transfer-encoding: chunked\r\n\r\n0\r\n")
        for _ in range(200):
            wire.send(b"a: bbbbbbbb\r\n" * 10_000)
            most = max(most, front.memory_info().rss)
    assert most - before < 50_000_000


def test_a_client_that_leaves_in_its_body_is_no_error_of_ours(server: RunningServer) -> None:
    def left() -> int:
        requests = server.requests().get("/metrics").json()["requests"]
        assert requests["errors"] == errors
        return int(requests["client_errors"])

    errors = server.requests().get("/metrics").json()["requests"]["errors"]
    before = left()
    with Wire(server) as wire:
        wire.send(GREETING + b"content-length: 30\r\n\r\n{")
    server.wait_for(lambda: left() > before)


def test_a_slow_body_ends_with_408(server: RunningServer) -> None:
    with Wire(server) as wire:
        began = time.monotonic()
        wire.send(GREETING + b'content-length: 100\r\n\r\n{"prompt"')
        status, headers, body = wire.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "body did not arrive within 1 s" in message(body)
        assert 0.9 < time.monotonic() - began < 5


@pytest.mark.parametrize("head", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_a_slow_head_ends_with_408(server: RunningServer, head: bytes) -> None:
    with Wire(server) as wire:
        began = time.monotonic()
        wire.send(head)
        status, headers, body = wire.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "line and headers did not arrive within 1 s" in message(body)
        assert wire.is_closed_by_server()
        assert 0.9 < time.monotonic() - began < 5


def test_a_dripped_head_does_not_buy_time(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nx-slow: ")
        assert wire.drip(b"a", seconds=20)
        assert wire.answer()[0] == 408


@pytest.mark.parametrize("noise", [b"\r\n", b"\r\n\r\n"])
def test_empty_lines_after_an_answer_do_not_keep_a_connection(server: RunningServer, noise: bytes) -> None:
    with Wire(server) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert wire.answer()[0] == 200
        wire.send(noise)
        assert wire.answer()[0] == 408
        assert wire.is_closed_by_server()


def test_the_dripped_body_of_an_answered_request_does_not_keep_a_connection(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert wire.answer()[0] == 404
        assert wire.drip(b"a", seconds=20)
        assert wire.is_closed_by_server()


def test_a_huge_head_ends_with_431(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nx-long: " + b"values" * 15_000)
        status, _, body = wire.answer()
        assert status == 431
        assert "exceed 65536 bytes" in message(body)


def test_too_many_headers_end_with_431(server: RunningServer) -> None:
    before = server.metric("llm_connections_refused_total", code="head_too_large")
    with Wire(server) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 99 + b"\r\n")
        assert wire.answer()[0] == 200
        wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n")
        status, _, body = wire.answer()
        assert status == 431
        assert "more than 100 headers" in message(body)
    assert server.metric("llm_connections_refused_total", code="head_too_large") - before == 1


def test_a_client_that_sends_all_of_a_body_too_large_reads_why_it_is_refused(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(GREETING + b"content-length: 8000000\r\n\r\n")
        for _ in range(80):
            wire.send(b" " * 100_000)
        assert wire.answer()[0] == 413


@pytest.mark.parametrize(
    "head",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /api/v1/infer HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /api/v1/infer HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_our_shape(server: RunningServer, head: bytes) -> None:
    with Wire(server) as wire:
        wire.send(head)
        status, headers, body = wire.answer()
        assert (status, headers["connection"], message(body)) == (400, "close", "the request is not valid HTTP/1.1")


def test_an_old_connection_closes_after_its_answer_and_a_young_one_stays(server: RunningServer) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with Wire(server) as wire:
        opened = time.monotonic()
        wire.send(request)
        status, headers, _ = wire.answer()
        assert status == 200
        while "connection" not in headers:
            wire.send(request)
            _, headers, _ = wire.answer()
        assert headers["connection"] == "close"
        assert 0.7 < time.monotonic() - opened < 5, "CONNECTION_SECONDS=1, give or take a quarter"
        assert wire.is_closed_by_server()


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    with Wire(server) as wire:
        wire.send(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert [wire.answer()[0], wire.answer()[0]] == [404, 200]


def test_a_request_id_is_kept_when_it_is_harmless_and_made_otherwise(server: RunningServer) -> None:
    def sent(request_id: str) -> str:
        response = server.requests().request(
            "POST", "/api/v1/infer", json={"prompt": "a", "max_tokens": 1}, headers={"x-request-id": request_id}
        )
        assert response.json()["request_id"] == response.headers["x-request-id"]
        return str(response.json()["request_id"])

    assert sent("trace-1.a:b_c") == "trace-1.a:b_c"
    for hostile in ("a b", "a\tb", '"quoted"', "x" * 129):
        assert re.fullmatch("[0-9a-f]{32}", sent(hostile))


def test_the_same_request_id_twice_at_once_is_two_requests(server: RunningServer) -> None:
    with Wire(server) as one, Wire(server) as other:
        body = b'{"prompt": "twins", "max_tokens": 50, "temperature": 0, "use_cache": false}'
        request = GREETING + b"x-request-id: same\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        one.send(request)
        other.send(request)
        first, second = one.answer(), other.answer()
    assert (first[0], second[0]) == (200, 200)
    assert first[2]["text"] == second[2]["text"]
