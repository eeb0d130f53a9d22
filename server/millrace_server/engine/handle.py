"""The front's side of the engine: starts the process, feeds it, watches it, and starts it again when it dies. No torch here.

A dead or hung engine fails its requests at once (EngineUnavailable) and is restarted with back-off, a few times in a while; one
that said why it cannot serve (Failed) is not, because it would only say so again. A request that was there each time is refused.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace_server.engine import frames
from millrace_server.engine.environment import engine_environment
from millrace_server.engine.messages import Cancel, Failed, FromEngine, Progress, Ready, Step, Submit
from millrace_server.engine.pulse import Patience, Pulse, cpu_seconds, how_it_ended, patience_for
from millrace_server.engine.quarantine import Quarantine
from millrace_server.engine.stream import EngineUnavailable, QuarantinedRequest, RequestStream
from millrace_server.settings import ServerSettings

EXIT_SECONDS = 1
"""For a process that hung up to end by itself, so that its exit code is its own."""

ENGINE_MODULE = "millrace_server.engine.process"
"""That is run; takes `--socket`."""

log = logging.getLogger(__name__)


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


class EngineHandle:
    """One engine at a time, and the requests it is working on."""

    def __init__(self, settings: ServerSettings, environment: Mapping[str, str], *, patience: Patience | None = None) -> None:
        """`environment` is the front's; the engine gets of it, and of `settings`, what it needs."""
        self.on_ready: Callable[[Ready], None] | None = None
        self.on_step: Callable[[Step], None] | None = None
        self.running = 0
        self.waiting = 0
        self.last_message_at = time.monotonic()
        self._environment = engine_environment(settings, environment)
        self._patience = patience or patience_for(settings.request_timeout)
        self._state: State = Loading("spawn", 0, 1, time.monotonic())
        self._streams: dict[str, RequestStream] = {}
        """In order of submission."""
        self._quarantine = Quarantine()
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
        """Hand a request to the engine. Raises EngineUnavailable, QuarantinedRequest, or ValueError for an id that is in use."""
        if not isinstance(self._state, Serving):
            raise EngineUnavailable(_why(self._state))
        if request.request_id in self._streams:
            raise ValueError(f"request_id {request.request_id!r} is in use")
        if self._quarantine.is_quarantined(request, now=time.monotonic()):
            raise QuarantinedRequest(
                "the engine died repeatedly while it computed this request, which is therefore refused for some minutes; change the prompt"
            )
        frame = frames.encode(request)
        stream = self._streams[request.request_id] = RequestStream(request)
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
        self._die(Dead(None), why="this replica shut down before the answer was complete; another one can answer")
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
            self._strike(now)
            self._die(Dead(failure, restarts))
            log.error("the engine is gone: %s", "it is started again" if restarts else "it is given up")
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
        command = (sys.executable, "-m", ENGINE_MODULE, "--socket", str(path))
        # Its own session: Ctrl-C on a terminal is the front's to handle, which lets the engine finish first.
        process = self._process = await asyncio.create_subprocess_exec(*command, env=self._environment, start_new_session=True)
        exited = asyncio.create_task(process.wait())
        either: list[asyncio.Future[Any]] = [connected, exited]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            failure = await self._serve(connected.result(), process) if connected.done() else None
            log.error("the engine %s", failure.hint if failure else how_it_ended(process.returncode))
            return failure
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

    async def _serve(self, reader: asyncio.StreamReader, process: asyncio.subprocess.Process) -> Failed | None:
        """Until the engine leaves, fails or hangs."""
        listening = asyncio.create_task(self._listen(reader))
        watching = asyncio.create_task(self._watch(process.pid))
        try:
            await asyncio.wait([listening, watching], return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                return None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), EXIT_SECONDS)
            return listening.result()
        finally:
            listening.cancel()
            watching.cancel()

    async def _listen(self, reader: asyncio.StreamReader) -> Failed | None:
        """Take the engine's messages until it leaves or fails."""
        while True:
            try:
                message = await frames.from_engine.read(reader)
            except frames.BadFrame:
                log.exception("the engine does not speak our language")
                return None
            if message is None or isinstance(message, Failed):
                return message
            self._take(message)

    async def _watch(self, pid: int) -> None:
        """Until the engine hangs."""
        pulse = Pulse(self._patience)
        while True:
            await asyncio.sleep(pulse.seconds_per_tick)
            # A load has stages without a word (a large file's conversion): the probe that reads `Loading.changed_at` judges it.
            heard = self.last_message_at if isinstance(self._state, Serving) else None
            why = pulse.hangs(heard=heard, cpu_seconds=cpu_seconds(pid))
            if why:
                log.error("the engine %s", why)
                return

    def _strike(self, now: float) -> None:
        """Note which requests the engine died with: those that had an output, and as many of the oldest as it may have begun.

        Priorities and tenants may have let others begin first; one strike harms nobody.
        """
        slots = self._state.ready.slots if isinstance(self._state, Serving) else 0
        for number, stream in enumerate(self._streams.values()):
            if stream.has_begun or number < slots:
                self._quarantine.strike(stream.request, now=now)

    def _take(self, message: FromEngine) -> None:
        self.last_message_at = time.monotonic()
        match message:
            case Step():
                self._deliver(message)
            case Progress(stage=stage, done=done, total=total):
                self._state = Loading(stage, done, total, self.last_message_at)
            case Ready():
                self._state = Serving(message)
                if self.on_ready:
                    self.on_ready(message)

    def _deliver(self, step: Step) -> None:
        self.running, self.waiting = step.running, step.waiting
        for output in step.outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # cancelled a moment ago
            stream.put(output)
            if output.finish_reason:
                if output.finish_reason in ("stop", "length"):
                    self._quarantine.clear(stream.request)
                self._end(output.request_id, None)
        if self.on_step:
            self.on_step(step)

    def _die(self, state: Dead, *, why: str | None = None) -> None:
        self._state = state
        self.running = self.waiting = 0
        for request_id in list(self._streams):
            self._end(request_id, EngineUnavailable(why or _why(state)))

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
