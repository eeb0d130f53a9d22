"""Clients that ask a service steadily and remember every answer that was not a right one."""

import asyncio
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx


class Traffic:
    """`clients` ask one after another, each over a pooled connection, until the block ends. Bounded to ten minutes."""

    MOST_SECONDS = 600

    def __init__(self, url: str, *, clients: int, max_tokens: int = 16, prompt: str = "1 2 3 4 5") -> None:
        self._url = f"{url}/api/v1/infer"
        self._body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        self._clients = clients
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), daemon=True)
        self.outcomes: Counter[str] = Counter()
        """`200 <text>`, another status, or the name of a transport error → how often."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=90)

    @property
    def answered(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("200"))

    async def _ask(self) -> None:
        end = time.monotonic() + self.MOST_SECONDS
        limits = httpx.Limits(max_connections=self._clients, max_keepalive_connections=self._clients)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:

            async def one() -> None:
                while not self._stop.is_set() and time.monotonic() < end:
                    try:
                        answer = await client.post(self._url, json=self._body)
                        self.outcomes[f"{answer.status_code} {answer.json().get('text', '')}".strip()] += 1
                    except httpx.HTTPError as error:
                        self.outcomes[type(error).__name__] += 1

            await asyncio.gather(*(one() for _ in range(self._clients)))
