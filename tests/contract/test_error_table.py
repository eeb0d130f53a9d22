"""server/ERRORS.md lists every reason to fail; each is provoked, answered and counted as it says.

The server is real; its engine is one that fails when it is told to (what makes the real one fail is in tests/server/engine).
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from millrace_server import errors
from millrace_server.errors import RequestError
from millrace_server.keys.entries import make
from running_server import RunningServer
from server.front.wire import Wire

TABLE = Path(__file__).parents[2] / "server" / "ERRORS.md"
INFER = "/api/v1/infer"
GROUPS = {errors.Refused}
"""Classes that stand for several reasons and are none themselves."""
KEY, KEY_LINE = make("alice")
CONNECTIONS = 12
SOON = {"X-Request-Timeout": "1"}

Answered = tuple[int, dict[str, Any]]
"""Status and body."""


class Walk:
    """A server to which everything can happen."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def ask(self, path: str, method: str = "POST", *, body: bytes = b"", key: str = KEY, headers: dict[str, str] | None = None) -> Answered:
        response = self.server.requests().request(method, path, content=body, headers={"authorization": f"Bearer {key}", **(headers or {})})
        return response.status_code, response.json()

    def infer(self, prompt: str, headers: dict[str, str] | None = None) -> Answered:
        return self.ask(INFER, body=json.dumps({"prompt": prompt, "use_cache": False}).encode(), headers=headers)

    def say(self, sent: bytes) -> Answered:
        with Wire(self.server) as wire:
            wire.send(sent)
            status, _, body = wire.answer()
            return status, body

    @contextlib.contextmanager
    def holding(self, prompt: str = "hold", *, requests: int = 1) -> Iterator[None]:
        """Requests that keep the slot and places in the queue."""
        body = json.dumps({"prompt": prompt}).encode()
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            for _ in range(requests):
                stack.enter_context(Wire(self.server)).send(head + body)
            self.wait(in_system=requests)
            yield

    def wait(self, *, in_system: int) -> None:
        self.server.wait_for(lambda: (load := self.server.load())["running"] + load["queued"] == in_system)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Walk]:
    with started(tmp_path_factory.mktemp("walk"), tiny_model) as server:
        yield Walk(server.wait_ready())


@contextlib.contextmanager
def started(folder: Path, model: Path, **settings: str) -> Iterator[RunningServer]:
    keys, bare = folder / "keys", folder / "model"
    keys.write_text(KEY_LINE)
    bare.mkdir()
    for name in ("config.json", "tokenizer.json"):  # and no chat template
        (bare / name).write_bytes((model / name).read_bytes())
    limits = {
        "API_KEYS_FILE": str(keys),
        "MAX_BATCH_SIZE": "1",
        "MAX_QUEUE_SIZE": "2",
        "MAX_BODY_BYTES": "20000",
        "MAX_CONNECTIONS": str(CONNECTIONS),
        "HEAD_TIMEOUT": "1",
        "REQUEST_TIMEOUT": "60",
        "DRAIN_SECONDS": "20",
    }
    with RunningServer(folder / "server", model=bare, settings={**limits, **settings}, module="obedient_engine") as server:
        yield server


def too_many_connections(walk: Walk) -> Answered:
    crowd = [socket.create_connection(("127.0.0.1", walk.server.port)) for _ in range(CONNECTIONS)]
    try:
        with Wire(walk.server) as wire:
            status, _, body = wire.answer()
            return status, body
    finally:
        for each in crowd:
            each.close()


def queue_full(walk: Walk) -> Answered:
    with walk.holding(requests=3):
        return walk.infer("a")


def wait_too_long(walk: Walk) -> Answered:
    assert walk.infer("slow")[0] == 200
    with walk.holding():
        return walk.infer("a", headers=SOON)


def client_left(walk: Walk) -> None:
    with walk.holding():
        pass


def engine_gone(walk: Walk) -> Answered:
    answer = walk.infer("die")
    walk.server.wait_for(lambda: walk.server.internal().get("/readyz").status_code == 200)
    return answer


PROVOKED: dict[str, Callable[[Walk], Answered | None]] = {
    # First, while one slow request is all that the server knows of requests.
    "WaitTooLong": wait_too_long,
    "BadRequest": lambda walk: walk.ask(INFER, body=b"{}"),
    "NotJSON": lambda walk: walk.ask(INFER, body=b"{"),
    "UnknownField": lambda walk: walk.ask(INFER, body=b'{"prompt": "a", "every": 1}'),
    "ContextTooLong": lambda walk: walk.infer("a" * 15_000),
    "ChatUnavailable": lambda walk: walk.ask(
        "/v1/chat/completions", body=b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}]}'
    ),
    "BadHead": lambda walk: walk.say(b"NONSENSE\r\n\r\n"),
    "InvalidKey": lambda walk: walk.ask(INFER, key="nobody's"),
    "NoSuchRoute": lambda walk: walk.ask("/nowhere", "GET"),
    "ModelNotFound": lambda walk: walk.ask("/v1/completions", body=b'{"model": "other", "prompt": "a"}'),
    "MethodNotAllowed": lambda walk: walk.ask(INFER, "GET"),
    "SlowRequest": lambda walk: walk.say(b"GET /health HT"),
    "BodyTooLarge": lambda walk: walk.ask(INFER, body=b" " * 20_001),
    "RequestQuarantined": lambda walk: walk.infer("poison"),
    "HeadTooLarge": lambda walk: walk.say(b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200),
    "ClientLeft": client_left,
    "RequestError": lambda walk: walk.infer("nonsense"),
    "EngineError": lambda walk: walk.infer("fail"),
    "QueueFull": queue_full,
    "TooManyConnections": too_many_connections,
    "EngineGone": engine_gone,
    "DeadlinePassed": lambda walk: walk.infer("hold", headers=SOON),
}
OF_A_LIFE = {"ModelLoading", "Draining"}
"""Have a server, and a test, of their own."""
OF_A_CONNECTION = {"BadHead", "HeadTooLarge", "SlowRequest", "TooManyConnections"}
"""As they are provoked here: before any route."""


def table() -> dict[str, tuple[int, str, str]]:
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return {row[0]: (int(row[1]), row[2], row[3]) for row in rows}


def reasons(base: type[RequestError] = RequestError) -> set[type[RequestError]]:
    return {base}.union(*(reasons(each) for each in base.__subclasses__())) - GROUPS


def test_the_table_has_every_reason_as_it_is_and_each_is_provoked() -> None:
    assert table() == {each.__name__: (each.status, each.type, each.code) for each in reasons()}
    assert set(table()) == set(PROVOKED) | OF_A_LIFE


@pytest.mark.parametrize("reason", PROVOKED)
def test_a_reason_is_answered_and_counted_as_the_table_says_and_leaves_nothing(walk: Walk, reason: str) -> None:
    status, kind, code = table()[reason]
    series = (
        ("llm_connections_refused_total", {"code": code}) if reason in OF_A_CONNECTION else ("llm_requests_total", {"status": str(status)})
    )
    before = walk.server.metric(series[0], **series[1])
    answer = PROVOKED[reason](walk)
    if answer is not None:
        error = answer[1]["error"]
        assert (answer[0], error["type"], error["code"]) == (status, kind, code)
        assert error["message"]
    walk.server.wait_for(lambda: walk.server.metric(series[0], **series[1]) == before + 1, seconds=10)
    walk.wait(in_system=0)
    assert walk.infer("a")[0] == 200, "the next one is answered"


def test_a_deadline_before_the_first_event_of_a_stream_is_a_status(walk: Walk) -> None:
    body = {"model": "tiny", "prompt": "hold", "stream": True}
    status, answer = walk.ask("/v1/completions", body=json.dumps(body).encode(), headers=SOON)
    assert (status, answer["error"]["type"], answer["error"]["code"]) == table()["DeadlinePassed"]


def test_what_clients_write_becomes_no_series(walk: Walk) -> None:
    def series() -> set[str]:
        lines = walk.server.internal().get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def ask(name: str) -> None:
        walk.ask("/v1/completions", body=json.dumps({"model": name, "prompt": "a", "user": name}).encode())
        walk.ask(f"/{name}", "GET", headers={"X-Request-Id": name, "User-Agent": name})
        walk.ask(INFER, name.upper(), key=name)

    ask("first")
    before = series()
    for number in range(100):
        ask(f"attacker{number}")
    assert series() == before
    assert "attacker" not in walk.server.internal().get("/metrics").text


def test_a_model_that_is_loading_is_said_to_be(tmp_path: Path, tiny_model: Path) -> None:
    with started(tmp_path, tiny_model, READY_WHEN=str(tmp_path / "ready")) as server:
        walk = Walk(server.wait_listening())
        status, body = walk.infer("a")
        assert (status, body["error"]["type"], body["error"]["code"]) == table()["ModelLoading"]
        assert walk.server.metric("llm_requests_total", status=str(status)) == 1
        (tmp_path / "ready").touch()
        server.wait_ready()
        assert walk.infer("a")[0] == 200


def test_a_server_that_drains_says_so_to_those_who_come(tmp_path: Path, tiny_model: Path) -> None:
    with started(tmp_path, tiny_model) as server, ThreadPoolExecutor(1) as pool:
        walk = Walk(server.wait_ready())
        with walk.holding():
            ended = pool.submit(server.terminate)
            server.wait_for(lambda: server.load()["draining"])
            status, body = walk.infer("a")
            assert (status, body["error"]["type"], body["error"]["code"]) == table()["Draining"]
            assert walk.server.metric("llm_requests_total", status=str(status)) == 1
        assert ended.result() == 0
