"""What the benchmark needs of an engine. Ours is in millrace.py, every other one is a file in peers/."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

OURS = "millrace"
SLOTS = 32
"""Requests that an engine runs at once at most."""


@dataclass(frozen=True, slots=True)
class Request:
    """Greedy, and exactly `max_tokens` long: no token ends it earlier."""

    prompt: tuple[int, ...]
    max_tokens: int


class Engine(Protocol):
    """A process of its own that has the model loaded, and is idle while nothing is asked of it."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int: ...

    async def start(self) -> None:
        """Returns when requests are served. Raises EngineFailed."""

    def generate(self, request: Request) -> AsyncGenerator[int]:
        """How many tokens arrived, each time that some do. Closing it early cancels the request."""

    async def stop(self) -> None:
        """Ends the process."""


class EngineFailed(Exception):
    """An engine did not start, died, or answered with the wrong number of tokens: nothing was measured."""
