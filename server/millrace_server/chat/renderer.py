"""The front's side of the rendering process: starts it when needed, asks it one thing at a time, and kills it when it takes too long."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import msgspec

from millrace_server.chat.messages import Conversation, Refused, Rendered, Template

SECONDS = 20.0
"""For one answer, the process's start included. It limits its own CPU time to far less: this is for a machine that stands still."""
MAX_LINE_BYTES = 64 * 1024 * 1024
INHERITED = ("PATH", "PYTHONPATH")
"""Nothing else of the environment: it holds secrets."""


class RenderFailed(Exception):
    """In words for the client."""


class Renderer:
    """One template. A process that was killed is replaced for the next conversation."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object]) -> str:
        """Raises RenderFailed."""
        conversation = Conversation(messages=[dict(message) for message in messages], variables=dict(variables))
        try:
            line = msgspec.json.encode(conversation)
        except (RecursionError, UnicodeEncodeError, TypeError, ValueError) as error:
            raise RenderFailed(f"they are not the JSON that a template can read ({error})") from None
        async with self._turn:
            try:
                async with asyncio.timeout(SECONDS):
                    process = self._process or await self._start()
                    return await self._ask(process, line)
            except TimeoutError:
                self._kill()
                raise RenderFailed(f"the chat template took longer than {SECONDS:g} s") from None
            except asyncio.CancelledError:
                self._kill()  # its answer would be taken for the next conversation's
                raise

    async def close(self) -> None:
        process = self._process
        self._kill()
        if process:
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        command = (sys.executable, "-m", "millrace_server.chat.process")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, env=environment, limit=MAX_LINE_BYTES, start_new_session=True
        )
        try:
            await self._ask(self._process, msgspec.json.encode(self._template))
        except RenderFailed:
            self._kill()
            raise
        return self._process

    async def _ask(self, process: asyncio.subprocess.Process, line: bytes) -> str:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the rendering process was started without pipes")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(line + b"\n")
            await process.stdin.drain()
        answer = await process.stdout.readline()
        if not answer:
            self._process = None
            took_too_long = await process.wait() == -signal.SIGPROF
            raise RenderFailed("the chat template takes too long" if took_too_long else "the chat template ended its process")
        said: Rendered | Refused = msgspec.json.decode(answer, type=Rendered | Refused)
        if isinstance(said, Refused):
            raise RenderFailed(said.why)
        return said.text

    def _kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process = None
