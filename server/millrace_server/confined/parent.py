"""The front's side of a confined process: starts it when needed, asks it one thing at a time, and kills it when it takes too long."""

import asyncio
import contextlib
import os
import signal
import sys

import msgspec

from millrace_server.confined.messages import Refused, Said

SECONDS = 20.0
"""For one answer, the process's start included. It limits its own CPU time to far less: this is for a machine that stands still."""
MAX_LINE_BYTES = 64 * 1024 * 1024
INHERITED = ("PATH", "PYTHONPATH")
"""Nothing else of the environment: it holds secrets."""


class ConfinedFailed(Exception):
    """In words for the client."""


class ConfinedLate(ConfinedFailed):
    """The machine may be to blame."""


class Confined:
    """`python -m MODULE`. A process that was killed is replaced for the next question."""

    def __init__(self, module: str, *, first: bytes | None = None, subject: str) -> None:
        """`first` is said to every new process; `subject` is what its failures are blamed on, such as "the chat template"."""
        self._module = module
        self._first = first
        self._subject = subject
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def ask(self, line: bytes) -> str:
        """Raises ConfinedFailed."""
        async with self._turn:
            try:
                async with asyncio.timeout(SECONDS):
                    process = self._process or await self._start()
                    return await self._ask(process, line)
            except TimeoutError:
                self._kill()
                raise ConfinedLate(f"{self._subject} took longer than {SECONDS:g} s") from None
            except asyncio.CancelledError:
                self._kill()  # its answer would be taken for the next question's
                raise

    async def close(self) -> None:
        process = self._process
        self._kill()
        if process:
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self._module, stdin=pipe, stdout=pipe, env=environment, limit=MAX_LINE_BYTES, start_new_session=True
        )
        if self._first is not None:
            try:
                await self._ask(self._process, self._first)
            except ConfinedFailed:
                await self.close()
                raise
        return self._process

    async def _ask(self, process: asyncio.subprocess.Process, line: bytes) -> str:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the confined process was started without pipes")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(line + b"\n")
            await process.stdin.drain()
        answer = await process.stdout.readline()
        if not answer:
            self._process = None
            took_too_long = await process.wait() == -signal.SIGPROF
            raise ConfinedFailed(f"{self._subject} takes too long" if took_too_long else f"{self._subject} ended its process")
        said: Said | Refused = msgspec.json.decode(answer, type=Said | Refused)
        if isinstance(said, Refused):
            raise ConfinedFailed(said.why)
        return said.text

    def _kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process = None
