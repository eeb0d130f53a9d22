"""A server with one slot and a queue of two: full, late, left by its clients, and finally drained."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

import fake_model
from running_server import RunningServer

LONG = {"max_tokens": 30_000, "temperature": 0, "use_cache": False}
"""Takes far longer than any deadline here."""
TIMEOUT_SECONDS = 3.0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, two places in the queue."""
    model = fake_model.build(tmp_path_factory.mktemp("long"), max_position_embeddings=32_768, eos_token_id=None)
    settings = {"MAX_BATCH_SIZE": "1", "MAX_QUEUE_SIZE": "2", "REQUEST_TIMEOUT": str(TIMEOUT_SECONDS), "DRAIN_SECONDS": "20"}
    with RunningServer(tmp_path_factory.mktemp("narrow"), model=model, settings=settings) as server:
        yield server.wait_ready()


def wait_for_load(server: RunningServer, *, running: int, queued: int, seconds: float = 30) -> None:
    server.wait_for(lambda: (load := server.load())["running"] == running and load["queued"] == queued, seconds=seconds)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(narrow: RunningServer) -> None:
    with ThreadPoolExecutor(3) as pool:
        before = narrow.load()
        held = [pool.submit(narrow.requests().infer, f"held {number}", **LONG) for number in range(3)]
        wait_for_load(narrow, running=1, queued=2)
        health = narrow.requests().get("/health").json()
        assert health["queue_size"] == 2
        began = time.monotonic()
        refused = narrow.requests().infer("one too many")
        assert time.monotonic() - began < 1
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("overloaded_error", "queue_full")
        assert "3 requests are already in the system" in error["message"]
        assert [future.result().status_code for future in held] == [504, 504, 504]
    load = narrow.load()
    assert load["arrivals"] - before["arrivals"] == 4, "who was refused is demand"
    assert load["completed"] - before["completed"] == 3
    requests = narrow.requests().get("/metrics").json()["requests"]
    assert (requests["refused"], requests["errors"]) == (1, 3)


def test_a_deadline_ends_in_mid_generation_and_frees_the_slot(narrow: RunningServer) -> None:
    began = time.monotonic()
    response = narrow.requests().infer("late", **LONG)
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert "not complete within 3 s" in error["message"]
    assert TIMEOUT_SECONDS <= time.monotonic() - began < TIMEOUT_SECONDS + 5
    wait_for_load(narrow, running=0, queued=0, seconds=2)
    assert narrow.requests().infer("next", max_tokens=1).status_code == 200


def test_a_client_that_leaves_frees_its_slot_and_its_place_in_the_queue(narrow: RunningServer) -> None:
    url = f"http://127.0.0.1:{narrow.port}/api/v1/infer"

    def leave_soon() -> None:
        with httpx.Client(trust_env=False, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
            client.post(url, json={"prompt": "I leave", **LONG})

    with ThreadPoolExecutor(3) as pool:
        leaving = [pool.submit(leave_soon) for _ in range(3)]
        wait_for_load(narrow, running=1, queued=2)
        for future in leaving:
            future.result()
    wait_for_load(narrow, running=0, queued=0, seconds=2)
    began = time.monotonic()
    assert narrow.requests().infer("next", max_tokens=1).status_code == 200
    assert time.monotonic() - began < TIMEOUT_SECONDS, "the engine's slot is free as well"
    left = [line for line in narrow.log_lines() if line.get("status") == 499]
    assert len(left) == 3


def test_a_drain_finishes_running_and_waiting_requests_and_exits_with_0(narrow: RunningServer) -> None:
    """The module's last test: it ends the server."""
    work = {"max_tokens": 60, "temperature": 0, "use_cache": False}
    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=f"http://127.0.0.1:{narrow.port}", trust_env=False, timeout=60) as pooled:
        assert pooled.get("/health").status_code == 200
        held: list[Future[httpx.Response]] = [pool.submit(narrow.requests().infer, f"held {number}", **work) for number in range(2)]
        wait_for_load(narrow, running=1, queued=1)
        ended = threading.Thread(target=narrow.terminate)
        ended.start()
        narrow.wait_for(lambda: narrow.load()["draining"])
        assert narrow.internal().get("/readyz").status_code == 503
        assert narrow.internal().get("/livez").status_code == 200

        refused = narrow.requests().infer("too late")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        unhealthy = narrow.requests().get("/health")
        assert (unhealthy.status_code, unhealthy.json()["status"]) == (503, "draining")
        last = pooled.post("/api/v1/infer", json={"prompt": "kept connection", **work})
        assert (last.status_code, last.headers["connection"]) == (200, "close")

        answers = [future.result() for future in held]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.headers["connection"] for answer in answers] == ["close", "close"]
        ended.join()
    assert narrow.process.returncode == 0
    assert not narrow.termination_log.exists()
