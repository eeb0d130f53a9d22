"""What sampling means, in plain Python and float64, one token after another; and the sequences to sample for."""

import math
from collections.abc import Iterable, Sequence

import torch

from millrace_server.engine import sequence as engine
from millrace_server.engine.draw import uniform
from millrace_server.engine.sampling import sample
from millrace_server.engine.sequence import Choice
from small_engine import request

EOS = frozenset({2})
BORDER = 1e-5
"""A probability so close to a border may fall on either side of it."""


def sequence(
    answer: Sequence[int] = (), *, seed: int = 0, prompt: Sequence[int] = (0,), mask: engine.TokenMask | None = None, **fields: object
) -> engine.Sequence:
    """A sequence that already has this answer; takes the fields of Submit and of Sampling."""
    found = engine.Sequence(request("r", prompt, **{"max_tokens": 10_000, **fields}), seed=seed, arrived=0, mask=mask)
    found.tokens += answer
    return found


def logits(*, rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def choices(rows: torch.Tensor, sequences: Iterable[engine.Sequence]) -> list[Choice]:
    return sample(rows, list(sequences), eos_token_ids=EOS)


def tokens(rows: torch.Tensor, sequences: Iterable[engine.Sequence]) -> list[int]:
    return [choice.token for choice in choices(rows, sequences)]


def changed(row: list[float], of: engine.Sequence) -> list[float]:
    """The logits after penalties, bias and min_tokens, in this order."""
    asked, answer = of.request.sampling, of.tokens[len(of.request.prompt) :]
    row = list(row)
    for token in set(of.tokens):
        row[token] = row[token] / asked.repetition_penalty if row[token] > 0 else row[token] * asked.repetition_penalty
    for token in set(answer):
        row[token] -= asked.presence_penalty
    for token in answer:
        row[token] -= asked.frequency_penalty
    for token, bias in asked.logit_bias.items():
        if token in range(len(row)):
            row[token] += bias
    if len(answer) < asked.min_tokens:
        for token in {*of.request.stop_token_ids, *(() if of.request.ignore_eos else EOS)} & {*range(len(row))}:
            row[token] = -math.inf
    return row


def log_softmax(row: list[float]) -> list[float]:
    best = max(row)
    normaliser = best + math.log(math.fsum(math.exp(each - best) for each in row))
    return [each - normaliser for each in row]


def acceptable(row: list[float], of: engine.Sequence) -> set[int]:
    """The tokens that may be drawn: one, or both neighbours of a border that is nearer than floats can tell."""
    chance = uniform(of.seed, len(of.tokens))
    asked = of.request.sampling
    nudges = (-BORDER, 0.0, BORDER)
    return {
        _draw(row, of, top_p=asked.top_p + nudge, min_p=asked.min_p * (1 + tilt), chance=min(max(chance + push, 0.0), 1 - 1e-9))
        for nudge in (nudges if asked.top_p < 1 else (0.0,))
        for tilt in nudges
        for push in nudges
    }


def _draw(row: list[float], of: engine.Sequence, *, top_p: float, min_p: float, chance: float) -> int:
    asked = of.request.sampling
    best = max(row)
    weights: list[tuple[int, float]] = [(token, math.exp((each - best) / asked.temperature)) for token, each in enumerate(row)]
    if top_k_or_p := (0 < asked.top_k < len(row) or asked.top_p < 1):
        weights.sort(key=lambda pair: -row[pair[0]])  # stable: equal ones stay in the order of their ids
        weights = weights[: asked.top_k or None]
    weights = [(token, weight) for token, weight in weights if weight >= min_p]
    if top_k_or_p:
        weights = _nucleus(weights, top_p)
    return _at(weights, chance)


def _nucleus(weights: list[tuple[int, float]], top_p: float) -> list[tuple[int, float]]:
    total, before = math.fsum(weight for _, weight in weights), 0.0
    for place, (_, weight) in enumerate(weights):
        before += weight
        if before >= top_p * total:
            return weights[: place + 1]
    return weights


def _at(weights: list[tuple[int, float]], chance: float) -> int:
    total, below = math.fsum(weight for _, weight in weights), 0.0
    for token, weight in weights:
        below += weight
        if below > chance * total:
            return token
    return max((token for token, weight in weights if weight > 0), default=-1)
