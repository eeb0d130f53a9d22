"""The steady clients of the e2e tests count every outcome, and say so when they did not ask all the time."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.process import wait_until
from traffic import Traffic, TrafficStopped

RIGHT = json.dumps({"text": "1 2 3"}).encode()


@contextmanager
def answering(answer: Callable[[], tuple[int, bytes]]) -> Iterator[str]:
    """A server that answers every POST with this status and body; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answer()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Outcomes are what the tests read."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"<html>not from a replica</html>", "JSONDecodeError"),
        (200, b"[]", "TypeError"),
        (200, b"{}", "KeyError"),
        (503, b"", "503"),
        (502, b"<html>", "502"),
    ],
)
def test_an_answer_that_is_not_a_right_one_is_counted_and_the_client_asks_on(status: int, body: bytes, outcome: str) -> None:
    answers = iter([(status, body)] * 3)
    with answering(lambda: next(answers, (200, RIGHT))) as url, Traffic(url, clients=2) as traffic:
        wait_until(lambda: traffic.answered >= 2, "both clients went on", seconds=30)
    assert traffic.outcomes[outcome] == 3
    assert traffic.outcomes.total() == traffic.answered + 3
    assert traffic.outcomes["200 1 2 3"] == traffic.answered


EVENT = b'data: {"choices": [{"text": "1 2"}]}\n\n'


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (EVENT + EVENT + b"data: [DONE]\n\n", "200 1 21 2"),
        (EVENT, "cut after 1 events"),
        (b"", "cut after 0 events"),
        (b'data: {"error": {"code": "engine_failed"}}\n\ndata: [DONE]\n\n', "ended with {'error': {'code': 'engine_failed'}}"),
        (b"<html>", "cut after 1 events"),
    ],
)
def test_a_stream_that_did_not_come_to_its_own_end_is_no_answer(body: bytes, outcome: str) -> None:
    with answering(lambda: (200, body)) as url, Traffic(url, clients=1, stream=True) as traffic:
        wait_until(lambda: traffic.outcomes.total() > 0, "one stream has ended", seconds=30)
    assert set(traffic.outcomes) == {outcome}


def test_a_refused_connection_is_counted() -> None:
    with answering(lambda: (200, RIGHT)) as url:
        pass
    with Traffic(url, clients=1) as traffic:
        wait_until(lambda: traffic.outcomes.total() > 1, "asked in vain", seconds=30)
    assert set(traffic.outcomes) == {"ConnectError"}
    assert traffic.answered == 0


def test_clients_that_ended_before_the_block_are_an_error() -> None:
    with (
        answering(lambda: (200, RIGHT)) as url,
        pytest.raises(TrafficStopped, match=r"ended after 0\.1 s"),
        Traffic(url, clients=1, most_seconds=0.1) as traffic,
    ):
        wait_until(lambda: not traffic.is_asking, "the clients have ended", seconds=30)


def test_a_client_that_does_not_end_is_an_error() -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def late() -> tuple[int, bytes]:
        asked.set()
        may_answer.wait(30)
        return 200, RIGHT

    with answering(late) as url:
        with pytest.raises(TrafficStopped, match=r"still waits 0\.2 s after"), Traffic(url, clients=1, leave_seconds=0.2):
            assert asked.wait(30)
        may_answer.set()


def test_a_client_that_died_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://proxy")
    with pytest.raises(TrafficStopped, match=r"a client died.*nonsense"), Traffic("http://127.0.0.1:1", clients=1) as traffic:
        wait_until(lambda: not traffic.is_asking, "the clients have ended", seconds=30)


def test_what_the_block_itself_raised_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="the block's own"), Traffic("http://127.0.0.1:1", clients=1, most_seconds=0):
        raise RuntimeError("the block's own")
