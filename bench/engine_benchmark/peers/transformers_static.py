"""transformers' `generate`, as one uses it for several requests: those that wait become one batch, padded on the left.

A batch runs until its longest answer is done, and meanwhile new requests wait. Answers are streamed.
"""

import queue
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from engine_benchmark.engine import SLOTS
from engine_benchmark.lines import Ask
from engine_benchmark.peers.wire import Wire, load

SILENCE_SECONDS = 0.005
"""A batch starts when nothing more came for so long: clients that ask together are batched together."""
PAD = 0


class Stream(BaseStreamer):  # type: ignore[misc]
    """Told of each step's tokens by `generate`; passes on those that were asked for."""

    def __init__(self, wire: Wire, batch: list[Ask]) -> None:
        self._wire = wire
        self._batch = batch
        self._step = 0

    def put(self, value: object) -> None:
        """The first call brings the prompts."""
        if self._step:
            running = [ask for ask in self._batch if ask.max_tokens >= self._step]
            self._wire.tell([ask.number for ask in running], [ask.number for ask in running if ask.max_tokens == self._step])
        self._step += 1

    def end(self) -> None:
        """Everybody has been told."""


def wave(asked: "queue.SimpleQueue[Ask]") -> list[Ask]:
    """Wait for requests; those that come together, SLOTS at most."""
    batch = [asked.get()]
    while len(batch) < SLOTS:
        try:
            batch.append(asked.get(timeout=SILENCE_SECONDS))
        except queue.Empty:
            break
    return batch


@torch.inference_mode()  # type: ignore[untyped-decorator]
def generate(model: Any, wire: Wire, batch: list[Ask]) -> None:  # noqa: ANN401
    longest = max(len(ask.prompt) for ask in batch)
    padding = [longest - len(ask.prompt) for ask in batch]
    ids = torch.tensor([[PAD] * pad + ask.prompt for pad, ask in zip(padding, batch, strict=True)])
    seen = torch.tensor([[0] * pad + [1] * len(ask.prompt) for pad, ask in zip(padding, batch, strict=True)])
    config = GenerationConfig(max_new_tokens=max(ask.max_tokens for ask in batch), do_sample=False, eos_token_id=None, pad_token_id=PAD)
    model.generate(ids, attention_mask=seen, generation_config=config, streamer=Stream(wire, batch))


def main() -> None:
    wire = Wire()
    model = load()
    wire.open(model.dtype)
    while True:
        generate(model, wire, wave(wire.asked))


if __name__ == "__main__":
    main()
