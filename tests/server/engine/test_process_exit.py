"""How the engine process ends, seen from outside: by its exit code, without a handle that would clean up after it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_model
from millrace_server.engine.failure import EXIT_CANNOT_SERVE

SECONDS = 60


@contextmanager
def engine(folder: Path, model: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process that loads `model`, and the front's end of its connection."""
    path = str(folder / "engine.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(SECONDS)
        command = [sys.executable, "-m", "millrace_server.engine.process", "--socket", path]
        environment = {**os.environ, "MODEL_NAME": "tiny", "MODEL_PATH": str(model), "DEVICE": "cpu"}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            connection, _ = listener.accept()
            with connection:
                yield process, connection
            process.kill()


def test_it_ends_quietly_when_its_front_is_gone(tmp_path: Path) -> None:
    with engine(tmp_path, fake_model.build(tmp_path / "model")) as (process, connection):
        connection.shutdown(socket.SHUT_WR)
        assert process.wait(SECONDS) == 0


def test_it_ends_when_its_front_talks_nonsense(tmp_path: Path) -> None:
    with engine(tmp_path, fake_model.build(tmp_path / "model")) as (process, connection):
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert process.wait(SECONDS) == 1


def test_its_exit_code_says_that_it_cannot_serve(tmp_path: Path) -> None:
    with engine(tmp_path, tmp_path / "nowhere") as (process, _):
        assert process.wait(SECONDS) == EXIT_CANNOT_SERVE
