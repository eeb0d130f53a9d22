"""The last words of a process: a small JSON object that Kubernetes keeps and the operator lifts into the resource's status."""

import logging
import os
from pathlib import Path

import msgspec

from millrace_server.engine.messages import Failed

MAX_BYTES = 1024

logger = logging.getLogger(__name__)


class TerminationMessage(msgspec.Struct, frozen=True, kw_only=True):
    stage: str
    """What the process was doing: settings, download, load, serve …"""
    cause: str
    """One CamelCase word; the operator's reason."""
    hint: str
    """A sentence with the next step."""


def encode(failed: Failed) -> bytes:
    """At most MAX_BYTES; the hint gives way."""
    hint = failed.hint
    while True:
        message = msgspec.json.encode(TerminationMessage(stage=failed.stage[:64], cause=failed.cause[:64], hint=hint))
        excess = len(message) - MAX_BYTES
        if excess <= 0:
            return message
        hint = hint[: -max(excess // 4, 1) - 1] + "…"


def write(path: str | os.PathLike[str] | None, failed: Failed) -> None:
    """Without a path nothing is written. A file that cannot be written is logged: the process ends for a better reason."""
    if path is None:
        return
    try:
        Path(path).write_bytes(encode(failed))
    except OSError as error:
        logger.warning("the termination message was not written", extra={"path": str(path), "error": str(error)})
