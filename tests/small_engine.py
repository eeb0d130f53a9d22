"""An engine inside the test's own process: the real loop, scheduler and model runner, with a clock that the test moves.

Its step log is the list of Step messages, which is all that the front ever learns.
"""

import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from millrace_server.engine import checkpoint, model
from millrace_server.engine.compiling import Compiler, Inbox
from millrace_server.engine.loop import Loop
from millrace_server.engine.loop import Runner as AnyRunner
from millrace_server.engine.messages import Cancel, Output, Sampling, Step, Submit
from millrace_server.engine.runner import Runner
from millrace_server.engine.scheduler import Limits, Scheduler
from millrace_server.engine.sequence import TokenMask
from millrace_server.engine.share import LongPromptShare
from millrace_server.settings import Device, DType

FAR = 1e9
"""A deadline that never comes."""


def load(folder: Path, *, max_length: int | None = None, dtype: DType = DType.float32, device: Device = Device.cpu) -> Runner:
    """The runner of a saved model."""
    found = checkpoint.inspect(folder)
    return model.load(
        found, device=device, device_fallback=False, dtype=dtype, max_length=max_length, report=lambda _stage, _done, _total: None
    )


def request(name: str, prompt: Sequence[int], **fields: Any) -> Submit:  # noqa: ANN401
    """A greedy request of 16 tokens that ignores eos, unless told otherwise; takes the fields of Submit and of its Sampling."""
    sampling = Sampling(**{field: fields.pop(field) for field in Sampling.__struct_fields__ if field in fields})
    defaults: dict[str, Any] = {"max_tokens": 16, "deadline": FAR, "ignore_eos": True}
    return Submit(request_id=name, prompt=list(prompt), sampling=sampling, **{**defaults, **fields})


class SmallEngine:
    """Steps only when told to."""

    def __init__(
        self,
        runner: AnyRunner,
        *,
        slots: int = 4,
        tokens_per_step: int = 64,
        kv_tokens: int = 1 << 20,
        max_length: int = 512,
        vocabulary: int = 259,
        eos_token_ids: Sequence[int] = (),
        prefix_tokens: int = 0,
        reserve: Callable[[int], int] = lambda tokens: tokens,
        compile_schema: Callable[[str], TokenMask] | None = None,
        share: LongPromptShare | None = None,
    ) -> None:
        self.now = 0.0
        self.steps: list[Step] = []
        self.inbox: Inbox = queue.SimpleQueue()
        limits = Limits(slots=slots, tokens_per_step=tokens_per_step, kv_tokens=kv_tokens, prefix_tokens=prefix_tokens, company_seconds=0)
        share = share or LongPromptShare(most=tokens_per_step)
        self.scheduler = Scheduler(limits, reserve=reserve, share=share, eos_token_ids=eos_token_ids)
        self._loop = Loop(
            self.scheduler,
            runner,
            inbox=self.inbox,
            emit=self.steps.append,
            max_length=max_length,
            vocabulary=vocabulary,
            compiler=Compiler(compile_schema, self.inbox) if compile_schema else None,
            clock=lambda: self.now,
            draw_seed=lambda: 7,
        )

    def submit(self, *requests: Submit) -> None:
        for each in requests:
            self.inbox.put(each)

    def cancel(self, name: str) -> None:
        self.inbox.put(Cancel(request_id=name))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._loop.step()

    def finish(self, *, at_most: int = 10_000) -> None:
        """Step until nothing waits or runs."""
        for _ in range(at_most):
            if self.inbox.empty() and self.scheduler.is_idle:
                return
            self._loop.step()
        raise AssertionError(f"{len(self.scheduler.running)} run and {len(self.scheduler.waiting)} wait after {at_most} steps")

    def outputs(self, name: str) -> list[Output]:
        return [output for step in self.steps for output in step.outputs if output.request_id == name]

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs(name) for token in output.tokens]

    def finish_reason(self, name: str) -> str | None:
        outputs = self.outputs(name)
        return outputs[-1].finish_reason if outputs else None

    def step_of_first_token(self, name: str) -> int:
        """Index in the step log."""
        return next(
            index for index, step in enumerate(self.steps) for output in step.outputs if output.request_id == name and output.tokens
        )

    def step_of_end(self, name: str) -> int:
        """Index in the step log."""
        return next(
            index for index, step in enumerate(self.steps) for output in step.outputs if output.request_id == name and output.finish_reason
        )
