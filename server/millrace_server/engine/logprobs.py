"""How likely the chosen tokens were, and which others were likely."""

import math
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from millrace_server.engine.distribution import UNIT, rank, weights, widths
from millrace_server.engine.messages import Logprobs


def report(logits: Tensor, best: Tensor, tokens: Tensor, counts: Ordered[int]) -> list[Logprobs]:
    """The Logprobs of each row, with `counts[row]` others.

    Takes float32 logits [rows, vocabulary], their finite maxima [rows] and the chosen tokens [rows]. More others than the vocabulary has
    are all of them; forbidden tokens (logits of -inf) are left out.
    """
    vocabulary = logits.shape[1]
    total = weights(logits, best[:, None], 1.0).sum(dim=-1) / UNIT
    normaliser = (best.double() + total.log())[:, None]
    chosen = (logits.gather(1, tokens[:, None]) - normaliser)[:, 0].tolist()
    values, ids = likeliest(logits, min(max(counts), vocabulary))
    top = zip(ids.tolist(), (values - normaliser).tolist(), counts, strict=True)
    others = [[pair for pair in zip(ids[:count], values[:count], strict=True) if pair[1] > -math.inf] for ids, values, count in top]
    return [Logprobs(logprob, pairs) for logprob, pairs in zip(chosen, others, strict=True)]


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and token ids [rows, count] of the largest logits, largest first, equal ones by id."""
    rows, vocabulary = logits.shape
    values = logits.new_empty(rows, count)
    ids = torch.empty(rows, count, dtype=torch.long, device=logits.device)
    left = torch.arange(rows if count else 0, device=logits.device)
    for width in widths(vocabulary):
        if width < count or not len(left):
            continue
        ranked, ranked_ids, certain = rank(logits[left], width)
        values[left], ids[left] = ranked[:, :count], ranked_ids[:, :count]
        left = left[certain[:, 0] < count]
    return values, ids
