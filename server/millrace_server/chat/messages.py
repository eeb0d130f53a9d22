"""What the front says to the rendering process: one JSON object per line, first a Template, then Conversations."""

from typing import Any

import msgspec


class Template(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    """Jinja, from the model's folder: untrusted."""
    marks: dict[str, str]
    """A special token's text → what the template writes instead, so that its own special tokens differ from what clients spell."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    """What else the template may read."""
