"""Likelihoods in numbers whose sums are exact, and tokens in an order without ties.

A sum of floats depends on the order in which a kernel adds, and a kernel chooses its order by the shape of the whole batch. So weights
are whole numbers, small enough that a row of them adds up exactly in float64, in any order, on any device. Equal logits (bfloat16 has
many) are ordered by token id. What is made of these numbers is the same for a row alone and among any batch mates.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

UNIT = 2.0**34
"""The weight of a row's likeliest token: float64 holds the sum of 2^19 of them exactly, and no vocabulary is larger."""
CANDIDATES = 64
"""Tokens ranked first: the likeliest ones nearly always hold all that a cut leaves."""
MORE_CANDIDATES = 4096
"""Ranked when those were too few; after these the whole vocabulary is sorted."""
SEGMENT = 64
"""Logits of which the largest one is compared first: the largest k lie in the k segments with the largest maxima."""


def weights(logits: Tensor, best: Tensor, temperature: Tensor | float, min_p: Tensor | float = 0.0) -> Tensor:
    """Softmax numerators, the likeliest token's being UNIT: float64 [rows, n] of float32 logits [rows, n] and rows' maxima [rows, 1].

    A weight below `min_p` of the likeliest token's is 0. NaN stays in its row.
    """
    shares = ((logits - best) / temperature).exp_()
    shares.masked_fill_(shares < min_p, 0)
    return shares.mul_(UNIT).round_().double()


def pick(weighed: Tensor, chance: Tensor) -> Tensor:
    """Places [rows, 1], each drawn with a probability proportional to its weight. Weights of 0 are never drawn.

    `weighed` [rows, n] are `weights`; `chance` float64 [rows, 1] in [0, 1). A row without weight, or with NaN, gives some place.
    """
    cumulative = weighed.cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.minimum((chance * total).floor_(), total - 1)
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=weighed.shape[1] - 1)


def widths(vocabulary: int) -> Iterator[int]:
    """How many tokens to rank in each attempt; the last one is the whole vocabulary."""
    yield from (width for width in (CANDIDATES, MORE_CANDIDATES) if width < vocabulary)
    yield vocabulary


def rank(logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `width` largest logits of each row: values and token ids [rows, width], largest first, and how many are certain [rows, 1].

    Equal ones are ordered by id. Those that equal the last one are uncertain: more of them may have been left out.
    """
    rows, vocabulary = logits.shape
    if width == vocabulary:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, ids, torch.full((rows, 1), vocabulary, device=logits.device)
    ids = _largest(logits, width).sort(dim=-1).values
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    certain = (values > values[:, -1:]).sum(dim=-1, keepdim=True)
    return values, ids.gather(1, order), certain


def _largest(logits: Tensor, count: int) -> Tensor:
    """Token ids [rows, count] of the largest logits, in no order."""
    rows, vocabulary = logits.shape
    if vocabulary % SEGMENT or vocabulary // SEGMENT <= count:
        return logits.topk(count, dim=-1, sorted=False).indices
    segments = logits.view(rows, -1, SEGMENT)
    likely = segments.amax(dim=-1).topk(count, dim=-1, sorted=False).indices
    members = segments.gather(1, likely[..., None].expand(-1, -1, SEGMENT)).flatten(1)
    found = members.topk(count, dim=-1, sorted=False).indices
    return likely.gather(1, found // SEGMENT) * SEGMENT + found % SEGMENT
