"""A server whose log nobody reads any more."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from running_server import RunningServer


class Unheard(RunningServer):
    """Its log is a pipe, read until it has said its ports, and then only when somebody asks."""

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        self._said = b""
        self.process = subprocess.Popen([sys.executable, "-m", self._module], env=self._environment, stderr=self._writer)
        self.port = self.internal_port = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        os.close(self._reader)
        os.close(self._writer)

    def log(self) -> str:
        while select.select([self._reader], [], [], 0)[0]:
            self._said += os.read(self._reader, 65536)
        return self._said.decode()

    def stuff(self) -> None:
        """No room is left."""
        room = select.poll()
        room.register(self._writer, select.POLLOUT)
        while room.poll(0):
            os.write(self._writer, b"\n" * select.PIPE_BUF)


@pytest.fixture
def unheard(tmp_path: Path, tiny_model: Path) -> Iterator[Unheard]:
    with Unheard(tmp_path, model=tiny_model) as server:
        yield server


def test_a_log_that_nobody_reads_holds_up_no_request(unheard: Unheard) -> None:
    unheard.wait_ready()
    unheard.stuff()
    for number in range(20):
        assert unheard.requests().infer(f"question {number}", max_tokens=2).status_code == 200
    assert unheard.internal().get("/livez").status_code == 200
    unheard.log()
    assert unheard.requests().infer("heard", max_tokens=2).status_code == 200
    unheard.wait_for(lambda: [line for line in unheard.log_lines() if line.get("count", 0) >= 20 and "dropped" in line["message"]])
    unheard.stuff()
    assert unheard.terminate() == 0, "nor does the last line"
