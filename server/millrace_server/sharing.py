"""Equal questions: answered from the cache, and at the same time by one run of the model that belongs to none of those who asked.

Everybody reads a run at a pace of their own and until a deadline of their own. It is cut when the last of them has left; how else it ends,
well or not, is news for all.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from millrace_server.answering import Answering, Piece, Source, Whole
from millrace_server.cache import Cache
from millrace_server.errors import DeadlinePassed
from millrace_server.question import Call, Question
from millrace_server.recording import Recording

PIECES_IN_A_ROW = 32
"""For one reader, before everybody else has a turn: what is known already needs no waiting."""

Place = tuple[bytes, int]
"""A key and a priority: whoever is urgent does not wait for the work of somebody who is not."""
Ask = Callable[[Question, Call, float], AbstractAsyncContextManager[Answering]]
"""One pass through the system. The engine gives it up at the monotonic time."""


class Run:
    """What is known of the answers to one question. It may be read as soon as it `has_begun`."""

    def __init__(self, *, ends: float) -> None:
        self.ends = ends
        """Monotonic time, before which everybody's deadline is."""
        self.readers = 0
        self.source = Source.miss
        self.pieces: list[Piece] = []
        """With something in them."""
        self.recording: Recording | None = None
        """Once it is well over."""
        self.failure: Exception | None = None
        self.has_begun = asyncio.Event()
        self.is_over = asyncio.Event()
        self.has_news = asyncio.Event()
        """A piece more than at the last look, or over. Set once, and then replaced by the next one."""
        self.task: asyncio.Task[None] | None = None
        """The work for it."""
        self._is_streamed = False
        self._answering: Answering | None = None

    def stream(self) -> None:
        """Somebody wants the text as it comes."""
        self._is_streamed = True
        if self._answering is not None:
            self._answering.read_at_once()

    async def follow(self, answering: Answering) -> Recording:
        """Take the pieces until the last one."""
        self._answering = answering
        if self._is_streamed:
            self.stream()
        self.has_begun.set()
        wholes = [Whole() for _ in range(answering.answers)]
        async for piece in answering:
            wholes[piece.index].add(piece)
            if piece.says_something():
                self.pieces.append(piece)
                self._tell()
        return Recording(prompt_tokens=answering.prompt_tokens, tokens=answering.tokens, wholes=wholes)

    def replay(self, recording: Recording) -> None:
        self.source = Source.hit
        self.pieces += recording.pieces()
        self.end(recording)

    def end(self, outcome: Recording | Exception) -> None:
        if isinstance(outcome, Recording):
            self.recording = outcome
        else:
            self.failure = outcome
        self.has_begun.set()
        self.is_over.set()
        self._tell()

    def cut(self) -> None:
        """Nobody wants the rest."""
        if self.task is not None:
            self.task.cancel()

    def late(self, call: Call) -> DeadlinePassed:
        if self._answering is not None:
            return self._answering.late(call.timeout)
        return DeadlinePassed("the deadline passed while the prompt was still being read")

    def _tell(self) -> None:
        self.has_news.set()
        self.has_news = asyncio.Event()


class Reader(AsyncIterator[Piece]):
    """One of those who asked. Everything raises what the run failed with, and DeadlinePassed."""

    def __init__(self, run: Run, call: Call, *, is_first: bool) -> None:
        self._run = run
        self._call = call
        self._is_first = is_first
        self._read = 0
        """Pieces."""

    @property
    def source(self) -> Source:
        return self._run.source if self._is_first else Source.hit

    @property
    def prompt_tokens(self) -> int:
        return self._recording().prompt_tokens

    @property
    def tokens(self) -> int:
        return self._recording().tokens

    async def begin(self) -> None:
        """Until it is known where the answers come from."""
        await self._wait(self._run.has_begun)

    async def whole(self) -> list[Whole]:
        await self._wait(self._run.is_over)
        return self._recording().wholes

    async def __anext__(self) -> Piece:
        while self._read == len(self._run.pieces):
            if self._run.is_over.is_set():
                self._recording()
                raise StopAsyncIteration
            await self._wait(self._run.has_news)
        if self._read % PIECES_IN_A_ROW == PIECES_IN_A_ROW - 1:
            await asyncio.sleep(0)
        self._read += 1
        return self._run.pieces[self._read - 1]

    async def _wait(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._call.deadline - time.monotonic()):
                await event.wait()
        except TimeoutError:
            raise self._run.late(self._call) from None

    def _recording(self) -> Recording:
        if self._run.failure is not None:
            raise self._run.failure
        if self._run.recording is None:
            raise RuntimeError("the answers are not complete yet")
        return self._run.recording


class Runs:
    """Those that are not over."""

    def __init__(self, cache: Cache, ask: Ask, *, longest_seconds: float) -> None:
        """No call's timeout is above `longest_seconds`."""
        self._cache = cache
        self._ask = ask
        self._longest_seconds = longest_seconds
        self._runs: dict[Place, Run] = {}

    @contextlib.asynccontextmanager
    async def read(self, key: bytes, question: Question, call: Call) -> AsyncIterator[Reader]:
        """The answers that are kept under `key`, or will be. Nothing goes on for a reader that has left."""
        place = (key, question.priority)
        run = self._runs.get(place)
        is_first = run is None or run.ends < call.deadline
        if run is None or is_first:
            run = self._start(place, question, call)
        if question.is_streamed:
            run.stream()
        run.readers += 1
        try:
            reader = Reader(run, call, is_first=is_first)
            await reader.begin()
            yield reader
        finally:
            run.readers -= 1
            if not run.readers and not run.is_over.is_set():
                self._forget(place, run)
                run.cut()

    def _start(self, place: Place, question: Question, call: Call) -> Run:
        # Who comes before the first reader's deadline can stay until a deadline of its own.
        run = self._runs[place] = Run(ends=time.monotonic() + 2 * self._longest_seconds)
        run.task = asyncio.create_task(self._work(run, place, question, call))
        return run

    def _forget(self, place: Place, run: Run) -> None:
        if self._runs.get(place) is run:
            del self._runs[place]

    async def _work(self, run: Run, place: Place, question: Question, call: Call) -> None:
        key, _ = place
        try:
            if (kept := await self._cache.get(key)) is not None:
                run.replay(Recording.decode(kept))
            else:
                async with self._ask(question, call, run.ends) as answering:
                    recording = await run.follow(answering)
                run.end(recording)
                # Whoever comes before it is kept would not find it, and reads the run instead.
                await self._cache.put(key, recording.encode())
        except Exception as error:  # noqa: BLE001 - it is raised in every reader
            run.end(error)
        finally:
            self._forget(place, run)
