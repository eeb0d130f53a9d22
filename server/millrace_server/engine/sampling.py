"""The next token of each row of logits.

A sampled token depends on the row's logits, the request's seed and the token's position, and on nothing else: one uniform number per
row comes from a hash of seed and position, and picks from the cumulative probabilities. So batch mates never change an answer.
"""

import struct
from collections.abc import Sequence as Ordered
from hashlib import blake2b

import torch
from torch import Tensor

from millrace_server.engine.sequence import INVALID_TOKEN, Choice, Sequence

LOWEST_TEMPERATURE = 1e-5
"""Below this a temperature only divides by zero; the answer is the greedy one already."""
CANDIDATES = 256
"""Tokens sorted first for top_p; rows whose nucleus is larger are sorted whole."""


def sample(logits: Tensor, sequences: Ordered[Sequence]) -> list[Choice]:
    """One choice per row of logits [rows, vocabulary]; its token is INVALID_TOKEN for a row that has NaN or no finite maximum."""
    best, tokens = logits.max(dim=-1)
    tokens = tokens.masked_fill(~best.isfinite(), INVALID_TOKEN)
    warm = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.temperature > 0]
    if warm:
        index = torch.tensor(warm, device=logits.device)
        drawn = _draw(logits[index], best[index], [sequences[row] for row in warm])
        tokens[index] = torch.where(tokens[index] == INVALID_TOKEN, tokens[index], drawn)
    return [Choice(token) for token in tokens.tolist()]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that every machine draws alike."""
    digest = blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def _draw(logits: Tensor, best: Tensor, sequences: Ordered[Sequence]) -> Tensor:
    settings = [
        (max(s.request.sampling.temperature, LOWEST_TEMPERATURE), s.request.sampling.top_p, uniform(s.seed, len(s.tokens)))
        for s in sequences
    ]
    temperature, top_p, chance = torch.tensor(settings, dtype=torch.float32, device=logits.device).T[..., None]
    weights = ((logits.float() - best.float()[:, None]) / temperature).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    tokens = torch.empty(len(sequences), dtype=torch.long, device=logits.device)

    whole = top_p[:, 0] >= 1
    candidates = weights.topk(min(CANDIDATES, weights.shape[1]), dim=-1)
    small = ~whole & (candidates.values.sum(dim=-1) >= (top_p * total)[:, 0])
    large = ~whole & ~small
    tokens[whole] = _pick(weights[whole], total[whole], chance[whole])
    tokens[small] = _pick_nucleus(candidates.values[small], candidates.indices[small], (top_p * total)[small], chance[small])
    if bool(large.any()):
        ordered = weights[large].sort(dim=-1, descending=True)
        tokens[large] = _pick_nucleus(ordered.values, ordered.indices, (top_p * total)[large], chance[large])
    return tokens


def _pick_nucleus(ordered: Tensor, indices: Tensor, mass: Tensor, chance: Tensor) -> Tensor:
    """Pick among the fewest most likely tokens whose weights reach `mass` (the first one always counts)."""
    before = ordered.cumsum(dim=-1) - ordered
    inside = ordered.masked_fill((before >= mass) & (before > 0), 0)
    place = _pick(inside, inside.sum(dim=-1, keepdim=True), chance)
    return indices.gather(1, place[:, None])[:, 0]


def _pick(weights: Tensor, total: Tensor, chance: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds `chance` of the total."""
    cumulative = weights.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, chance * torch.minimum(total, cumulative[:, -1:]), right=True)[:, 0]
    return place.clamp_(max=weights.shape[1] - 1)
