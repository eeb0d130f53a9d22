"""CACHE_TYPE=none: every answer is computed, also for requests that are equal and come at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from running_server import RunningServer

CLIENTS = 4
TOKENS = 32


def test_equal_requests_at_the_same_time_are_all_computed(tmp_path: Path, tiny_model: Path) -> None:
    with RunningServer(tmp_path, model=tiny_model, settings={"CACHE_TYPE": "none"}) as server:
        server.wait_ready()

        def ask(_: int) -> bool:
            answer = server.requests().infer("equal", max_tokens=TOKENS, temperature=0)
            assert answer.status_code == 200
            return bool(answer.json()["cached"])

        with ThreadPoolExecutor(CLIENTS) as clients:
            assert list(clients.map(ask, range(CLIENTS))) == [False] * CLIENTS
