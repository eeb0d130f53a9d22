"""The model runner: computes a step's chunks and samples their next tokens.

It alone knows the KV cache's layout and the device. It registers its own attention in transformers' attention interface and leaves
the rest of the model as it is.
"""

import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from millrace_server.engine import native, native_proof, sampling
from millrace_server.engine.failure import CannotServe, DeviceLost, StepOutOfMemory
from millrace_server.engine.kv import LANE_SLACK, KVCache, Rules
from millrace_server.engine.messages import Submit
from millrace_server.engine.native_proof import Listener
from millrace_server.engine.native_step import NativeStep, Unsuitable
from millrace_server.engine.plan import WHOLE, Chunk
from millrace_server.engine.sequence import INVALID_TOKEN, Choice, Sequence

ATTENTION = "slot"
"""Our attention's name in transformers' registry. Unknown to its mask registry, so that no mask is built: we have our own."""
KV_SHARE = 0.8
"""Of the memory that is free once the weights are loaded, for keys and values; the rest is for a step's own tensors."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a loaded model is, as far as anything outside the runner needs it."""

    device: str
    dtype: str
    max_length: int
    vocabulary: int
    eos_token_ids: frozenset[int]


class Runner:
    """Computes chunks, one forward pass per step; holds the KV cache of every sequence until it is released."""

    def __init__(self, model: Any, *, facts: Facts, free_memory: int) -> None:  # noqa: ANN401 - transformers is untyped
        self.facts = facts
        self._device = torch.device(facts.device)
        self._model = model
        self._kv = KVCache(facts.max_length, self._device)
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._attach(self._kv)
        self._step = self._compiled_step()
        self._begun: dict[Sequence, Tensor] = {}
        """What the layers so far have made of each sequence's chunk, [tokens, hidden], if it is computed in stages."""
        self.bytes_per_token = self._measure()
        """Of keys and values."""
        self.kv_tokens = int(free_memory * KV_SHARE) // (self.bytes_per_token * LANE_SLACK)
        """What the memory holds, in the units of `reserve`."""
        if self.kv_tokens < self.reserve(facts.max_length):
            needed = self.reserve(facts.max_length) * self.bytes_per_token * LANE_SLACK / KV_SHARE
            hint = (
                f"one request of {facts.max_length} tokens needs {needed / 1e6:.0f} MB for its KV cache, and {free_memory / 1e6:.0f} MB"
                f" are free; lower MAX_LENGTH to {self.kv_tokens // 2} or raise the memory limit"
            )
            raise CannotServe("allocate", "OutOfMemory", hint)

    def reserve(self, tokens: int) -> int:
        """KV tokens that a sequence of so many tokens occupies, with room for the next one."""
        return self._kv.capacity(tokens + 1)

    @property
    def stages(self) -> int:
        """Into which the computation of a chunk can be divided: the layers, where the compiled library computes them."""
        return 1 if self._step is None else self._step.layers

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        """Compute the chunks. Returns the choice of each one that samples, in the given order.

        May be repeated after an error, with any part of the chunks. Raises StepOutOfMemory, DeviceLost, or what the model raises.
        """
        try:
            choices: list[Choice] = self._run(chunks)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StepOutOfMemory(str(error)) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # torch's words on a CPU
                raise StepOutOfMemory(str(error)) from error
            self._require_device(error)
            raise
        return choices

    def is_sound(self) -> bool:
        """Whether a single harmless token gives numbers: if not, the weights themselves are broken."""
        sequence = _probe()
        try:
            return self.run((Chunk(sequence, 0, 1),))[0].token != INVALID_TOKEN
        finally:
            self.release(sequence)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def release(self, sequence: Sequence) -> None:
        """Forget a sequence's keys and values."""
        self._begun.pop(sequence, None)
        self._kv.release(sequence)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forget(self, blocks: Iterable[bytes]) -> None:
        """Drop stored blocks."""
        self._kv.forget(blocks)

    def reset(self) -> None:
        """Drop all keys and values: every sequence must be computed anew."""
        self._begun.clear()
        self._kv.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def bytes_held(self) -> int:
        """Memory that keys and values take now."""
        return self._kv.bytes_held()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        laid_out, logits, begun = self._compute(chunks)
        sequences = [chunk.sequence for chunk in laid_out if chunk.samples]
        chosen = sampling.sample(logits, sequences, eos_token_ids=self.facts.eos_token_ids) if sequences else []
        choices = dict(zip(sequences, chosen, strict=True))
        self._kv.end(laid_out)
        self._begun |= begun
        return [choices[chunk.sequence] for chunk in chunks if chunk.samples]

    def _compute(self, chunks: tuple[Chunk, ...]) -> tuple[list[Chunk], Tensor, dict[Sequence, Tensor]]:
        """The chunks in the order of their tokens, the logits of those that sample, and what to keep of those that are not complete."""
        laid_out = self._kv.begin(chunk for chunk in chunks if chunk.stages == WHOLE)
        logits = [self._logits(*self._inputs(laid_out))] if laid_out else []
        begun: dict[Sequence, Tensor] = {}
        for chunk in chunks:
            if chunk.stages != WHOLE:
                laid_out += self._kv.begin((chunk,))
                begun[chunk.sequence], found = self._some_layers(chunk)
                logits.append(found)
        return laid_out, logits[0] if len(logits) == 1 else torch.cat(logits), begun

    def _some_layers(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """What the layers of this step make of the chunk [tokens, hidden], and the logits of its last token if it samples."""
        if self._step is None:
            raise ValueError(f"{chunk.stages} of a model that is computed in one")
        (ids, positions), last = self._inputs((chunk,))
        # A copy, for the step may be repeated.
        x = self._begun[chunk.sequence].clone() if chunk.stages.begin else self._step.embed(ids)
        layers = range(chunk.stages.begin, chunk.stages.end)
        return x, self._step.run(x, positions, last, self._kv.places(self._step.kv_shape, self._step.layers), layers=layers)

    def _inputs(self, chunks: Iterable[Chunk]) -> tuple[Tensor, Tensor]:
        """Token ids and positions [2, tokens], and which of the tokens are the last ones of chunks that sample."""
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for chunk in chunks:
            ids += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            if chunk.samples:
                last.append(len(ids) - 1)
        inputs = torch.tensor([ids, positions], device=self._device)
        return inputs, torch.tensor(last, dtype=torch.long, device=self._device)

    def _require_device(self, error: RuntimeError) -> None:
        """After a sticky CUDA error (a device-side assert, an illegal address) every later call fails too."""
        if self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            raise DeviceLost(f"the GPU is lost to this process: {error}") from error

    def _logits(self, inputs: Tensor, last: Tensor) -> Tensor:
        """Of the tokens `last`, by the compiled library where it knows how."""
        if self._step is None:
            return self._forward(inputs, last)
        ids, positions = inputs
        return self._step.run(self._step.embed(ids), positions, last, self._kv.places(self._step.kv_shape, self._step.layers))

    def _forward(self, inputs: Tensor, last: Tensor) -> Tensor:
        ids, positions = inputs[:, None]
        keep = {"logits_to_keep": last} if self._keeps_last else {}
        logits: Tensor = self._model(input_ids=ids, position_ids=positions, use_cache=False, **keep).logits[0]
        return logits if self._keeps_last else logits[last]

    def _attach(self, attention: KVCache | Listener) -> None:
        for module in self._model.modules():
            if hasattr(module, "layer_idx"):
                module.millrace_kv = attention

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _compiled_step(self) -> NativeStep | None:
        """What computes a step at once, when there is such a thing and it computes the same as the model."""
        library = native.library()
        if library is None or self._device.type != "cpu" or self._model.dtype is not torch.bfloat16:
            return None
        try:
            return native_proof.proven(
                self._model, self._kv, forward=self._forward, attach=self._attach, library=library, limit=self.facts.max_length
            )
        except Unsuitable as reason:
            log.info("the model is computed layer by layer: %s", reason)
            return None
        finally:
            self._kv.clear()

    def _measure(self) -> int:
        """KV bytes per token, from a first token that goes all the way."""
        sequence = _probe()
        self.run((Chunk(sequence, 0, 1),))
        held = self._kv.bytes_held()
        self.release(sequence)
        return held // self._kv.capacity(2)


def _probe() -> Sequence:
    return Sequence(Submit(request_id="", prompt=[0], max_tokens=1, deadline=0), seed=0, arrived=0)


def _attend(
    module: Any,  # noqa: ANN401
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, size] in, [1, tokens, heads, size] out.

    What else it may be told changes nothing: `proof` has seen it.
    """
    rules = Rules(scaling=query.shape[-1] ** -0.5 if scaling is None else scaling, window=sliding_window, softcap=softcap)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attended = module.millrace_kv.attend(module.layer_idx, query, key, value, rules)
    # Some models take the result apart by `view`.
    return attended.contiguous()[None], None


AttentionInterface.register(ATTENTION, _attend)
