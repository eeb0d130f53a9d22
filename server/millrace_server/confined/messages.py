"""What both sides say: lines of JSON, whose meaning is the module's own, and one of these for each."""

import msgspec


class Said(msgspec.Struct, tag=True, frozen=True):
    text: str


class Refused(msgspec.Struct, tag=True, frozen=True):
    why: str
    """In words for the client."""
