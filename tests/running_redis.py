"""A real redis-server on a loopback port: what the tests of the shared cache talk to, and what they break."""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from cluster.packages import tool
from cluster.process import Child, start, wait_until

Value = TypeVar("Value")

PASSWORD = "hunter2-of-redis"
START_SECONDS = 30.0


class RunningRedis:
    """Password-protected, without persistence. A context: started at its entry, gone at its exit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._client = Redis.from_url(self.url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._client.close()

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "requirepass": PASSWORD, "save": "", "dir": self._folder}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._child: Child = start("redis-server", [tool("redis-server"), *words], log=self._folder / "redis.log")
        wait_until(self._answers, "redis-server answers", seconds=START_SECONDS, children=[self._child])

    def kill(self) -> None:
        self._child.process.kill()
        self._child.process.wait()

    def freeze(self) -> None:
        self._child.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._child.process.send_signal(signal.SIGCONT)

    def command(self, *words: object) -> Any:  # noqa: ANN401 - whatever Redis replies
        return self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    def names(self) -> list[bytes]:
        """Of all keys."""
        return list(self.command("KEYS", "*"))

    def foreign_connections(self) -> int:
        """Open connections that are not this object's own."""
        return len(self._client.client_list()) - 1

    def sent_bytes(self) -> int:
        """Since its start, to everybody."""
        return int(self._client.info("stats")["total_net_output_bytes"])

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except RedisError:
            return False


async def eventually(ask: Callable[[], Awaitable[Value]], holds: Callable[[Value], bool], *, seconds: float = START_SECONDS) -> Value:
    """The first value for which `holds`; a busy machine may need some attempts."""
    deadline = time.monotonic() + seconds
    while not holds(value := await ask()):
        assert time.monotonic() < deadline, f"after {seconds} s still {value!r}"
        await asyncio.sleep(0.02)
    return value
