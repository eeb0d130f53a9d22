"""Clients that hold connections and give nothing back: too many of them, and those that never read."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import fake_model
from running_server import RunningServer
from server.front.wire import GREETING, Wire, message

CONNECTIONS = 20
IDLE_CONNECTIONS = 5_000
IDLE_BYTES = 30_000
"""That one connection may cost."""
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
LONG = b'{"model": "tiny", "prompt": "a", "max_tokens": 30000, "logprobs": 5, "n": 8, "stream": true}'
"""An answer of many megabytes."""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = fake_model.build(tmp_path_factory.mktemp("long"), max_position_embeddings=32_768, eos_token_id=None)
    settings = {"MAX_CONNECTIONS": str(CONNECTIONS), "BODY_TIMEOUT": "1", "HEAD_TIMEOUT": "60", "REQUEST_TIMEOUT": "600"}
    with RunningServer(tmp_path_factory.mktemp("crowded"), model=model, settings=settings) as server:
        yield server.wait_ready()


def connections(server: RunningServer) -> int:
    """Open ones on the clients' port, as the kernel sees them."""
    every = psutil.Process(server.process.pid).net_connections("tcp")
    return len([each for each in every if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port])


def test_one_connection_too_many_is_told_so_and_the_others_and_the_probes_go_on(crowded: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(Wire(crowded)) for _ in range(CONNECTIONS)]
        for wire in held:
            wire.send(HEALTH)
            assert wire.answer()[0] == 200
        for _ in range(3):
            with Wire(crowded) as late:
                late.send(GREETING + b"content-length: 100000\r\n\r\n" + b" " * 100_000)
                status, headers, body = late.answer()
                assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
                assert message(body) == f"{CONNECTIONS} connections are open, the limit of this replica"
                assert late.is_closed_by_server()
        assert crowded.internal().get("/livez").status_code == 200
        assert crowded.internal().get("/readyz").status_code == 200
        held[0].send(HEALTH)
        assert held[0].answer()[0] == 200
    crowded.wait_for(lambda: connections(crowded) == 0)
    assert crowded.requests().get("/health").status_code == 200


def test_five_thousand_connections_that_say_nothing_cost_little_and_are_closed_in_time(tmp_path: Path, tiny_model: Path) -> None:
    settings = {"MAX_CONNECTIONS": "6000", "HEAD_TIMEOUT": "15", "DTYPE": "float32"}
    with RunningServer(tmp_path, model=tiny_model, settings=settings) as server, contextlib.ExitStack() as stack:
        server.wait_ready()
        alone = server.requests().infer("a", temperature=0, use_cache=False, max_tokens=8).json()["text"]
        front = psutil.Process(server.process.pid)
        before = front.memory_info().rss
        for _ in range(IDLE_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        server.wait_for(lambda: connections(server) == IDLE_CONNECTIONS)
        assert front.memory_info().rss - before < IDLE_CONNECTIONS * IDLE_BYTES
        assert server.requests().infer("a", temperature=0, use_cache=False, max_tokens=8).json()["text"] == alone
        server.wait_for(lambda: connections(server) == 0, seconds=60)
        assert server.requests().get("/health").status_code == 200


def test_a_client_that_never_reads_its_stream_is_cut_and_the_work_for_it_ends(crowded: RunningServer) -> None:
    with unread(crowded) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(LONG) + LONG)
        crowded.wait_for(lambda: crowded.load()["running"] > 0)
        crowded.wait_for(lambda: connections(crowded) == 0)
        crowded.wait_for(lambda: (load := crowded.load())["running"] == load["queued"] == 0, seconds=5)


def test_a_client_that_asks_on_and_on_and_never_reads_is_cut(crowded: RunningServer) -> None:
    with unread(crowded) as client:
        with pytest.raises(ConnectionError):
            ask_without_end(client)
        crowded.wait_for(lambda: connections(crowded) == 0)


def ask_without_end(client: socket.socket) -> None:
    while True:
        client.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n" * 100)


@contextlib.contextmanager
def unread(server: RunningServer) -> Iterator[socket.socket]:
    """A connection whose client has hardly any room for answers."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(60)
        client.connect(("127.0.0.1", server.port))
        yield client
