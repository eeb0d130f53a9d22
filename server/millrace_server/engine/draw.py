"""Draws a token from each row's distribution: temperature, then top_k, min_p and top_p, then one uniform number."""

import struct
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from hashlib import blake2b

import torch
from torch import Tensor

from millrace_server.engine.distribution import pick, rank, weights, widths
from millrace_server.engine.sequence import Sequence

LOWEST_TEMPERATURE = 1e-5
"""Below this a temperature only divides by zero; the answer is the greedy one already."""
HIGHEST_TEMPERATURE = 1e30
"""Above this all tokens are equally likely already, and an infinite one would make NaN of the forbidden ones."""
LOWEST_TOP_P = 1e-9
"""Below this only the likeliest token is left already."""
UNKNOWN = float("inf")
"""What all tokens of a row weigh when nobody has added them up: no part of it is ever reached."""


def draw(logits: Tensor, best: Tensor, sequences: Ordered[Sequence]) -> Tensor:
    """A token [rows] for each row of float32 logits [rows, vocabulary] with the maxima `best` [rows].

    A row whose maximum is not finite gets some token.
    """
    vocabulary = logits.shape[1]
    settings = [_settings(sequence, vocabulary) for sequence in sequences]
    table = torch.tensor(settings, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(len(sequences), dtype=torch.long, device=logits.device)
    kinds: dict[Callable[..., Tensor], list[int]] = {}
    for row, (_, top_k, _, top_p, _) in enumerate(settings):
        kinds.setdefault(_by_top_k if top_k < vocabulary else _by_top_p if top_p < 1 else _from_all, []).append(row)
    for by_kind, rows in kinds.items():
        index = torch.tensor(rows, device=logits.device)
        tokens[index] = by_kind(logits[index], best[index, None], table[index])
    return tokens


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that every machine draws alike."""
    digest = blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def _settings(sequence: Sequence, vocabulary: int) -> tuple[float, int, float, float, float]:
    """temperature, top_k, min_p, top_p and the uniform number, whatever was asked brought to where it has a meaning."""
    sampling = sequence.request.sampling
    return (
        min(max(sampling.temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE),
        sampling.top_k if 0 < sampling.top_k < vocabulary else vocabulary,
        min(sampling.min_p, 1.0),
        min(max(LOWEST_TOP_P, sampling.top_p), 1.0),
        uniform(sequence.seed, len(sequence.tokens)),
    )


def _from_all(logits: Tensor, best: Tensor, table: Tensor) -> Tensor:
    temperature, _, min_p, _, chance = table.T[..., None]
    return pick(weights(logits, best, temperature.float(), min_p.float()), chance)[:, 0]


def _by_top_p(logits: Tensor, best: Tensor, table: Tensor) -> Tensor:
    temperature, _, min_p, _, _ = table.T[..., None]
    return _ranked(logits, best, table, weights(logits, best, temperature.float(), min_p.float()).sum(dim=-1, keepdim=True))


def _by_top_k(logits: Tensor, best: Tensor, table: Tensor) -> Tensor:
    return _ranked(logits, best, table, torch.full_like(best, UNKNOWN, dtype=torch.float64))


def _ranked(logits: Tensor, best: Tensor, table: Tensor, total: Tensor) -> Tensor:
    """Ranks a few tokens of each row, then more of those rows where the few may not hold all that the cuts leave.

    `total` [rows, 1] is what all tokens weigh, or UNKNOWN where top_k bounds the tokens to rank.
    """
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    for width in widths(logits.shape[1]):
        drawn, enough = _from_ranked(*rank(logits[left], width), best[left], table[left], total[left])
        tokens[left] = drawn
        left = left[~enough]
        if not len(left):
            break
    return tokens


def _from_ranked(values: Tensor, ids: Tensor, certain: Tensor, best: Tensor, table: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [rows], and whether they are final [rows]: with more tokens ranked, another one could come."""
    temperature, top_k, min_p, top_p, chance = table.T[..., None]
    weighed = weights(values, best, temperature.float(), min_p.float())
    place = torch.arange(weighed.shape[1], device=weighed.device)
    weightless_beyond = weighed[:, -1:] == 0
    weighed.masked_fill_(place >= torch.minimum(top_k, certain), 0)
    cumulative = weighed.cumsum(dim=-1)
    held = cumulative[:, -1:]
    complete = (top_k <= certain) | weightless_beyond
    nucleus = top_p * torch.where(complete, held, total)
    weighed.masked_fill_(cumulative - weighed >= nucleus, 0)
    tokens = ids.gather(1, pick(weighed, chance))[:, 0]
    return tokens, (complete | (held >= nucleus))[:, 0]
