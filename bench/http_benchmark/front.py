"""The real server, as a user starts it, before an engine of this benchmark or before its own.

`python -m http_benchmark.front` is the server with another engine module; `Server` starts and ends it.
"""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

START_SECONDS = 180.0
ENGINE = "BENCH_ENGINE"
CPU_TICKS = os.sysconf("SC_CLK_TCK")
Value = TypeVar("Value")
MOCK = "http_benchmark.mock_engine"
FRUGAL = "http_benchmark.frugal_engine"


class ServerFailed(Exception):
    """It does not start; says where its log is."""


class Server:
    """A context. `engine` is a module, None the server's own; the mock one takes `step_seconds` for a step and leaves the front alone on
    `core`.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        engine: str | None = None,
        step_seconds: float = 0.0,
        slots: int = 64,
        core: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._log = folder / "server.log"
        self._core = core
        self._engine = engine
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MODEL_NAME": "bench",
            "MODEL_PATH": str(model),
            "DEVICE": "cpu",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "PROMETHEUS_PORT": "0",
            "BATCH_TIMEOUT_MS": "0",
            "MOCK_SLOTS": str(slots),
            "MOCK_STEP_SECONDS": str(step_seconds),
            **({ENGINE: engine} if engine else {}),
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        module = "http_benchmark.front" if self._engine else "millrace_server"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-m", module], env=self._environment, stderr=log)
        if self._engine == MOCK:
            os.sched_setaffinity(self._process.pid, {self._core})
        try:
            (started,) = self._wait(lambda: [each for each in self._lines() if each.get("message") == "listening"])
            self.port, self.internal_port = started["port"], started["prometheus_port"]
            self._wait(lambda: self.internal("/readyz")[0] == 200)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def internal(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.internal_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Of the front, since its start."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CPU_TICKS

    def resident_bytes(self) -> dict[str, int]:
        """Of the front and of every process that it has started."""
        found = {"front": _resident(self._process.pid)}
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                name = "engine" if b"engine" in Path(f"/proc/{child}/cmdline").read_bytes() else "others"
                found[name] = found.get(name, 0) + _resident(int(child))
        return found

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def _wait(self, condition: Callable[[], Value]) -> Value:
        """The condition's first true value."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if found := condition():
                return found
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise ServerFailed(f"the server did not start: {self._log}")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    from millrace_server.__main__ import main
    from millrace_server.engine import handle

    handle.ENGINE_MODULE = os.environ[ENGINE]
    sys.exit(main([]))
