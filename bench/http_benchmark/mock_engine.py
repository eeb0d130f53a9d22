"""An engine without a model: speaks the real one's messages and gives every running request one token per step.

MOCK_SLOTS requests run at once and a step takes MOCK_STEP_SECONDS (environment variables; 0: as fast as the front reads), so that what
it can do in a second is known exactly.
"""

import argparse
import os
import queue
import time
from collections import deque

from millrace_server.engine.messages import Cancel, Output, Ready, Step, Submit
from millrace_server.engine.process import Front

TOKEN = 40
"""A letter, so that every token is an event."""
HEARTBEAT_SECONDS = 0.5


class MockEngine:
    def __init__(self, front: Front, *, slots: int, step_seconds: float) -> None:
        self._front = front
        self._slots = slots
        self._step_seconds = step_seconds
        self._waiting: deque[Submit] = deque()
        self._running: dict[str, tuple[Submit, int]] = {}
        """And how many tokens it still gets."""

    def serve(self) -> None:
        ready = Ready(
            device="cpu", dtype="none", slots=self._slots, max_length=100_000, vocabulary=512, eos_token_ids=[1], revision="mock", digest=""
        )
        self._front.send(ready)
        due = time.monotonic()
        while True:
            self._take(wait=not self._running and not self._waiting)
            step = self._step(time.monotonic())
            due = max(due + self._step_seconds, time.monotonic() - self._step_seconds)
            time.sleep(max(0.0, due - time.monotonic()))
            self._front.send(step)

    def _take(self, *, wait: bool) -> None:
        """What has arrived; with nothing to do, wait for it, until the heart must beat."""
        try:
            message = self._front.inbox.get(timeout=HEARTBEAT_SECONDS) if wait else self._front.inbox.get_nowait()
            while True:
                if isinstance(message, Submit):
                    self._waiting.append(message)
                elif isinstance(message, Cancel):
                    self._cancel(message)
                message = self._front.inbox.get_nowait()
        except queue.Empty:
            pass

    def _cancel(self, message: Cancel) -> None:
        self._running.pop(message.request_id, None)
        self._waiting = deque(each for each in self._waiting if each.request_id != message.request_id)

    def _step(self, now: float) -> Step:
        outputs = [self._end(each, "deadline") for each in self._waiting if each.deadline <= now]
        self._waiting = deque(each for each in self._waiting if each.deadline > now)
        while self._waiting and len(self._running) < self._slots:
            submit = self._waiting.popleft()
            self._running[submit.request_id] = submit, submit.max_tokens
        for request_id, (submit, left) in list(self._running.items()):
            if submit.deadline <= now:
                outputs.append(self._end(submit, "deadline"))
            elif left == 1:
                outputs.append(Output(request_id=request_id, tokens=[TOKEN], finish_reason="length"))
            else:
                outputs.append(Output(request_id=request_id, tokens=[TOKEN]))
                self._running[request_id] = submit, left - 1
        for output in outputs:
            if output.finish_reason:
                self._running.pop(output.request_id, None)
        return Step(outputs=outputs, running=len(self._running), waiting=len(self._waiting), slots=self._slots)

    def _end(self, submit: Submit, reason: str) -> Output:
        return Output(request_id=submit.request_id, tokens=[], finish_reason=reason)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    path = parser.parse_args().socket
    front = Front(path)
    front.listen()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(os.getppid()) ^ set(range(os.cpu_count() or 1)) or {0})})
    MockEngine(front, slots=int(os.environ["MOCK_SLOTS"]), step_seconds=float(os.environ["MOCK_STEP_SECONDS"])).serve()


if __name__ == "__main__":
    main()
