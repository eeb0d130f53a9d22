"""Streams that do not end well, on a server with two slots: errors inside a stream, deadlines, clients that leave, an engine that dies."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import psutil
import pytest

import fake_model
from running_server import RunningServer

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "go on"}], "temperature": 0, "stream": True}
"""Takes all that the context leaves: far longer than any deadline here."""
TIMEOUT_SECONDS = 20


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two slots."""
    model = fake_model.build(tmp_path_factory.mktemp("long"), max_position_embeddings=32_768, eos_token_id=None)
    settings = {
        "MAX_BATCH_SIZE": "2",
        "MAX_QUEUE_SIZE": "2",
        "REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
        "BODY_TIMEOUT": "2",
        "DRAIN_SECONDS": "1",
    }
    with RunningServer(tmp_path_factory.mktemp("narrow"), model=model, settings=settings) as server:
        yield server.wait_ready()


class Stream:
    """A client that reads a stream event by event."""

    def __init__(self, server: RunningServer, *, headers: dict[str, str] | None = None, **fields: Any) -> None:  # noqa: ANN401 - any JSON
        self._client = server.client()
        request = self._client.build_request("POST", CHAT, json={**LONG, **fields}, headers=headers)
        self.response = self._client.send(request, stream=True)
        self._lines = self.response.iter_lines()

    def event(self) -> str:
        """The next event's data."""
        while not (line := next(self._lines)):
            pass
        assert line.startswith("data: "), line
        return line.removeprefix("data: ")

    def rest(self) -> list[str]:
        """The data of all further events; that the response is complete is checked by httpx."""
        return [line.removeprefix("data: ") for line in self._lines if line]

    def close(self) -> None:
        self.response.close()
        self._client.close()


def wait_for_load(server: RunningServer, *, running: int, queued: int) -> None:
    server.wait_for(lambda: (load := server.load())["running"] == running and load["queued"] == queued, seconds=30)


def outcomes(server: RunningServer, *, seen: int) -> list[object]:
    """The statuses that the log has for chats, after its first `seen` lines."""
    return [line["status"] for line in server.log_lines()[seen:] if line.get("endpoint") == CHAT]


def test_a_client_that_leaves_in_mid_stream_frees_its_slots_at_once(narrow: RunningServer) -> None:
    before, seen = narrow.load(), len(narrow.log_lines())
    with closing(Stream(narrow, n=2)) as stream:
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert json.loads(stream.event())["choices"][0]["delta"]["role"] == "assistant"
        wait_for_load(narrow, running=2, queued=0)
    narrow.wait_for(lambda: (load := narrow.load())["running"] == 0 and load["queued"] == 0, seconds=2)
    load = narrow.load()
    assert load["arrivals"] - before["arrivals"] == load["completed"] - before["completed"] == 2, "each answer is work"
    narrow.wait_for(lambda: outcomes(narrow, seen=seen) == [499], seconds=5)
    assert [line for line in narrow.log_lines()[seen:] if line["level"] != "info"] == []


def test_a_client_that_leaves_before_the_whole_answer_frees_its_slots_at_once(narrow: RunningServer) -> None:
    with narrow.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json={**LONG, "stream": False, "n": 2}, timeout=httpx.Timeout(30, read=1))
    narrow.wait_for(lambda: (load := narrow.load())["running"] == 0 and load["queued"] == 0, seconds=2)


def test_a_client_that_leaves_before_the_first_event_frees_its_place(narrow: RunningServer) -> None:
    with closing(Stream(narrow, n=2)) as running:
        running.event()
        with narrow.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=LONG, timeout=httpx.Timeout(30, read=1))
        wait_for_load(narrow, running=2, queued=0)
    wait_for_load(narrow, running=0, queued=0)


def test_more_answers_than_places_are_let_in_while_one_is_free_and_nobody_after_them(narrow: RunningServer) -> None:
    with closing(Stream(narrow, n=6)) as stream:
        stream.event()
        wait_for_load(narrow, running=2, queued=4)
        refused = narrow.requests().request("POST", CHAT, json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"] == "application/json", "no stream had begun"
    wait_for_load(narrow, running=0, queued=0)


def test_a_deadline_in_mid_stream_ends_it_with_an_error_event(narrow: RunningServer) -> None:
    seen = len(narrow.log_lines())
    with closing(Stream(narrow, headers={"x-request-timeout": "1.5"})) as stream:
        *events, last, done = stream.rest()
    assert stream.response.status_code == 200
    assert len(events) > 2
    assert all("error" not in json.loads(event) for event in events)
    error = json.loads(last)["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert "not complete within 1.5 s" in error["message"]
    assert done == "[DONE]"
    narrow.wait_for(lambda: outcomes(narrow, seen=seen) == [504], seconds=5)
    narrow.wait_for(lambda: narrow.load()["running"] == 0, seconds=2)


@pytest.mark.parametrize("path", [CHAT, "/api/v1/infer"])
def test_a_client_may_shorten_its_deadline_but_not_prolong_it(narrow: RunningServer, path: str) -> None:
    body = {**LONG, "stream": False} if path == CHAT else {"prompt": "a", "max_tokens": 30_000, "use_cache": False}
    for bad in ("0", "-1", "soon", "1e3", "nan", "inf", "", "٣"):
        refused = narrow.requests().request("POST", path, json=body, headers={"x-request-timeout": bad.encode()})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Request-Timeout"), bad
    late = narrow.requests().request("POST", path, json=body, headers={"x-request-timeout": "1"})
    assert (late.status_code, "within 1 s" in late.json()["error"]["message"]) == (504, True)


def test_a_timeout_above_the_limit_is_the_limit(narrow: RunningServer) -> None:
    late = narrow.requests().request("POST", CHAT, json={**LONG, "stream": False}, headers={"x-request-timeout": "999999999"})
    assert (late.status_code, f"within {TIMEOUT_SECONDS} s" in late.json()["error"]["message"]) == (504, True)


def test_a_client_that_does_not_read_its_stream_is_cut_and_harms_nobody(narrow: RunningServer) -> None:
    seen = len(narrow.log_lines())
    body = json.dumps({**LONG, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", narrow.port))
        unread.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
        wait_for_load(narrow, running=1, queued=0)
        answer = narrow.requests().request("POST", CHAT, json={**LONG, "stream": False, "max_tokens": 5})
        assert answer.status_code == 200
        narrow.wait_for(lambda: outcomes(narrow, seen=seen) == [200, 499], seconds=TIMEOUT_SECONDS - 5)
        narrow.wait_for(lambda: narrow.load()["running"] == 0, seconds=2)
    assert [line for line in narrow.log_lines()[seen:] if line["level"] != "info"] == []


def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event(narrow: RunningServer) -> None:
    (engine,) = [child for child in psutil.Process(narrow.process.pid).children() if "millrace_server.engine.process" in child.cmdline()]
    seen = len(narrow.log_lines())
    with closing(Stream(narrow)) as stream:
        stream.event()
        engine.kill()
        *_, last, done = stream.rest()
    assert json.loads(last)["error"]["code"] == "engine_unavailable"
    assert done == "[DONE]"
    narrow.wait_for(lambda: outcomes(narrow, seen=seen) == [503], seconds=5)
    narrow.wait_for(lambda: narrow.internal().get("/readyz").status_code == 200)
    assert narrow.requests().request("POST", CHAT, json={**LONG, "stream": False, "max_tokens": 2}).status_code == 200


def test_a_stream_that_is_cut_at_the_end_of_the_drain_ends_with_an_error_event(narrow: RunningServer) -> None:
    """The module's last test: it ends the server."""
    with closing(Stream(narrow)) as stream:
        stream.event()
        assert narrow.terminate() == 0
        *_, last, done = stream.rest()
    error = json.loads(last)["error"]
    assert (error["type"], done) == ("overloaded_error", "[DONE]")
    assert error["message"] == "this replica shut down before the answer was complete; another one can answer"
