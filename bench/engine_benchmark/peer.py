"""Our side of another engine: a child process that loads the model, answers on its standard output, and is killed at the end."""

import asyncio
import itertools
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import msgspec

from engine_benchmark.engine import EngineFailed, Request
from engine_benchmark.lines import LIMIT_BYTES, Ask, Hello, Told

START_SECONDS = 300


class Peer:
    """`module` is run as `python -m module MODEL`; what it writes to standard error is kept in `log`; it has `stop_seconds` to leave."""

    def __init__(self, name: str, module: str, model: Path, environment: Mapping[str, str], *, log: Path, stop_seconds: float = 5) -> None:
        self._name = name
        self._command = (sys.executable, "-m", module, str(model))
        self._environment = environment
        self._log = log
        self._stop_seconds = stop_seconds
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Queue[bool | None]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def pid(self) -> int:
        return self._running().pid

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdin=pipe, stdout=pipe, stderr=log, limit=LIMIT_BYTES
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                hello = await self._read()
        except TimeoutError:
            raise EngineFailed(f"{self._name} did not start within {START_SECONDS} s; see {self._log}") from None
        if not hello:
            raise EngineFailed(f"{self._name} did not start; see {self._log}")
        msgspec.json.decode(hello, type=Hello)
        self._reading = asyncio.create_task(self._listen())

    async def generate(self, request: Request) -> AsyncGenerator[int]:
        stdin = self._running().stdin
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.Queue()
        if stdin:
            stdin.write(msgspec.json.encode(Ask(number, list(request.prompt), request.max_tokens)) + b"\n")
        while True:
            finished = await answer.get()
            if finished is None:
                raise EngineFailed(f"{self._name} died; see {self._log}")
            yield 1
            if finished:
                return

    async def stop(self) -> None:
        """Hang up, which a peer takes as the end; kill it when it does not."""
        process = self._process
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        try:
            async with asyncio.timeout(self._stop_seconds):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reading:
            await self._reading

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            raise EngineFailed(f"{self._name} does not run; see {self._log}")
        return self._process

    async def _read(self) -> bytes:
        stdout = self._running().stdout
        return await stdout.readline() if stdout else b""

    async def _listen(self) -> None:
        stdout = self._running().stdout
        while stdout and (line := await stdout.readline()):
            told = msgspec.json.decode(line, type=Told)
            finished = set(told.finished)
            for number in told.numbers:
                answer = self._answers.pop(number) if number in finished else self._answers[number]
                answer.put_nowait(number in finished)
        for answer in self._answers.values():
            answer.put_nowait(None)
