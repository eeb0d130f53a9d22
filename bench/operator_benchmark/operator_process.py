"""The operator under test: a process with its default settings, beside a real API server, and what its own metrics say."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

START_SECONDS = 60
SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


class OperatorProcess:
    """`with OperatorProcess(kubeconfig, log) as operator:`; it leads and has listed when the block begins."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "KUBE"))}
        told = {"KUBECONFIG": str(kubeconfig), "MILLRACE_PORT": "0", "MILLRACE_SERVER_IMAGE": "millrace/server:bench"}
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen([sys.executable, "-m", "millrace_operator"], env={**clean, **told}, stderr=output)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_SECONDS
        while not ("leading as" in self._log.read_text() and self.total("millrace_last_full_list_timestamp_seconds")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"the operator does not lead: {self._log.read_text()}")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    @property
    def pid(self) -> int:
        return self._process.pid

    def total(self, name: str) -> float:
        """The sum of a metric's series."""
        return sum(self.series(name).values())

    def series(self, name: str) -> dict[str, float]:
        """Labels → value."""
        port = re.search(r"probes and metrics on port (\d+)", self._log.read_text())
        if port is None:
            return {}
        lines = httpx.get(f"http://127.0.0.1:{port[1]}/metrics", timeout=30).text.splitlines()
        found = [match.groups() for line in lines if (match := SERIES.match(line))]
        return {labels or "": float(value) for metric, labels, value in found if metric == name}
