"""The engine process: `python -m millrace_server.engine.process --socket PATH`, settings from the environment.

Connects to the front's socket, loads the model while it reports how far it is, generates a few tokens to prove that it can, and then
serves until the socket closes. When it cannot serve it says why (Failed) and exits with EXIT_CANNOT_SERVE.
"""

import argparse
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from millrace_server import logs
from millrace_server.engine import checkpoint, frames
from millrace_server.engine.compiling import Compiler, Inbox
from millrace_server.engine.failure import EXIT_CANNOT_SERVE, EXIT_DEVICE_LOST, CannotServe, DeviceLost
from millrace_server.engine.messages import FromEngine, Output, Progress, Ready, Step, Submit
from millrace_server.settings import EngineSettings, InvalidSettings

if TYPE_CHECKING:
    from millrace_server.engine.loop import Loop
    from millrace_server.engine.runner import Facts

TOKENS_PER_STEP = 512
"""Enough prompt tokens to keep the processor busy, few enough that those who generate wait little for a long prompt."""
PREFIX_SHARE = 0.25
"""Of the KV cache, for beginnings that may come again. Only what is never used otherwise would be free."""
WARM_UP_PROMPT = 8
WARM_UP_TOKENS = 4
WARM_UP_SECONDS = 600
REPORT_SECONDS = 0.1

log = logging.getLogger(__name__)


class Front:
    """The engine's end of the socket. A thread fills `inbox`; when the front is gone the process ends at once, whatever it does."""

    def __init__(self, path: str) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        self._reported: tuple[str, float] = ("", 0.0)
        self._exit_code = 0

    def listen(self) -> None:
        threading.Thread(target=self._receive, name="front", daemon=True).start()

    def fail(self, reason: CannotServe) -> int:
        """Say why; returns the exit code, which also holds when the front hangs up on the news."""
        self._exit_code = EXIT_CANNOT_SERVE
        self.send(reason.failed)
        return EXIT_CANNOT_SERVE

    def send(self, message: FromEngine) -> None:
        self._connection.sendall(frames.encode(message))

    def report(self, stage: str, done: int, total: int) -> None:
        """Progress, at most every REPORT_SECONDS unless a stage begins or ends."""
        now = time.monotonic()
        last_stage, last = self._reported
        if stage != last_stage or done == total or now - last >= REPORT_SECONDS:
            self._reported = (stage, now)
            self.send(Progress(stage=stage, done=done, total=total))

    def _receive(self) -> None:
        try:
            while message := frames.from_front.receive(self._connection):
                self.inbox.put(message)
        except frames.BadFrame:
            log.exception("the front does not speak our language")
            self._exit_code = 1
        # Nobody is left to serve and nothing needs to be saved; the main thread may be deep in a load.
        os._exit(self._exit_code)


def main(arguments: Ordered[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Millrace's engine process; the server starts it.")
    parser.add_argument("--socket", required=True, help="the front's Unix socket")
    path = parser.parse_args(arguments).socket
    logs.configure()
    front = Front(path)
    front.listen()
    try:
        serve(EngineSettings.from_environment(os.environ), front)
    except InvalidSettings as error:
        return front.fail(CannotServe("settings", "InvalidSettings", str(error)))
    except CannotServe as error:
        log.error("%s", error)  # noqa: TRY400 - the sentence says it all
        return front.fail(error)
    except DeviceLost:
        log.exception("the engine ends, so that another process may serve")
        return EXIT_DEVICE_LOST


def serve(settings: EngineSettings, front: Front) -> NoReturn:
    """Load, warm up, and step for ever. Raises CannotServe."""
    front.report("start", 0, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    hub_revision = settings.model_revision if settings.model_path is None else None
    folder = checkpoint.find(name=settings.model_name, path=settings.model_path, revision=hub_revision)
    found = checkpoint.inspect(folder)
    # torch and transformers take seconds to import: only here, when the front already listens and the model's folder is known.
    from millrace_server.engine import model
    from millrace_server.engine.loop import Loop
    from millrace_server.engine.prefixes import BLOCK_TOKENS
    from millrace_server.engine.scheduler import Limits, Scheduler
    from millrace_server.engine.share import LongPromptShare

    model.use_container_threads()
    front.report("start", 1, 1)
    digest = checkpoint.read(found, front.report)
    runner = model.load(
        found,
        device=settings.device,
        device_fallback=settings.device_fallback,
        dtype=settings.dtype,
        max_length=settings.max_length,
        report=front.report,
    )
    facts = runner.facts
    compiler, no_schemas = schemas(found.folder, facts, front)
    tokens_per_step = max(TOKENS_PER_STEP, 2 * settings.max_batch_size)

    def loop(emit: Callable[[Step], None]) -> Loop:
        limits = Limits(
            slots=settings.max_batch_size,
            tokens_per_step=tokens_per_step,
            kv_tokens=runner.kv_tokens,
            prefix_tokens=int(runner.kv_tokens * PREFIX_SHARE),
            company_seconds=settings.batch_timeout_ms / 1000,
        )
        share = LongPromptShare(most=tokens_per_step, stages=runner.stages)
        scheduler = Scheduler(limits, reserve=runner.reserve, share=share, eos_token_ids=facts.eos_token_ids, revision=digest)
        return Loop(
            scheduler,
            runner,
            inbox=front.inbox,
            emit=emit,
            max_length=facts.max_length,
            vocabulary=facts.vocabulary,
            compiler=compiler,
        )

    warm_up(loop, front, prompt=[0] * min(WARM_UP_PROMPT, facts.max_length - WARM_UP_TOKENS))
    ready = Ready(
        device=facts.device,
        dtype=facts.dtype,
        slots=settings.max_batch_size,
        max_length=facts.max_length,
        vocabulary=facts.vocabulary,
        eos_token_ids=sorted(facts.eos_token_ids),
        revision=settings.model_revision or checkpoint.commit(found.folder) or digest,
        digest=digest,
        kv_tokens=runner.kv_tokens,
        block_tokens=BLOCK_TOKENS,
        no_schemas=no_schemas,
    )
    front.send(ready)
    serving = loop(front.send)
    while True:
        serving.step()


def schemas(folder: Path, facts: "Facts", front: Front) -> tuple[Compiler | None, str | None]:
    """What compiles JSON schemas for this model's tokens, or why nothing can."""
    from millrace_server.engine import mask
    from millrace_server.engine.grammar import BadGrammar

    try:
        compile_schema = mask.schema_compiler(folder, vocabulary=facts.vocabulary, eos_token_ids=facts.eos_token_ids)
    except (OSError, BadGrammar) as error:
        log.warning("answers cannot follow a JSON schema: %s", error)
        return None, str(error)
    return Compiler(compile_schema, front.inbox), None


def warm_up(loop: Callable[[Callable[[Step], None]], "Loop"], front: Front, *, prompt: list[int]) -> None:
    """Generate WARM_UP_TOKENS by the very path that requests take. Raises CannotServe."""
    outputs: list[Output] = []
    warming = loop(lambda step: outputs.extend(step.outputs))
    deadline = time.monotonic() + WARM_UP_SECONDS
    front.inbox.put(Submit(request_id="warm-up", prompt=prompt, max_tokens=WARM_UP_TOKENS, ignore_eos=True, deadline=deadline))
    while not outputs or outputs[-1].finish_reason is None:
        front.report("warm-up", len(outputs), WARM_UP_TOKENS)
        try:
            warming.step()
        except DeviceLost as error:
            raise CannotServe("warm-up", "InvalidModel", f"{error}; the engine's log above has the details") from error
    if outputs[-1].finish_reason != "length":
        why = outputs[-1].error or f"the warm-up ended by {outputs[-1].finish_reason}"
        raise CannotServe("warm-up", "InvalidModel", f"{why}; the engine's log above has the details")
    front.report("warm-up", WARM_UP_TOKENS, WARM_UP_TOKENS)


if __name__ == "__main__":
    sys.exit(main())
