"""A pod's wall clock jumps, a day forward and two back: deadlines, windows, the cache and the heartbeat go by another clock."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fake_model
from cluster.packages import unpacked
from running_server import RunningServer

DAY = 86_400


class Clock:
    """A server's wall clock, as libfaketime shows it to the process and to its engine. The monotonic one is as it is."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.offset = 0
        self.jump(0)
        (library,) = unpacked("libfaketime").glob("root/**/libfaketimeMT.so.1")
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        self.offset += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self.offset:+d}\n")
        new.rename(self._file)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def jumping(clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("jumping")
    model = fake_model.build(folder / "model", eos_token_id=None)
    settings = {**clock.environment, "MAX_BATCH_SIZE": "1", "CACHE_TYPE": "memory", "REQUEST_TIMEOUT": "60"}
    with RunningServer(folder / "server", model=model, settings=settings) as server:
        yield server.wait_ready()


def created(server: RunningServer) -> int:
    """Unix time, by the server."""
    answer = server.requests().request("POST", "/v1/completions", json={"model": "tiny", "prompt": "when", "max_tokens": 1, "seed": 1})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["created"])


@pytest.mark.parametrize("jump", [DAY, -2 * DAY, 3 * DAY])
def test_nothing_but_dates_goes_by_the_wall_clock(jumping: RunningServer, clock: Clock, jump: int) -> None:
    long = {"max_tokens": 450, "temperature": 1, "ignore_eos": True, "use_cache": False}
    before = jumping.internal().get("/internal/load").json()
    assert jumping.requests().infer("kept", max_tokens=4, use_cache=True).status_code == 200
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(jumping.requests().request, "POST", "/v1/completions", json={"model": "tiny", "prompt": prompt, **long})
            for prompt in ("computed", "waiting", "waiting too")
        ]
        jumping.wait_for(lambda: jumping.load()["queued"] == 2)
        clock.jump(jump)
        late = jumping.requests().request(
            "POST", "/v1/completions", json={"model": "tiny", "prompt": "late", **long}, headers={"X-Request-Timeout": "0.05"}
        )
        answers = [each.result() for each in asked]
    assert abs(created(jumping) - time.time() - clock.offset) < 60  # noqa: TID251 - dates
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert all(answer.json()["usage"]["completion_tokens"] == 450 for answer in answers)
    assert late.status_code in (503, 504), "a deadline of 50 ms behind a second's work"
    assert jumping.requests().infer("kept", max_tokens=4, use_cache=True).json()["cached"] is True
    after = jumping.internal().get("/internal/load").json()
    assert after["boot_id"] == before["boot_id"]
    assert 0 < after["uptime_seconds"] - before["uptime_seconds"] < 60
    assert jumping.metric("llm_engine_starts_total") == 1
    figures = jumping.requests().get("/metrics").json()
    assert 0 < figures["throughput"]["qps"] < 10
    assert 0 < figures["latency"]["p99"] < 60_000
