"""What the front and the rendering process say to each other: one JSON object per line, first a Template, then one answer to each line."""

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


class Rendered(msgspec.Struct, tag=True, frozen=True):
    text: str
    """Empty when the line before was a template, which compiles."""


class Refused(msgspec.Struct, tag=True, frozen=True):
    why: str
    """What the template itself says, or what is wrong with it."""
