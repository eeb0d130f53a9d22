"""The front's side of the rendering process."""

from collections.abc import Mapping, Sequence

import msgspec

from millrace_server.chat.messages import Conversation, Template
from millrace_server.confined.parent import Confined, ConfinedFailed


class RenderFailed(Exception):
    """In words for the client."""


class Renderer:
    """One template."""

    def __init__(self, template: Template) -> None:
        self._process = Confined("millrace_server.chat.process", first=msgspec.json.encode(template), subject="the chat template")

    async def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]) -> str:
        """Raises RenderFailed."""
        conversation = Conversation(messages=[dict(message) for message in messages], variables=dict(variables))
        try:
            line = msgspec.json.encode(conversation)
        except (RecursionError, UnicodeEncodeError, TypeError, ValueError) as error:
            raise RenderFailed(f"they are not the JSON that a template can read ({error})") from None
        try:
            return await self._process.ask(line)
        except ConfinedFailed as error:
            raise RenderFailed(str(error)) from None

    async def close(self) -> None:
        await self._process.close()
