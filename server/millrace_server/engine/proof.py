"""Proof, before the first request, that a loaded model computes what our attention and our batches compute.

transformers has hundreds of architectures, and one that adds a bias, a sink or a window that we do not know of would answer fluently
and wrongly. So a few made-up tokens go through the model: once with every layer's attention compared to transformers' own, and twice
with an attention in which no token sees another. Nothing here knows the name of an architecture.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from millrace_server.engine.failure import CannotServe, unsupported
from millrace_server.engine.kv import Rules

PROVING = "slot-proof"
"""The name under which the proof's attention stands in transformers' registries. Each proof registers its own."""
TOKENS = 24
RULES = frozenset({"scaling", "sliding_window", "softcap"})
HARMLESS = frozenset({"dropout", "is_causal", "position_ids", "output_attentions", "output_router_logits", "use_cache"})
"""What attention is told besides the Rules without becoming another attention: `is_causal` repeats what the mask says."""
ATTENTION_TOLERANCE = 1e-3
"""Relative, in float32: another order of the sums is 1e-6, a forgotten rule 1e-2 and more."""
LOCALITY_TOLERANCE = {torch.float32: 1e-3}
"""Relative; rows alone are computed alike wherever they stand, but experts share theirs with others."""
HALF_LOCALITY_TOLERANCE = 1e-2

Attention = Callable[..., tuple[Tensor, None]]
MaskFunction = Callable[..., Tensor]
"""(batch, head, query position, key position) → sees it."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def prove(model: Any, *, limit: int) -> None:  # noqa: ANN401 - transformers is untyped
    """Raises CannotServe when a layer attends in another way than by Rules within `limit` tokens, or when tokens meet elsewhere."""
    text = model.config.get_text_config()
    device = model.get_input_embeddings().weight.device
    positions = torch.arange(min(TOKENS, limit), device=device)
    ids = (positions + 1) * 7919 % text.vocab_size
    witness = _Witness(limit)
    try:
        AttentionMaskInterface.register(PROVING, witness.mask)
        with _attention(model, witness.attend):
            _logits(model, ids, positions)
        AttentionMaskInterface.register(PROVING, _no_mask)
        with _attention(model, _attend_to_oneself):
            forwards = _logits(model, ids, positions)
            backwards = _logits(model, ids.flip(0), positions.flip(0)).flip(0)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise unsupported(f"its forward pass does not fit ({type(error).__name__}: {str(error)[:200]})") from error
    if sorted(witness.layers) != list(range(text.num_hidden_layers)):
        raise unsupported(f"its {text.num_hidden_layers} layers attend {len(witness.layers)} times through transformers' interface")
    if _distance(backwards, forwards) > LOCALITY_TOLERANCE.get(model.dtype, HALF_LOCALITY_TOLERANCE):
        raise unsupported("its tokens meet outside attention (by a convolution, a recurrence, or positions that it counts itself)")


class _Witness:
    """Sees the attention of every layer in one forward pass, and answers with transformers' own."""

    def __init__(self, limit: int) -> None:
        self.layers: list[int] = []
        self._limit = limit
        self._masks: list[tuple[Tensor, MaskFunction]] = []

    def mask(self, *, mask_function: MaskFunction, **arguments: Any) -> Tensor:  # noqa: ANN401
        """transformers' mask interface."""
        mask: Tensor = eager_mask(mask_function=mask_function, **arguments)
        self._masks.append((mask, mask_function))
        return mask

    def attend(
        self,
        module: Any,  # noqa: ANN401
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **told: Any,  # noqa: ANN401
    ) -> tuple[Tensor, None]:
        """transformers' attention interface: [1, heads, tokens, size] in, [1, tokens, heads, size] out."""
        layer = module.layer_idx
        self.layers.append(layer)
        unknown = sorted(name for name, what in told.items() if what is not None and name not in RULES | HARMLESS)
        if unknown:
            raise unsupported(f"the attention of layer {layer} also needs {', '.join(unknown)}")
        made = next((function for mask, function in self._masks if mask is attention_mask), None)
        if attention_mask is None or made is None:
            raise unsupported(f"layer {layer} attends without a causal mask, or with one of its own making")
        rules = Rules(
            scaling=query.shape[-1] ** -0.5 if told.get("scaling") is None else told["scaling"],
            window=told.get("sliding_window"),
            softcap=told.get("softcap"),
        )
        self._compare_views(layer, rules.window, made, query.device)
        theirs = sys.modules[type(module).__module__].eager_attention_forward
        exact = query.float(), key.float(), value.float()
        expected: Tensor = theirs(module, *exact, attention_mask.float(), **told)[0]
        if _distance(_attend_by(rules, *exact), expected) > ATTENTION_TOLERANCE:
            raise unsupported(f"the attention of layer {layer} computes something of its own")
        return expected.to(value.dtype), None

    def _compare_views(self, layer: int, window: int | None, made: MaskFunction, device: torch.device) -> None:
        """Who sees whom must agree at every distance, far beyond the few tokens that are computed."""
        edges = [1 << power for power in range(self._limit.bit_length())] + ([window, 2 * window] if window else [])
        near = {edge + offset for edge in (*edges, self._limit) for offset in (-2, -1, 0, 1)}
        places = torch.tensor(sorted(place for place in near if 0 <= place < self._limit), device=device)
        zero = torch.zeros((), dtype=torch.long, device=device)
        if not torch.equal(made(zero, zero, places[:, None], places).expand(len(places), -1), _sees(places, window)):
            ours = "plain causal attention" if window is None else f"a window of {window} tokens"
            raise unsupported(f"layer {layer} asks for {ours} and for a mask that shows something else")


def _attend_by(rules: Rules, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The Rules in their plainest form."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    places = torch.arange(query.shape[2], device=query.device)
    weights = scores.masked_fill(~_sees(places, rules.window), float("-inf")).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


def _sees(places: Tensor, window: int | None) -> Tensor:
    distance = places[:, None] - places
    return (distance >= 0) & (distance < window) if window is not None else distance >= 0


def _attend_to_oneself(
    _module: Any,  # noqa: ANN401
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **_: object,
) -> tuple[Tensor, None]:
    """Everything that attention is given must count, the rotated query and key too, but of one's own token only."""
    groups = query.shape[1] // key.shape[1]
    told = 1 + torch.tanh(query.mean(-1, keepdim=True)) + torch.tanh(key.mean(-1, keepdim=True)).repeat_interleave(groups, dim=1)
    return (value.repeat_interleave(groups, dim=1) * told).transpose(1, 2).contiguous(), None


def _no_mask(**_: object) -> None:
    return None


@contextmanager
def _attention(model: Any, attention: Attention) -> Iterator[None]:  # noqa: ANN401
    before = model.config._attn_implementation
    AttentionInterface.register(PROVING, attention)
    model.set_attn_implementation(PROVING)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _logits(model: Any, ids: Tensor, positions: Tensor) -> Tensor:  # noqa: ANN401
    """[tokens, vocabulary], by the very call of the runner."""
    logits: Tensor = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
    return logits.float()


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative to the other, which must be numbers. Raises CannotServe."""
    scale = other.norm().item()
    if not math.isfinite(scale):
        hint = "made-up tokens give NaN or infinity: the weights are damaged, or too large for this type (try DTYPE=float32)"
        raise CannotServe("load", "InvalidModel", hint)
    distance: float = (one - other).norm().item() / max(scale, 1e-30)
    return distance if math.isfinite(distance) else math.inf
