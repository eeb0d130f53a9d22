"""Our engine as the server runs it: a process behind its handle, spoken to over its Unix socket."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from engine_benchmark.engine import OURS, SLOTS, EngineFailed, Request
from millrace_server.engine.handle import Dead, EngineHandle, Serving
from millrace_server.engine.messages import Submit
from millrace_server.settings import ServerSettings

DEADLINE_SECONDS = 3600
LOOK_SECONDS = 0.05


class Millrace:
    """Settings are the server's defaults, apart from what every engine is told: model, device, slots."""

    name = OURS

    def __init__(self, model: Path, environment: Mapping[str, str]) -> None:
        told = {"MODEL_NAME": "benchmark", "MODEL_PATH": str(model), "DEVICE": "cpu", "MAX_BATCH_SIZE": str(SLOTS)}
        self._handle = EngineHandle(ServerSettings.from_environment(told), environment)
        self._numbers = itertools.count()

    @property
    def pid(self) -> int:
        if self._handle.pid is None:
            raise EngineFailed("millrace's engine does not run")
        return self._handle.pid

    async def start(self) -> None:
        await self._handle.start()
        while not isinstance(self._handle.state, Serving):
            if isinstance(self._handle.state, Dead):
                raise EngineFailed(f"millrace's engine does not start: {self._handle.state.failure or 'see its log above'}")
            await asyncio.sleep(LOOK_SECONDS)

    async def generate(self, request: Request) -> AsyncGenerator[int]:
        request_id = str(next(self._numbers))
        submit = Submit(
            request_id=request_id,
            prompt=list(request.prompt),
            max_tokens=request.max_tokens,
            ignore_eos=True,
            deadline=time.monotonic() + DEADLINE_SECONDS,
        )
        try:
            async for output in self._handle.submit(submit):
                if output.error:
                    raise EngineFailed(f"millrace: {output.error}")
                if output.tokens:
                    yield len(output.tokens)
        finally:
            self._handle.cancel(request_id)

    async def stop(self) -> None:
        await self._handle.stop(grace_seconds=0)
