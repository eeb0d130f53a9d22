"""The front's side of the engine: starts the process, feeds it, watches it, and starts it again when it dies. No torch here.

A dead or hung engine fails its requests at once (EngineUnavailable) and is restarted with back-off, a few times in a while; one
that said why it cannot serve (Failed) is not, because it would only say so again.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace_server.engine import frames
from millrace_server.engine.messages import Cancel, Failed, FromEngine, Output, Progress, Ready, Step, Submit
from millrace_server.settings import ServerSettings

log = logging.getLogger(__name__)


class EngineUnavailable(Exception):
    """The engine is loading, restarting or dead: the request may be tried again later."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The engine makes `done` of `total` steps of a stage; `changed_at` (monotonic) tells progress from a stall."""

    stage: str
    done: int
    total: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class Serving:
    ready: Ready


@dataclass(frozen=True, slots=True)
class Dead:
    failure: Failed | None
    """None when the process ended without a word (killed, crashed, hung)."""
    restarts: bool = False
    """Whether another process is on its way."""


State = Loading | Serving | Dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the engine may be silent, and how often it may die. Seconds."""

    heartbeat_seconds: float = 30
    """A serving engine speaks at every step and each second while idle; longer silence than this is a hang."""
    restarts: int = 3
    restarts_window_seconds: float = 600
    first_backoff_seconds: float = 1


class RequestStream(AsyncIterator[Output]):
    """One request's outputs. Ends after the one with a finish_reason, or when cancelled; raises EngineUnavailable when the engine dies."""

    def __init__(self) -> None:
        self._arrived: deque[Output | EngineUnavailable | None] = deque()
        self._something = asyncio.Event()

    async def __anext__(self) -> Output:
        while not self._arrived:
            self._something.clear()
            await self._something.wait()
        item = self._arrived[0]
        if isinstance(item, Output):
            self._arrived.popleft()
            return item
        if item is None:
            raise StopAsyncIteration
        raise item

    def put(self, item: Output | EngineUnavailable | None) -> None:
        """An output, or the end: None, or why."""
        self._arrived.append(item)
        self._something.set()


class EngineHandle:
    """One engine at a time, and the requests it is working on."""

    def __init__(self, settings: ServerSettings, environment: Mapping[str, str], *, patience: Patience | None = None) -> None:
        """`environment` is the engine process's own, as it stands; `settings` are added to it."""
        self.on_step: Callable[[Step], None] | None = None
        self.running = 0
        self.waiting = 0
        self.last_message_at = time.monotonic()
        self._environment = {**environment, **settings.to_environment()}
        self._patience = patience or Patience()
        self._state: State = Loading("spawn", 0, 1, time.monotonic())
        self._streams: dict[str, RequestStream] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._folder: Path | None = None
        self._deaths: deque[float] = deque()

    @property
    def state(self) -> State:
        return self._state

    @property
    def active(self) -> int:
        """Requests whose stream has not ended, counted here and now (`running` and `waiting` are the last step's)."""
        return len(self._streams)

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the first engine; returns before it has loaded. `state` and `ended` tell what becomes of it."""
        self._folder = Path(tempfile.mkdtemp(prefix="millrace-"))  # mode 0700
        self._supervisor = asyncio.create_task(self._supervise(self._folder / "engine.sock"), name="engine supervisor")

    async def ended(self) -> Dead:
        """Wait until no engine will serve any more."""
        if self._supervisor is None:
            raise RuntimeError("start() comes first")
        await asyncio.wait([self._supervisor])
        return self._state if isinstance(self._state, Dead) else Dead(None)

    def submit(self, request: Submit) -> RequestStream:
        """Hand a request to the engine. Raises EngineUnavailable, or ValueError for an id that is in use."""
        if not isinstance(self._state, Serving):
            raise EngineUnavailable(_why(self._state))
        if request.request_id in self._streams:
            raise ValueError(f"request_id {request.request_id!r} is in use")
        frame = frames.encode(request)
        stream = self._streams[request.request_id] = RequestStream()
        self._quiet.clear()
        self._write(frame)
        return stream

    def cancel(self, request_id: str) -> None:
        """Free the request's slot at the next step and end its stream. An unknown or finished one is fine."""
        if self._end(request_id, None):
            self._write(frames.encode(Cancel(request_id=request_id)))

    async def stop(self, *, grace_seconds: float) -> None:
        """Give running requests this long to finish, then end the process."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._quiet.wait()
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        self._die(Dead(None))
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _supervise(self, path: Path) -> None:
        """Run engines, one after the other, until one must not or may not be restarted."""
        while True:
            failure = await self._run(path)
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths[0] < now - self._patience.restarts_window_seconds:
                self._deaths.popleft()
            restarts = failure is None and len(self._deaths) <= self._patience.restarts
            self._die(Dead(failure, restarts))
            log.error("the engine died: %s; %s", failure or "no last word", "restarting" if restarts else "giving up")
            if not restarts:
                return
            await asyncio.sleep(self._patience.first_backoff_seconds * 2 ** (len(self._deaths) - 1))
            self._state = Loading("spawn", 0, 1, time.monotonic())

    async def _run(self, path: Path) -> Failed | None:
        """One engine from birth to death. Returns its last words."""
        connected: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()

        def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
                return
            self._writer = writer
            connected.set_result(reader)

        path.unlink(missing_ok=True)  # noqa: ASYNC240 - a name in /tmp
        server = await asyncio.start_unix_server(connect, path)
        command = (sys.executable, "-m", "millrace_server.engine.process", "--socket", str(path))
        # Its own session: Ctrl-C on a terminal is the front's to handle, which lets the engine finish first.
        process = self._process = await asyncio.create_subprocess_exec(*command, env=self._environment, start_new_session=True)
        exited = asyncio.create_task(process.wait())
        either: list[asyncio.Future[Any]] = [connected, exited]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return await self._listen(connected.result()) if connected.done() else None
        finally:
            server.close()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await exited
            self._process = None
            if self._writer:
                self._writer.close()
                self._writer = None

    async def _listen(self, reader: asyncio.StreamReader) -> Failed | None:
        """Take the engine's messages until it falls silent, leaves or fails."""
        while True:
            # A load has stages without a word (a large file's conversion): the probe that reads `Loading.changed_at` judges it.
            limit = self._patience.heartbeat_seconds if isinstance(self._state, Serving) else None
            try:
                async with asyncio.timeout(limit):
                    message = await frames.from_engine.read(reader)
            except TimeoutError:
                log.error("no word from the engine for %s seconds", limit)  # noqa: TRY400 - where it waited does not matter
                return None
            except frames.BadFrame:
                log.exception("the engine does not speak our language")
                return None
            if message is None or isinstance(message, Failed):
                return message
            self._take(message)

    def _take(self, message: FromEngine) -> None:
        self.last_message_at = time.monotonic()
        match message:
            case Step():
                self._deliver(message)
            case Progress(stage=stage, done=done, total=total):
                self._state = Loading(stage, done, total, self.last_message_at)
            case Ready():
                self._state = Serving(message)

    def _deliver(self, step: Step) -> None:
        self.running, self.waiting = step.running, step.waiting
        for output in step.outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # cancelled a moment ago
            stream.put(output)
            if output.finish_reason:
                self._end(output.request_id, None)
        if self.on_step:
            self.on_step(step)

    def _die(self, state: Dead) -> None:
        self._state = state
        self.running = self.waiting = 0
        for request_id in list(self._streams):
            self._end(request_id, EngineUnavailable(_why(state)))

    def _end(self, request_id: str, reason: EngineUnavailable | None) -> bool:
        """Whether there was such a stream."""
        stream = self._streams.pop(request_id, None)
        if stream:
            stream.put(reason)
        if not self._streams:
            self._quiet.set()
        return stream is not None

    def _write(self, frame: bytes) -> None:
        if self._writer:
            self._writer.write(frame)


def _why(state: State) -> str:
    match state:
        case Loading(stage=stage, done=done, total=total):
            return f"the model is loading ({stage}: {done} of {total})"
        case Dead(failure=Failed(hint=hint)):
            return hint
        case Dead(restarts=True):
            return "the engine died and is being restarted"
        case _:
            return "the engine is gone"
