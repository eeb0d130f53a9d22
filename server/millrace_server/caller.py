"""What an HTTP request says about itself beside its body: its id, its tenant, its time of arrival, and how long its answer may take."""

import re
from collections.abc import Callable

from starlette.requests import Request

from millrace_server.errors import BadRequest
from millrace_server.question import Call

TIMEOUT_HEADER = "X-Request-Timeout"
"""Seconds from the arrival to the last token; the server's own limit stays the limit."""
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)

DrainBegan = Callable[[], float | None]
"""The monotonic time of the end's announcement, None before."""


def call(request: Request, *, limit: float, drain_began: DrainBegan) -> Call:
    """`limit` is in seconds. Raises BadRequest for a timeout that is none."""
    return Call(
        request_id=request.state.request_id,
        arrived=request.state.arrived,
        tenant=getattr(request.state, "tenant", ""),
        timeout=min(limit, _seconds(request.headers.get(TIMEOUT_HEADER), default=limit)),
        is_welcome=_is_welcome(request, drain_began()),
    )


def _seconds(header: str | None, *, default: float) -> float:
    if header is None:
        return default
    if not SECONDS.fullmatch(header) or float(header) == 0:
        raise BadRequest(f"{TIMEOUT_HEADER} is refused: it must be a number of seconds above 0, such as 2.5", param=TIMEOUT_HEADER)
    return float(header)


def _is_welcome(request: Request, drain_began: float | None) -> bool:
    """A client that keeps its connection could not know that the server is about to leave: it gets one more answer, which says so."""
    connection = getattr(request.state, "connection", None)
    return drain_began is None or (connection is not None and connection.opened < drain_began)
