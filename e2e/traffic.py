"""Clients that ask a service steadily and remember every answer that was not a right one."""

import asyncio
import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx

from demo.model import NAME

REFUSED_PAUSE_SECONDS = 1
"""Before whoever was told 503 asks again."""


class TrafficStopped(Exception):
    """The clients did not ask for as long as the block ran, or did not end: what they counted proves nothing."""


class Traffic:
    """`clients` ask one after another, each over a pooled connection, until the block ends; for `most_seconds` at the longest.

    At the block's end the last answers are awaited for `leave_seconds`. Raises TrafficStopped when a client ended before the block or
    is still there afterwards, unless the block itself raised.
    """

    def __init__(
        self,
        url: str,
        *,
        clients: int,
        max_tokens: int = 16,
        prompt: str = "1 2 3 4 5",
        stream: bool = False,
        most_seconds: float = 600,
        leave_seconds: float = 90,
    ) -> None:
        self._url = url
        self._body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        self._stream = stream
        self._clients = clients
        self._most_seconds = most_seconds
        self._leave_seconds = leave_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self.outcomes: Counter[str] = Counter()
        """`200 <text>` of whole answers, another status, how a stream ended too early, or the name of what a request raised → how often."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ended_early = not self.is_asking
        self._stop.set()
        self._thread.join(timeout=self._leave_seconds)
        if kind is not None:
            return
        if self._failure is not None:
            raise TrafficStopped(f"a client died: {self._failure!r}; until then {dict(self.outcomes)}") from self._failure
        if ended_early:
            raise TrafficStopped(f"the clients ended after {self._most_seconds} s, before the block did: {dict(self.outcomes)}")
        if self.is_asking:
            raise TrafficStopped(f"some client still waits {self._leave_seconds} s after the block: {dict(self.outcomes)}")

    @property
    def is_asking(self) -> bool:
        """Some client has not ended."""
        return self._thread.is_alive()

    @property
    def answered(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("200 "))

    def _run(self) -> None:
        try:
            asyncio.run(self._ask())
        except BaseException as failure:  # noqa: BLE001 - a thread's last words, which __exit__ raises
            self._failure = failure

    async def _ask(self) -> None:
        end = time.monotonic() + self._most_seconds
        limits = httpx.Limits(max_connections=self._clients, max_keepalive_connections=self._clients)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:

            async def one() -> None:
                while not self._stop.is_set() and time.monotonic() < end:
                    outcome = await self._outcome(client)
                    self.outcomes[outcome] += 1
                    if outcome == str(httpx.codes.SERVICE_UNAVAILABLE.value):
                        await asyncio.sleep(REFUSED_PAUSE_SECONDS)

            await asyncio.gather(*(one() for _ in range(self._clients)))

    async def _outcome(self, client: httpx.AsyncClient) -> str:
        try:
            return await (self._streamed(client) if self._stream else self._whole(client))
        except Exception as error:  # noqa: BLE001 - whatever it is, this request was not answered
            return type(error).__name__

    async def _whole(self, client: httpx.AsyncClient) -> str:
        answer = await client.post(f"{self._url}/api/v1/infer", json=self._body)
        return f"200 {answer.json()['text']}" if answer.status_code == httpx.codes.OK else str(answer.status_code)

    async def _streamed(self, client: httpx.AsyncClient) -> str:
        """Whole is what came to the end that the server itself gives a stream, after as many bytes as HTTP announced."""
        events: list[str] = []
        body = {**self._body, "model": NAME, "stream": True, "ignore_eos": True}
        async with client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                return str(answer.status_code)
            events.extend([line.removeprefix("data: ") async for line in answer.aiter_lines() if line])
        if not events or events[-1] != "[DONE]":
            return f"cut after {len(events)} events"
        told = [json.loads(event) for event in events[:-1]]
        failed = [event for event in told if "error" in event]
        return f"ended with {failed[0]}" if failed else "200 " + "".join(event["choices"][0]["text"] for event in told)
