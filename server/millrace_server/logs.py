"""Logs as one JSON object per line on stderr, in printable ASCII: whatever a client made up, a line ends and reads as we wrote it.

No prompt, no answer and no key is ever logged.
"""

import json
import logging
import sys
import time
from typing import TextIO

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}
MAX_VALUE_CHARACTERS = 2000
MAX_EXCEPTION_CHARACTERS = 8000


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


def configure(*, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # uvicorn's own life-cycle lines repeat what the lifecycle module says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Its lines would repeat the signatures in a hub's addresses.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
