"""A server from its first listening socket to its exit code: start, serve, drain, or end with the reason.

One event loop serves both ports and feeds the engine process. HTTP answers before the model is loaded.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping

import uvicorn
from starlette.types import ASGIApp

from millrace_server import termination
from millrace_server.admission import Admission
from millrace_server.app import INFERENCE_ENDPOINTS, client_app, internal_app
from millrace_server.cache import cache_for
from millrace_server.chat.template import ChatTemplate
from millrace_server.connection import KEEP_ALIVE_SECONDS, Connection, ConnectionLimits, ListenerConfig
from millrace_server.engine import checkpoint
from millrace_server.engine.failure import CannotServe
from millrace_server.engine.handle import EngineHandle, Serving
from millrace_server.engine.messages import Failed
from millrace_server.inference import Inference
from millrace_server.keys import KeyRing
from millrace_server.metrics import Metrics
from millrace_server.settings import ServerSettings
from millrace_server.text import Text

EXIT_DRAINED = 0
EXIT_FAILED = 1

LISTEN_BACKLOG = 2048
RESERVED_FILES = 64
"""Of each port's half of the files that the process may open: for everything but connections, also those that are just being refused."""
POLL_SECONDS = 0.05
LAST_ANSWER_SECONDS = 1.0
"""After SIGTERM an idle client has this long to send one more request over its kept connection, whose answer says that it closes."""
CLOSE_SECONDS = 1.0
"""The time to write out answers that are already made."""

logger = logging.getLogger(__name__)


class Listener(uvicorn.Server):
    """One port. Signals belong to the lifecycle, not to uvicorn."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def connections(self) -> int:
        return len(self.server_state.connections)

    @property
    def requests(self) -> int:
        """Requests that are being received, worked on or answered."""
        return len(self.server_state.tasks)


class Lifecycle:
    def __init__(self, settings: ServerSettings, environment: Mapping[str, str], *, keys: KeyRing | None) -> None:
        self._settings = settings
        self._inference = self.inference(settings, EngineHandle(settings, environment))
        self._keys = keys
        if keys is not None:
            self._inference.metrics.internal_registry.register(keys)
        self._stop = asyncio.Event()
        self._drain_began: float | None = None

    @staticmethod
    def inference(settings: ServerSettings, engine: EngineHandle) -> Inference:
        """The parts of a server, put together."""
        now = time.monotonic()
        admission = Admission(
            slots=settings.max_batch_size, max_queue=settings.max_queue_size, max_concurrent=settings.max_concurrent_requests, now=now
        )
        metrics = Metrics(model_name=settings.model_name, inference_endpoints=INFERENCE_ENDPOINTS, now=now)
        return Inference(settings=settings, engine=engine, cache=cache_for(settings), metrics=metrics, admission=admission)

    async def run(self) -> int:
        """Serve until a signal or a failure that waiting does not mend. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            client_socket = _bind(self._settings.host, self._settings.port)
            internal_socket = _bind(self._settings.host, self._settings.prometheus_port)
        except CannotServe as error:
            return self._fail(error.failed)
        app = client_app(self._inference, drain_began=lambda: self._drain_began, keys=self._keys)
        clients = self._listener(app, lifetime=self._settings.connection_seconds)
        internal = self._listener(internal_app(self._inference), lifetime=float("inf"))
        serving = [
            asyncio.create_task(clients.serve([client_socket])),
            asyncio.create_task(internal.serve([internal_socket])),
        ]
        ports = {"port": client_socket.getsockname()[1], "prometheus_port": internal_socket.getsockname()[1]}
        logger.info("listening", extra=ports)
        try:
            failure = await self._serve_until_the_end()
            if failure is None:
                await self._drain(clients)
        finally:
            for listener in (clients, internal):
                listener.should_exit = True
            await asyncio.gather(self._inference.engine.stop(grace_seconds=0), *serving)
            if self._inference.chat:
                await self._inference.chat.close()
            await self._inference.schemas.close()
            await self._inference.cache.close()
        if failure is not None:
            return self._fail(failure)
        logger.info("drained")
        return EXIT_DRAINED

    async def _serve_until_the_end(self) -> Failed | None:
        """None after a signal, else why the server cannot go on."""
        await self._inference.engine.start()
        stopping = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(self._inference.engine.ended())
        loading = asyncio.create_task(self._load())
        following = [asyncio.create_task(self._keys.follow())] if self._keys else []
        try:
            await asyncio.wait({stopping, ended, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and (failure := loading.result()) is not None:
                return failure
            await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return None
            hint = "the engine process died several times without a word; was it killed for memory? Its log has the rest"
            return ended.result().failure or Failed(stage="serve", cause="EngineDied", hint=hint)
        finally:
            for task in (stopping, ended, loading, *following):
                task.cancel()

    async def _load(self) -> Failed | None:
        """Load tokenizer and chat template while the engine loads the weights, and note the moment at which all is done."""
        settings, inference = self._settings, self._inference
        try:
            revision = None if settings.model_path else settings.model_revision
            folder = await asyncio.to_thread(checkpoint.find, name=settings.model_name, path=settings.model_path, revision=revision)
            inference.text = await asyncio.to_thread(Text.from_folder, folder)
        except CannotServe as error:
            return error.failed
        inference.chat = await ChatTemplate.load(folder, inference.text)
        while not isinstance(state := inference.engine.state, Serving):  # noqa: ASYNC110 - the handle has no event for it
            await asyncio.sleep(POLL_SECONDS)
        ready = state.ready
        inference.admission.slots = ready.slots
        facts = {
            "slots": ready.slots,
            "max_length": ready.max_length,
            "device": ready.device,
            "dtype": ready.dtype,
            "revision": ready.revision,
        }
        logger.info("serving", extra=facts)
        return None

    async def _drain(self, clients: Listener) -> None:
        """Finish what is in the system, at most `drain_seconds`; say good-bye on every connection."""
        began = self._drain_began = time.monotonic()
        self._inference.is_draining = True
        admission = self._inference.admission
        logger.info("draining", extra={"in_system": admission.in_system, "seconds": self._settings.drain_seconds})
        if not self._inference.is_loaded():
            return
        while time.monotonic() < began + self._settings.drain_seconds:
            is_quiet = admission.in_system == 0 and clients.requests == 0
            if is_quiet and (clients.connections == 0 or time.monotonic() > began + LAST_ANSWER_SECONDS):
                return
            await asyncio.sleep(POLL_SECONDS)
        logger.warning("requests were cut at the end of the drain", extra={"in_system": admission.in_system, "requests": clients.requests})

    def _listener(self, app: ASGIApp, *, lifetime: float) -> Listener:
        config = ListenerConfig(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,  # type: ignore[arg-type]
            backlog=LISTEN_BACKLOG,
        )
        max_connections = min(self._settings.max_connections, _open_files() // 2 - RESERVED_FILES)
        config.connection_limits = ConnectionLimits(
            head_timeout=self._settings.head_timeout,
            stall_timeout=self._settings.body_timeout,
            lifetime=lifetime,
            connections=max_connections,
        )
        config.refused = lambda error: self._inference.metrics.connection_refused(str(error.code))
        return Listener(config)

    def _fail(self, failed: Failed) -> int:
        logger.error("the server cannot go on", extra={"stage": failed.stage, "cause": failed.cause, "hint": failed.hint})
        termination.write(self._settings.termination_log, failed)
        return EXIT_FAILED


def _open_files() -> int:
    """As many as the process may have open, once it asked for all it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens: who connects from now on waits until somebody serves it. Raises CannotServe."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        hint = f"{host}:{port} cannot be opened ({error.strerror}); set PORT and PROMETHEUS_PORT to free ports"
        raise CannotServe("listen", "AddressUnavailable", hint) from None
    listener.settimeout(0)
    return listener
