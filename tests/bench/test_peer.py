"""Other engines' processes: they answer, they die, and none outlives the benchmark."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from engine_benchmark.clients import drive
from engine_benchmark.engine import EngineFailed, Request
from engine_benchmark.peer import Peer

HERE = Path(__file__).parent
PATHS = (HERE, HERE.parents[1] / "bench")
REQUESTS: Sequence[Request] = [Request((1, 2, index), 4) for index in range(6)]


def peer(folder: Path, way: str, *, stop_seconds: float = 5) -> Peer:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in PATHS)}
    return Peer("counting", "counting_peer", Path(way), environment, log=folder / "peer.log", stop_seconds=stop_seconds)


async def test_a_peer_answers_several_clients_and_ends_when_we_hang_up(tmp_path: Path) -> None:
    counting = peer(tmp_path, "works")
    await counting.start()
    pid = counting.pid
    timelines = await drive(counting, REQUESTS, concurrency=3)
    assert [line.tokens for line in timelines] == [4] * 6
    await counting.stop()
    assert not psutil.pid_exists(pid)


async def test_a_peer_that_does_not_hear_us_leave_is_killed(tmp_path: Path) -> None:
    deaf = peer(tmp_path, "deaf", stop_seconds=0.2)
    await deaf.start()
    pid = deaf.pid
    await deaf.stop()
    assert not psutil.pid_exists(pid)


async def test_a_peer_that_dies_fails_every_request_it_holds(tmp_path: Path) -> None:
    dying = peer(tmp_path, "dies")
    await dying.start()
    with pytest.raises(EngineFailed, match=r"counting died; see .*peer\.log"):
        async with asyncio.timeout(10):
            await drive(dying, REQUESTS, concurrency=3)
    await dying.stop()


async def test_a_peer_that_does_not_start_says_where_its_log_is(tmp_path: Path) -> None:
    mute = peer(tmp_path, "mute")
    with pytest.raises(EngineFailed, match="counting did not start; see"):
        await mute.start()
    assert (tmp_path / "peer.log").read_text() == "no such model\n"
    await mute.stop()
