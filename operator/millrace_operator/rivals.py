"""Other autoscalers of our Deployments: HorizontalPodAutoscalers, those among them that a KEDA ScaledObject makes.

They are others' and carry no label of ours, so they are listed now and then instead of watched.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from millrace_operator.connection import ApiError
from millrace_operator.lists import Lists
from millrace_operator.view import Key, differing

logger = logging.getLogger(__name__)


class Rivals:
    """`changed` gets the key of a Deployment that has, or has lost, another autoscaler. `interval` in seconds."""

    def __init__(self, lists: Lists, *, namespaces: Sequence[str], interval: float, changed: Callable[[Key], None]) -> None:
        self._lists = lists
        self._namespaces = namespaces
        self._interval = interval
        self._changed = changed
        self._seen: Mapping[Key, str] = {}

    def of(self, key: Key) -> str | None:
        """Kind and name, as far as the last look showed."""
        return self._seen.get(key)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    async def look(self) -> None:
        """Once. What cannot be asked for now is as it was."""
        try:
            now = await self._lists.autoscalers(self._namespaces)
        except ApiError as error:
            logger.warning("other autoscalers cannot be listed, and are not noticed: %s", error)
            return
        before, self._seen = self._seen, now
        for key in differing(before, now):
            self._changed(key)
