"""An engine that does what the prompt says: for the reasons to fail that a sound one does not give.

`python -m obedient_engine` is the real server before it; with `--socket`, as the server starts it, it is the engine. Prompts are those of
fake_model.py's tokenizer, whose tokens are bytes.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from millrace_server.engine.messages import Cancel, Output, Ready, Step, Submit
from millrace_server.engine.process import Front

SLOTS = 1
A = ord("a")
NO_TOKEN = -1
HEARTBEAT_SECONDS = 0.1
SLOW_SECONDS = 2.0


class ObedientEngine:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._sending = threading.Lock()
        self._held: dict[str, Submit] = {}

    def serve(self) -> NoReturn:
        while (gate := os.environ.get("READY_WHEN")) and not Path(gate).exists():
            time.sleep(HEARTBEAT_SECONDS)
        ready = Ready(
            device="cpu",
            dtype="none",
            slots=SLOTS,
            max_length=512,
            vocabulary=256,
            eos_token_ids=[],
            revision="obedient",
            digest="obedient",
        )
        self._front.send(ready)
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            message = self._front.inbox.get()
            if isinstance(message, Submit):
                self._obey(message)
            elif isinstance(message, Cancel):
                self._held.pop(message.request_id, None)

    def _obey(self, request: Submit) -> None:
        match bytes(request.prompt).decode():
            case "hold":
                self._held[request.request_id] = request
                self._say()
            case "slow":
                self._held[request.request_id] = request
                self._say(Output(request_id=request.request_id, tokens=[A]))
                threading.Timer(SLOW_SECONDS, self._end, [request, "length"]).start()
            case "fail":
                self._end(request, "error", "the step failed")
            case "poison":
                self._end(request, "quarantined", "the step failed twice")
            case "nonsense":
                self._say(Output(request_id=request.request_id, tokens=[NO_TOKEN], finish_reason="length"))
            case "die":
                os._exit(1)
            case _:
                self._say(Output(request_id=request.request_id, tokens=[A], finish_reason="length"))

    def _end(self, request: Submit, reason: str, error: str | None = None) -> None:
        self._held.pop(request.request_id, None)
        self._say(Output(request_id=request.request_id, tokens=[], finish_reason=reason, error=error))

    def _beat(self) -> None:
        while True:
            for request in [each for each in self._held.values() if each.deadline <= time.monotonic()]:
                self._end(request, "deadline")
            self._say()
            time.sleep(HEARTBEAT_SECONDS)

    def _say(self, *outputs: Output) -> None:
        step = Step(outputs=list(outputs), running=min(len(self._held), SLOTS), waiting=max(len(self._held) - SLOTS, 0), slots=SLOTS)
        with self._sending:
            self._front.send(step)


def engine() -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    front = Front(parser.parse_args().socket)
    front.listen()
    ObedientEngine(front).serve()


def server() -> int:
    from millrace_server.__main__ import main
    from millrace_server.engine import handle

    handle.ENGINE_MODULE = "obedient_engine"
    return main([])


if __name__ == "__main__":
    sys.exit(engine() if "--socket" in sys.argv else server())
