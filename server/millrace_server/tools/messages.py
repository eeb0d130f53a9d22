"""What the front says to the process of a model's own parser: first the parser's description, then answers; and what it hears."""

from typing import Any

import msgspec


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
    text: str
    tools: list[dict[str, Any]]


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    content: str
    calls: list[tuple[str, dict[str, Any]]]
    """Names and arguments."""
