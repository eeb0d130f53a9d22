"""A whole step by the compiled library, for models of Llama's kind: root mean square norms before attention and before a gated SiLU
feed-forward, rotated queries and keys. Whether a model is of that kind is not looked up by its name but tried.
"""

import ctypes
from ctypes import c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from millrace_server.engine import native
from millrace_server.engine.kv import Place, Rules
from millrace_server.engine.native import Library
from millrace_server.engine.packed import NativeLinear

VECTOR = 16
"""Floats of a register: the hidden and the intermediate size must be whole numbers of it, a head's size of two."""
LARGEST_HEAD = 256
TOKENS_TO_SPLIT = 8
"""For each thread. With more of them in a step there is enough to do for everybody without giving away a context block by block."""


class Unsuitable(Exception):
    """The model is of another kind: why."""


class Shape(NamedTuple):
    """Numbers of a layer, in the order of native.Model."""

    hidden: int
    heads: int
    kv_heads: int
    size: int
    intermediate: int


class NativeStep:
    """Computes what the model's forward computes, with sums and residuals in float32. Holds what the library points to."""

    def __init__(self, model: Any, rules: dict[int, Rules], library: Library) -> None:  # noqa: ANN401 - transformers is untyped
        """`rules` are those of every layer. Raises Unsuitable."""
        self._library = library
        self._source = model
        self._tensors: list[Tensor] = []
        try:
            decoder, text = model.model, model.config.get_text_config()
            self._epsilon: float = decoder.norm.variance_epsilon
            self._embed, self._rotate = model.get_input_embeddings(), decoder.rotary_emb
            if text.hidden_act not in ("silu", "swish"):
                raise Unsuitable(f"activation {text.hidden_act}")
            self._model = self._read(decoder, text, model.lm_head, rules)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise Unsuitable(f"{type(error).__name__}: {error}") from error
        self._vocabulary: int = self._model.head.outputs

    @property
    def layers(self) -> int:
        return int(self._model.layers)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """Key-value heads, and the size of one."""
        return int(self._model.kv_heads), int(self._model.size)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [tokens] → what the first layer begins with, float32 [tokens, hidden]."""
        embedded: Tensor = self._embed(ids).float()
        return embedded

    def run(self, x: Tensor, positions: Tensor, sampled: Tensor, places: list[Place], *, layers: range | None = None) -> Tensor:
        """Take `x` [tokens, hidden] through the layers (all), in place. Its positions [tokens] are in the order of `places`, into which
        keys and values are written. Returns the logits of the tokens `sampled`, [sampled, vocabulary], which must be none before the
        last layer. Raises ValueError when the places are not those of so many tokens.
        """
        shape = self._model
        layers = range(self.layers) if layers is None else layers
        cosines, sines = (part[0].contiguous() for part in self._rotate(x[None], positions[None]))
        tokens, samples = len(x), len(sampled)
        segments, longest = _segments(places, row=shape.kv_heads * shape.size, tokens=tokens)
        blocks = -(-longest // native.BLOCK)
        if blocks == 1 or tokens > TOKENS_TO_SPLIT * self._library.threads:
            blocks = 0
        queries, keys, feed = shape.heads * shape.size, shape.kv_heads * shape.size, shape.intermediate
        room = [_floats(tokens, width) for width in (shape.hidden, queries, keys, keys, queries, feed, feed)]
        found = _floats(tokens, shape.heads, blocks, shape.size + native.FOUND)
        narrow = torch.empty(tokens * max(shape.hidden, queries, feed) if self._library.pairing else 0, dtype=torch.bfloat16)
        logits = _floats(samples, self._vocabulary)
        # torch begins every tensor on a cache line of its own: so does every phase.
        phases = torch.zeros((self.layers * native.PHASES_OF_LAYER + native.PHASES, native.PHASE), dtype=torch.int64)
        together = torch.empty((tokens, native.TOGETHER), dtype=torch.int64)
        self._library.step(
            native.Step(
                self._library.team,
                ctypes.pointer(shape),
                layers.start,
                layers.stop,
                tokens,
                len(segments),
                len(places),
                samples,
                (native.Segment * len(segments))(*segments),
                _addresses([place.keys for place in places], self.layers),
                _addresses([place.values for place in places], self.layers),
                sampled.data_ptr(),
                *(tensor.data_ptr() for tensor in (x, cosines, sines, *room, narrow, logits, phases, together, found)),
                blocks,
            )
        )
        return logits

    def _read(self, decoder: Any, text: Any, head: Any, rules: dict[int, Rules]) -> native.Model:  # noqa: ANN401
        size, scaling = decoder.layers[0].self_attn.head_dim, rules[0].scaling
        shape = Shape(text.hidden_size, text.num_attention_heads, text.num_key_value_heads, size, text.intermediate_size)
        uneven = shape.heads % shape.kv_heads or shape.hidden % VECTOR or shape.intermediate % VECTOR or size % (2 * VECTOR)
        if uneven or size > LARGEST_HEAD:
            raise Unsuitable(f"sizes {shape}")
        if any(each.softcap is not None or each.scaling != scaling for each in rules.values()):
            raise Unsuitable("soft caps, or a scaling that differs by layer")
        if self._embed.weight.shape[1] != shape.hidden or _turned(self._rotate, shape.hidden) != size:
            raise Unsuitable("embeddings or rotations of another size")
        layers = [self._layer(layer, rules[index], shape) for index, layer in enumerate(decoder.layers)]
        return native.Model(
            len(layers),
            *shape,
            self._epsilon,
            scaling,
            self._norm(decoder.norm, shape.hidden),
            _weight(head, text.vocab_size, shape.hidden),
            (native.Layer * len(layers))(*layers),
        )

    def _layer(self, layer: Any, rules: Rules, shape: Shape) -> native.Layer:  # noqa: ANN401
        attention, feed = layer.self_attn, layer.mlp
        queries, keys = shape.heads * shape.size, shape.kv_heads * shape.size
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        query_norm, key_norm = (None if norm is None else self._norm(norm, shape.size) for norm in norms)
        return native.Layer(
            self._norm(layer.input_layernorm, shape.hidden),
            _weight(attention.q_proj, queries, shape.hidden),
            _weight(attention.k_proj, keys, shape.hidden),
            _weight(attention.v_proj, keys, shape.hidden),
            _weight(attention.o_proj, shape.hidden, queries),
            query_norm,
            key_norm,
            self._norm(layer.post_attention_layernorm, shape.hidden),
            _weight(feed.gate_proj, shape.intermediate, shape.hidden),
            _weight(feed.up_proj, shape.intermediate, shape.hidden),
            _weight(feed.down_proj, shape.hidden, shape.intermediate),
            rules.window or 0,
        )

    def _norm(self, norm: Any, size: int) -> int:  # noqa: ANN401
        if norm.weight.shape != (size,) or norm.variance_epsilon != self._epsilon:
            raise Unsuitable(f"a norm over {tuple(norm.weight.shape)} with an epsilon of {norm.variance_epsilon}")
        self._tensors.append(norm.weight.detach().float().contiguous())
        return int(self._tensors[-1].data_ptr())


def _weight(linear: object, outputs: int, inputs: int) -> native.WeightAddress:
    if not isinstance(linear, NativeLinear) or (linear.weight.outputs, linear.weight.inputs) != (outputs, inputs):
        raise Unsuitable(f"{linear} where a product of {inputs} to {outputs} was expected")
    return linear.weight.address


def _turned(rotate: Any, hidden: int) -> int:  # noqa: ANN401
    """How much of a head the rotation turns."""
    cosines, _ = rotate(torch.zeros((1, 1, hidden)), torch.zeros((1, 1), dtype=torch.long))
    return int(cosines.shape[-1])


def _floats(*shape: int) -> Tensor:
    """Not yet written."""
    return torch.empty(shape, dtype=torch.float32)


def _segments(places: list[Place], *, row: int, tokens: int) -> tuple[list[native.Segment], int]:
    """And the longest context among them. `row` is the keys of one token, over all heads. Raises ValueError."""
    segments: list[native.Segment] = []
    first = longest = 0
    for index, place in enumerate(places):
        for span in place.spans:
            if span.start + span.tokens > place.capacity:
                raise ValueError(f"a place of {place.capacity} tokens for those from {span.start} to {span.start + span.tokens}")
            offset = span.row * place.capacity * row
            segments.append(native.Segment(first, span.tokens, span.start, index, offset, place.capacity))
            first += span.tokens
            longest = max(longest, span.start + span.tokens)
    if first != tokens:
        raise ValueError(f"places for {first} tokens, and {tokens} to compute")
    return segments, longest


def _addresses(places: list[dict[int, Tensor]], layers: int) -> Any:  # noqa: ANN401 - an array of pointers
    found = [place[layer].data_ptr() for layer in range(layers) for place in places]
    return (c_void_p * len(found))(*found)
