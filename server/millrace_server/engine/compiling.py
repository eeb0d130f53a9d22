"""Schemas become masks in a thread of their own: no step waits for one, and its request enters the queue when its mask is there."""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from millrace_server.engine.messages import FromFront, Submit
from millrace_server.engine.sequence import TokenMask


@dataclass(frozen=True, slots=True)
class Compiled:
    request: Submit
    mask: TokenMask | str
    """Or why there is none."""


Inbox = queue.SimpleQueue[FromFront | Compiled]
"""What the loop takes its messages from; any thread may fill it."""


class Compiler:
    def __init__(self, compile_schema: Callable[[str], TokenMask], inbox: Inbox) -> None:
        self._compile_schema = compile_schema
        self._inbox = inbox
        self._pending: dict[str, Submit] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compiler")

    @property
    def pending(self) -> int:
        """Requests whose mask is not there."""
        return len(self._pending)

    def begin(self, request: Submit, schema: str) -> None:
        """A Compiled will be in the inbox, unless the request is forgotten before its turn."""
        self._pending[request.request_id] = request
        self._thread.submit(self._compile, request, schema)

    def forget(self, request_id: str) -> bool:
        """It was cancelled, or its Compiled was taken. Returns whether it was pending."""
        return self._pending.pop(request_id, None) is not None

    def _compile(self, request: Submit, schema: str) -> None:
        if request.request_id not in self._pending:
            return
        mask: TokenMask | str
        try:
            mask = self._compile_schema(schema)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the request's own
            mask = f"the schema cannot be compiled: {error}"
        self._inbox.put(Compiled(request, mask))
