"""Every request needs a key, unless its path is one of the few that are open: pure ASGI, before any byte of a body is read.

The path is the one that routes are chosen by, compared as it is: whatever it is spelled like, what is not an open route needs a key.
"""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from millrace_server.errors import InvalidKey
from millrace_server.keys.ring import KeyRing
from millrace_server.keys.usage import Usage

CREDENTIALS = re.compile(rb"bearer +([!-~]{1,512})[ \t]*", re.IGNORECASE)


class Authentication:
    """Notes the key's owner as `tenant` in the scope's state. Raises InvalidKey, alike for every way to have no key."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing, usage: Usage, open_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._usage = usage
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            key = _presented(scope["headers"])
            tenant = None if key is None else self._keys.owner(key)
            if tenant is None:
                self._usage.refused()
                raise InvalidKey("this needs a valid API key in the header Authorization: Bearer KEY; ask whoever runs this server for one")
            self._usage.asked(tenant)
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key, when there is exactly one."""
    given = [value for name, value in headers if name == b"authorization"]
    match = CREDENTIALS.fullmatch(given[0]) if len(given) == 1 else None
    return match and match[1]
