"""Logs as one JSON object per line on stderr, in printable ASCII: whatever a client made up, a line ends and reads as we wrote it.

No prompt, no answer and no key is ever logged.
"""

import contextlib
import fcntl
import json
import logging
import os
import select
import sys
import time

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}
MAX_VALUE_CHARACTERS = 2000
MAX_EXCEPTION_CHARACTERS = 8000
PIPE_BYTES = 1024 * 1024
"""What a pipe holds of a burst before its reader comes: the most that Linux grants to everybody."""


class JSONFormatter(logging.Formatter):
    """time (UTC), level, logger, message, then whatever `extra` named."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shortened(record.getMessage(), MAX_VALUE_CHARACTERS),
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD:
                line[name] = value if isinstance(value, int | float | None) else _shortened(str(value), MAX_VALUE_CHARACTERS)
        if record.exc_info:
            line["exception"] = _shortened(self.formatException(record.exc_info), MAX_EXCEPTION_CHARACTERS)
        # Control characters, and those that turn a terminal's writing around, become \uXXXX, as all that is not printable ASCII.
        return json.dumps(line, separators=(",", ":"))


def _shortened(text: str, most: int) -> str:
    """Its beginning and its end: an exception's cause stands first, what it led to last."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


class LineHandler(logging.Handler):
    """Writes lines to a file descriptor and never waits: a full disk, or a collector that has stopped reading, holds up no request.

    What finds no room is dropped; how many lines that were is the first thing written when there is room again.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())
        self._descriptor = descriptor
        self._dropped = 0
        self._is_torn = False
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        with contextlib.suppress(OSError):  # it is no pipe
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._dropped and self._write(self._complaint()):
                self._dropped = 0
            if self._dropped or not self._write(line):
                self._dropped += 1
        except Exception:  # noqa: BLE001 - as every handler: a line that cannot be made fails no request
            self.handleError(record)

    def _complaint(self) -> str:
        fields = {"name": __name__, "levelname": "WARNING", "msg": "log lines found no room and were dropped", "count": self._dropped}
        return self.format(logging.makeLogRecord(fields))

    def _write(self, line: str) -> bool:
        """Whether all of it was written."""
        left = (b"\n" if self._is_torn else b"") + line.encode() + b"\n"
        try:
            # A pipe that has any room takes as much as this at once; more could block.
            while left and self._room.poll(0):
                written = os.write(self._descriptor, left[: select.PIPE_BUF])
                left, self._is_torn = left[written:], written < len(left)
        except OSError:
            return False
        return not left


def configure() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[LineHandler(sys.stderr.fileno())], force=True)
    # uvicorn's own life-cycle lines repeat what the lifecycle module says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Its lines would repeat the signatures in a hub's addresses.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
