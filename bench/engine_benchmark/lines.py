"""What a peer's process and we say to each other: JSON lines on its standard input and output."""

import msgspec


class Ask(msgspec.Struct, frozen=True):
    """Us → peer: a greedy answer of exactly max_tokens."""

    number: int
    prompt: list[int]
    max_tokens: int


class Told(msgspec.Struct, frozen=True):
    """Peer → us: a token each for these requests; those in `finished` have their last one."""

    numbers: list[int]
    finished: list[int]


class Hello(msgspec.Struct, frozen=True):
    """Peer → us, first: the model is loaded."""

    dtype: str
    threads: int


LIMIT_BYTES = 1 << 24
"""The longest line."""
