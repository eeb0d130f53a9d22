"""A peer's end of the line: a thread takes what is asked, `tell` answers. The process ends when its standard input does."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM

from engine_benchmark.lines import Ask, Hello, Told


class Wire:
    """Takes standard output for itself: whatever a library prints goes to standard error."""

    def __init__(self, on_ask: Callable[[Ask], None] | None = None) -> None:
        """`on_ask` is called by the listening thread; without it, asks wait in `asked`."""
        self.asked: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        self._on_ask = on_ask or self.asked.put
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def open(self, dtype: torch.dtype) -> None:
        """Say that the model is loaded, and listen."""
        self._write(Hello(str(dtype).removeprefix("torch."), torch.get_num_threads()))
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, numbers: Iterable[int], finished: Iterable[int]) -> None:
        self._write(Told(list(numbers), list(finished)))

    def _write(self, message: Told | Hello) -> None:
        self._out.write(msgspec.json.encode(message) + b"\n")

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            self._on_ask(msgspec.json.decode(line, type=Ask))
        os._exit(0)


def load() -> Any:  # noqa: ANN401 - transformers is untyped
    """The model of the folder in the command line, in the type in which it was saved."""
    return AutoModelForCausalLM.from_pretrained(Path(sys.argv[1]), dtype="auto", attn_implementation="sdpa", local_files_only=True).eval()
