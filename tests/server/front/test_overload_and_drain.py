"""A server with one slot and a queue of two: full, late, left by its clients, and finally drained."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

import fake_model
from running_server import RunningServer
from server.front.wire import GREETING, Wire, message

LONG = {"max_tokens": 30_000, "temperature": 0, "use_cache": False}
"""Takes far longer than any deadline here."""
PATIENT_SECONDS = 120.0
"""No estimate of a wait comes near it."""
DEADLINE_SECONDS = 4.0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, two places in the queue."""
    model = fake_model.build(tmp_path_factory.mktemp("long"), max_position_embeddings=32_768, eos_token_id=None)
    settings = {"MAX_BATCH_SIZE": "1", "MAX_QUEUE_SIZE": "2", "REQUEST_TIMEOUT": str(PATIENT_SECONDS), "DRAIN_SECONDS": "20"}
    with RunningServer(tmp_path_factory.mktemp("narrow"), model=model, settings=settings) as server:
        yield server.wait_ready()


class Holder:
    """A client that keeps a slot, or a place in the queue, until it leaves."""

    def __init__(self, server: RunningServer, *, stream: bool = False) -> None:
        path, asks = (b"/v1/completions", {"model": "tiny", "stream": True}) if stream else (b"/api/v1/infer", {})
        body = json.dumps({"prompt": "held", **asks, **LONG}).encode()
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path, len(body)) + body)

    def leave(self) -> None:
        self._socket.close()


def wait_for_load(server: RunningServer, *, running: int, queued: int, seconds: float = 30) -> None:
    server.wait_for(lambda: (load := server.load())["running"] == running and load["queued"] == queued, seconds=seconds)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(narrow: RunningServer) -> None:
    before = narrow.load()
    runs = Holder(narrow)
    wait_for_load(narrow, running=1, queued=0)
    wait = [Holder(narrow), Holder(narrow)]
    wait_for_load(narrow, running=1, queued=2)
    assert narrow.requests().get("/health").json()["queue_size"] == 2
    began = time.monotonic()
    refused = narrow.requests().infer("one too many")
    assert time.monotonic() - began < 1
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("overloaded_error", "queue_full")
    assert "3 requests are already in the system" in error["message"]
    for holder in wait:
        holder.leave()
    wait_for_load(narrow, running=1, queued=0)
    runs.leave()
    wait_for_load(narrow, running=0, queued=0)
    load = narrow.load()
    assert load["arrivals"] - before["arrivals"] == 4, "who was refused is demand"
    assert load["completed"] - before["completed"] == 1, "who waited in vain held no slot"
    requests = narrow.requests().get("/metrics").json()["requests"]
    assert (requests["refused"], requests["client_errors"], requests["errors"]) == (1, 3, 0)


def test_a_deadline_ends_in_mid_generation_and_frees_the_slot(narrow: RunningServer) -> None:
    began = time.monotonic()
    response = narrow.requests().request(
        "POST", "/api/v1/infer", json={"prompt": "late", **LONG}, headers={"X-Request-Timeout": str(DEADLINE_SECONDS)}
    )
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert "not complete within 4 s" in error["message"]
    assert DEADLINE_SECONDS <= time.monotonic() - began < DEADLINE_SECONDS + 5
    wait_for_load(narrow, running=0, queued=0, seconds=2)
    assert narrow.requests().infer("next", max_tokens=1).status_code == 200


def test_clients_that_leave_free_the_slot_and_their_places_in_the_queue(narrow: RunningServer) -> None:
    holders = [Holder(narrow) for _ in range(3)]
    wait_for_load(narrow, running=1, queued=2)
    seen = len(narrow.log_lines())
    for holder in holders:
        holder.leave()
    wait_for_load(narrow, running=0, queued=0, seconds=2)
    began = time.monotonic()
    assert narrow.requests().infer("next", max_tokens=1).status_code == 200
    assert time.monotonic() - began < 5, "the engine's slot is free as well"
    lines = narrow.log_lines()[seen:]
    assert len([line for line in lines if line.get("status") == 499]) == 3
    assert [line for line in lines if line["level"] != "info"] == []


def test_a_thousand_clients_that_leave_leave_nothing(narrow: RunningServer) -> None:
    """Plain ones and streams; one runs, two are queued, the others are about to be refused, or not yet read."""
    for crowd in range(200):
        holders = [Holder(narrow, stream=(crowd + each) % 2 == 0) for each in range(5)]
        if crowd % 4 == 0:
            narrow.wait_for(lambda: narrow.load()["running"] == 1)
        for holder in holders:
            holder.leave()
    wait_for_load(narrow, running=0, queued=0, seconds=2)
    assert narrow.requests().infer("next", max_tokens=1).status_code == 200


def test_a_killed_engine_fails_its_requests_at_once_and_comes_back(narrow: RunningServer) -> None:
    (engine,) = [child for child in psutil.Process(narrow.process.pid).children() if "millrace_server.engine.process" in child.cmdline()]
    started = narrow.metric("llm_engine_starts_total")
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(narrow.requests().infer, f"held {number}", **LONG) for number in range(2)]
        wait_for_load(narrow, running=1, queued=1)
        began = time.monotonic()
        engine.kill()
        answers = [future.result() for future in held]
        assert time.monotonic() - began < 2
    assert [answer.status_code for answer in answers] == [503, 503]
    assert [answer.json()["error"]["code"] for answer in answers] == ["engine_unavailable"] * 2
    assert narrow.internal().get("/livez").status_code == 200
    assert narrow.internal().get("/readyz").status_code == 503
    assert narrow.requests().get("/health").json()["status"] == "loading"
    load = narrow.load()
    assert (load["ready"], load["running"], load["queued"]) == (False, 0, 0)
    narrow.wait_for(lambda: narrow.internal().get("/readyz").status_code == 200)
    assert narrow.requests().infer("back", max_tokens=1).status_code == 200
    assert (started, narrow.metric("llm_engine_starts_total")) == (1, 2)


def test_a_drain_finishes_running_and_waiting_requests_and_exits_with_0(narrow: RunningServer) -> None:
    """The module's last test: it ends the server."""
    work = {"max_tokens": 5, "temperature": 0, "use_cache": False}
    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=f"http://127.0.0.1:{narrow.port}", trust_env=False, timeout=60) as pooled:
        assert pooled.get("/health").status_code == 200
        running = Holder(narrow)
        wait_for_load(narrow, running=1, queued=0)
        waiting = pool.submit(narrow.requests().infer, "waiting", **work)
        wait_for_load(narrow, running=1, queued=1)
        ended = pool.submit(narrow.terminate)
        narrow.wait_for(lambda: narrow.load()["draining"])
        kept = pool.submit(pooled.post, "/api/v1/infer", json={"prompt": "over a connection from before", **work})
        wait_for_load(narrow, running=1, queued=2)

        assert narrow.internal().get("/readyz").status_code == 503
        assert narrow.internal().get("/livez").status_code == 200
        refused = narrow.requests().infer("over a new connection")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        unhealthy = narrow.requests().get("/health")
        assert (unhealthy.status_code, unhealthy.json()["status"]) == (503, "draining")

        running.leave()
        answers = [waiting.result(), kept.result()]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.headers["connection"] for answer in answers] == ["close", "close"]
        assert ended.result() == 0
    assert not narrow.termination_log.exists()


def test_a_body_that_comes_late_in_the_drain_is_waited_for(tmp_path: Path, tiny_model: Path) -> None:
    with RunningServer(tmp_path, model=tiny_model) as server, ThreadPoolExecutor(1) as pool, Wire(server.wait_ready()) as wire:
        wire.send(GREETING + b"content-length: 32\r\n\r\n")
        assert server.requests().get("/health").status_code == 200, "what came before has been read"
        ended = pool.submit(server.terminate)
        server.wait_for(lambda: server.load()["draining"])
        wire.send(b'{"prompt": "a", "max_tokens": 1}')
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert ended.result() == 0


def test_a_body_that_does_not_come_until_the_drain_is_over_is_refused_in_our_shape(tmp_path: Path, tiny_model: Path) -> None:
    settings = {"DRAIN_SECONDS": "1"}
    with RunningServer(tmp_path, model=tiny_model, settings=settings) as server, Wire(server.wait_ready()) as wire:
        wire.send(GREETING + b"content-length: 32\r\n\r\n{")
        assert server.requests().get("/health").status_code == 200, "what came before has been read"
        assert server.terminate() == 0
        status, headers, body = wire.answer()
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        assert "shut down before the request was complete" in message(body)
        assert wire.is_closed_by_server()
