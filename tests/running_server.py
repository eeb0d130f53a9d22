"""A real server process on loopback ports, with its real engine process: what the tests of the front talk to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

Value = TypeVar("Value")

START_SECONDS = 120.0
"""Importing torch twice over on a busy machine takes most of a minute."""


class RunningServer:
    """`python -m millrace_server` with free ports. A context: the process is ended at its exit, and its engine with it."""

    def __init__(
        self, folder: Path, *, model: Path | None, settings: Mapping[str, str] | None = None, module: str = "millrace_server"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.termination_log = folder / "termination-log"
        self._log = folder / "server.log"
        self._module = module
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "PYTHONPATH": str(Path(__file__).parent),  # for another module
            "MODEL_NAME": "tiny",
            "MODEL_PATH": str(model or ""),
            "DEVICE": "cpu",
            "DTYPE": "float32",
            "OMP_NUM_THREADS": "1",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "PROMETHEUS_PORT": "0",
            "TERMINATION_LOG": str(self.termination_log),
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", self._module], env=self._environment, stderr=log)
        self.port = self.internal_port = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if kind is not None:
            sys.stderr.write(self.log())

    def log(self) -> str:
        return self._log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """The front's and the engine's; what libraries write by themselves is left out."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def wait_listening(self) -> Self:
        def listening() -> dict[str, Any] | None:
            return next((line for line in self.log_lines() if line["message"] == "listening"), None)

        line = self.wait_for(listening)
        self.port, self.internal_port = line["port"], line["prometheus_port"]
        return self

    def wait_ready(self) -> Self:
        self.wait_listening()
        self.wait_for(lambda: self.internal().get("/readyz").status_code == 200)
        return self

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=60)

    def async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=60)

    def internal(self) -> "Requests":
        return Requests(f"http://127.0.0.1:{self.internal_port}")

    def requests(self) -> "Requests":
        return Requests(f"http://127.0.0.1:{self.port}")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the internal port's series with these labels."""
        families = text_string_to_metric_families(self.internal().get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())

    def load(self) -> dict[str, Any]:
        result: dict[str, Any] = self.internal().get("/internal/load").json()
        return result

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_SECONDS)

    def wait_for(self, condition: Callable[[], Value | None], *, seconds: float = START_SECONDS) -> Value:
        """The condition's first true value. Fails at once when the process has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the server's log:\n{self.log()}")


class Requests:
    """One connection per request: what a test says about one answer does not depend on the ones before."""

    def __init__(self, base: str) -> None:
        self._base = base

    def get(self, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        return self.request("GET", path, **options)

    def infer(self, prompt: str, **fields: Any) -> httpx.Response:  # noqa: ANN401 - any JSON
        return self.request("POST", "/api/v1/infer", json={"prompt": prompt, **fields})

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        with httpx.Client(base_url=self._base, trust_env=False, timeout=60) as client:
            return client.request(method, path, **options)
