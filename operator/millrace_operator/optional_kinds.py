"""Follows children of optional kinds, whose definitions come and go: asks for them again and again, where the watch would give up."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from millrace_operator.cluster import Cluster
from millrace_operator.connection import ApiError, Forbidden, NotFound
from millrace_operator.desired import CHILD_KINDS, ChildKind
from millrace_operator.view import Key, differing

logger = logging.getLogger(__name__)

TOLD = {dict: "can be listed", NotFound: "have no definition", Forbidden: "may not be listed"}


class OptionalKinds:
    """`changed` gets the key of whatever changed; `came_or_went` is called when a definition, or the right to list its objects, did.

    `interval` in seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespaces: Sequence[str],
        interval: float,
        changed: Callable[[Key], None],
        came_or_went: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._namespaces = namespaces
        self._interval = interval
        self._changed = changed
        self._came_or_went = came_or_went
        self._seen: dict[str, dict[Key, frozenset[str]] | NotFound | Forbidden] = {}

    async def run(self) -> None:
        while True:
            for kind in (kind for kind in CHILD_KINDS if kind.optional):
                await self.look(kind)
            await asyncio.sleep(self._interval)

    async def look(self, kind: ChildKind) -> None:
        """Once. What cannot be asked for now is as it was."""
        try:
            now = await self._cluster.versions(kind, self._namespaces)
        except ApiError as error:
            logger.debug("%s cannot be listed: %s", kind.plural, error)
            return
        before = self._seen.get(kind.kind)
        self._seen[kind.kind] = now
        if isinstance(before, dict) and isinstance(now, dict):
            for key in differing(before, now):
                self._changed(key)
        elif type(before) is not type(now):
            logger.info("%s %s", kind.plural, TOLD[type(now)])
            self._came_or_went()
