"""HTTP as bytes on a socket: for what no client library would send."""

import json
import select
import socket
import time

from running_server import RunningServer

GREETING = b"POST /api/v1/infer HTTP/1.1\r\nhost: x\r\n"


class Wire:
    """One TCP connection, byte by byte."""

    def __init__(self, server: RunningServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        """Status, headers and JSON body of one answer."""
        status, headers = self.head()
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of one answer."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers

    def answers(self, count: int) -> list[int]:
        """Their statuses, and then the end of the connection."""
        statuses = [self.answer()[0] for _ in range(count)]
        assert self.is_closed_by_server()
        return statuses

    def drip(self, byte: bytes, *, seconds: float) -> bool:
        """Sends the byte again and again, until something comes back, be it the end; says whether it did in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._socket.sendall(byte)
            except ConnectionError:
                return True
            if select.select([self._socket], [], [], 0.05)[0]:
                return True
        return False

    def is_closed_by_server(self) -> bool:
        """Waits for the end of the stream, at most the socket's timeout."""
        return self._file.read(1) == b""


def message(body: dict[str, object]) -> str:
    error = body["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])
