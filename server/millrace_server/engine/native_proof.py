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
from millrace_server.engine.plan import Chunk
from millrace_server.engine.sequence import Sequence

TOKENS = 24
TOLERANCE = 0.1
"""Relative. bfloat16 itself costs 0.01 to 0.03 over tens of layers; a forgotten norm, bias, factor or rotation several tenths."""
QUERY_TOLERANCE = 0.05
"""Relative. A rotation leaves a query's size as it is, and the same tokens are as near to each other everywhere."""

Forward = Callable[[Tensor, Tensor], Tensor]
"""Token ids and positions [2, tokens] and the tokens whose logits are wanted → logits [those, vocabulary]."""


class Listener:
    """Stands in for the cache that attention writes to, and hears by which rules each layer attends, and with how large queries."""

    def __init__(self, kv: KVCache) -> None:
        self.rules: dict[int, Rules] = {}
        self.queries: dict[int, float] = {}
        self._kv = kv

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        self.rules[layer] = rules
        self.queries[layer] = query.float().norm().item()
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
    count = min(TOKENS, limit - 1)
    ids, every = (torch.arange(count) + 1) * 7919 % model.config.get_text_config().vocab_size, torch.arange(count)

    def theirs(first: int) -> tuple[Listener, Tensor]:
        """Logits of the tokens as if they stood at `first` and after it; they see each other only."""
        listener = Listener(kv)
        attach(listener)
        try:
            _begin(kv, ids)
            return listener, forward(torch.stack([ids, every + first]), every).float()
        finally:
            attach(kv)

    near, _ = theirs(0)
    step = NativeStep(model, near.rules, library)
    # At the beginning and at the end of the context, where some models scale or rotate otherwise.
    for first in (0, limit - count):
        heard, expected = theirs(first)
        [expected_place] = kv.places(step.kv_shape, step.layers)
        _begin(kv, ids)
        [place] = places = kv.places(step.kv_shape, step.layers)
        logits = step.run(step.embed(ids), every + first, every, places)
        for layer in range(step.layers):
            if abs(heard.queries[layer] - near.queries[layer]) > QUERY_TOLERANCE * near.queries[layer]:
                raise Unsuitable(f"the queries of layer {layer} grow with their position")
            for what, ours, expected_ones in (
                ("keys", place.keys, expected_place.keys),
                ("values", place.values, expected_place.values),
            ):
                _compare(f"the {what} of layer {layer} from token {first} on", ours[layer][:, :count], expected_ones[layer][:, :count])
        _compare(f"the logits from token {first} on", logits, expected)
    return step


def _begin(kv: KVCache, ids: Tensor) -> None:
    sequence = Sequence(Submit(request_id="", prompt=ids.tolist(), max_tokens=1, deadline=0), seed=0, arrived=0)
    kv.begin((Chunk(sequence, 0, len(ids)),))


def _compare(what: str, ours: Tensor, theirs: Tensor) -> None:
    if not (ours.float() - theirs.float()).norm() <= TOLERANCE * theirs.float().norm():
        raise Unsuitable(f"{what} would differ")
