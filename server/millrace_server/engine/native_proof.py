"""Proof that the compiled step computes what the model computes: the same made-up tokens go through both, and the keys and values of
every layer and the logits are compared.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from millrace_server.engine.kv import KVCache, Rules
from millrace_server.engine.messages import Submit
from millrace_server.engine.native import Library
from millrace_server.engine.native_step import NativeStep, Unsuitable
from millrace_server.engine.scheduler import Chunk
from millrace_server.engine.sequence import Sequence

TOKENS = 24
TOLERANCE = 0.1
"""Relative. bfloat16 itself costs 0.01 to 0.03 over tens of layers; a forgotten norm, bias, factor or rotation several tenths."""

Forward = Callable[[Tensor, Tensor], Tensor]
"""Token ids and positions [2, tokens] and the tokens whose logits are wanted → logits [those, vocabulary]."""


class Listener:
    """Stands in for the cache that attention writes to, and hears by which rules each layer attends."""

    def __init__(self, kv: KVCache) -> None:
        self.rules: dict[int, Rules] = {}
        self._kv = kv

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        self.rules[layer] = rules
        return self._kv.attend(layer, query, key, value, rules)


def proven(
    model: Any,  # noqa: ANN401 - transformers is untyped
    kv: KVCache,
    *,
    forward: Forward,
    attach: Callable[[Listener | KVCache], None],
    library: Library,
    limit: int,
) -> NativeStep:
    """The compiled step of `model`, whose `forward` attends through what is attached. Raises Unsuitable. Leaves rows in `kv`."""
    positions = torch.arange(min(TOKENS, limit - 1))
    ids = (positions + 1) * 7919 % model.config.get_text_config().vocab_size
    listener = Listener(kv)
    attach(listener)
    try:
        _begin(kv, ids)
        expected = forward(torch.stack([ids, positions]), positions).float()
    finally:
        attach(kv)
    step = NativeStep(model, listener.rules, library)
    [theirs] = kv.places(step.kv_shape, step.layers)
    _begin(kv, ids)
    [ours] = places = kv.places(step.kv_shape, step.layers)
    logits = step.run(ids, positions, positions, places)
    for layer in range(step.layers):
        for name, mine, other in (("keys", ours.keys, theirs.keys), ("values", ours.values, theirs.values)):
            _compare(f"the {name} of layer {layer}", mine[layer][:, : len(ids)], other[layer][:, : len(ids)])
    _compare("the logits", logits, expected)
    return step


def _begin(kv: KVCache, ids: Tensor) -> None:
    sequence = Sequence(Submit(request_id="", prompt=ids.tolist(), max_tokens=1, deadline=0), seed=0, arrived=0)
    kv.begin((Chunk(sequence, 0, len(ids)),))


def _compare(what: str, ours: Tensor, theirs: Tensor) -> None:
    if not (ours.float() - theirs.float()).norm() <= TOLERANCE * theirs.float().norm():
        raise Unsuitable(f"{what} would differ")
